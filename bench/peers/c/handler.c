// The handler in C that the others are compared with. It serves one guest after the other, until it is killed.
//
//   handler --socket PATH --memory FILE [--window N] [--wait poll|spin]
//
// The policy, which is that of `uffd serve` and of every handler in this folder:
//  - The handler receives one message: JSON with the memory's region, and the userfaultfd. It maps the memory file.
//  - It reads all queued messages, then answers each fault with one UFFDIO_COPY of the page and of the missing pages
//    around it in its window. A window is a run of N pages, aligned to N.
//  - Pages that a balloon has removed (REMOVE) are filled with zeros from then on. A page that was filled after a
//    removal and faults again is filled with zeros too, because the kernel removes pages a moment after the event was
//    read.
//  - EEXIST: another fill came first, so the handler wakes the threads that wait for the page. EAGAIN: the handler
//    keeps the pages that were filled, reads the mapping change, then handles the fault again. ENOENT, ESRCH: the
//    memory or the guest is gone. Any other error ends the handler.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { MESSAGES = 64, READS_A_LOOK = 256 };
enum { MISSING, PRESENT, REMOVED };

static unsigned char *source, *states;
static uint64_t base, pages, page_size, window = 1;
static int uffd, spin, removals;

static void check(int sound, const char *what) {
  if (sound) return;
  fprintf(stderr, "handler: %s: %s\n", what, strerror(errno));
  exit(1);
}

static int take(int connection) {
  char text[4096], control[CMSG_SPACE(sizeof(int))];
  struct iovec vector = {text, sizeof text - 1};
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  ssize_t length = recvmsg(connection, &message, MSG_CMSG_CLOEXEC);
  check(length > 0, "recvmsg");
  text[length] = 0;
  unsigned long long start, size, offset, unit;
  const char *form = "[{\"base_host_virt_addr\":%llu,\"size\":%llu,\"offset\":%llu,\"page_size\":%llu";
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  check(header && sscanf(text, form, &start, &size, &offset, &unit) == 4 && offset == 0, "hand-off");
  base = start, page_size = unit, pages = size / unit, removals = 0;
  memset(states, MISSING, pages);
  int fd;
  memcpy(&fd, CMSG_DATA(header), sizeof fd);
  return fd;
}

static void wake(uint64_t page) {
  struct uffdio_range range = {base + page * page_size, page_size};
  ioctl(uffd, UFFDIO_WAKE, &range);
}

// Returns the bytes that were filled, or -errno if none were.
static int64_t transfer(uint64_t first, uint64_t length, int zero) {
  struct uffdio_zeropage zeros = {.range = {base + first * page_size, length}};
  struct uffdio_copy copy = {.dst = base + first * page_size, .src = (uintptr_t)source + first * page_size, .len = length};
  if (ioctl(uffd, zero ? UFFDIO_ZEROPAGE : UFFDIO_COPY, zero ? (void *)&zeros : (void *)&copy) == 0) return length;
  int64_t done = zero ? zeros.zeropage : copy.copy;
  return errno == EAGAIN && done > 0 ? done : -errno;
}

// Returns 0 if the handler must first read the event of a mapping change.
static int fill(uint64_t page) {
  for (;;) {
    unsigned char state = states[page];
    if (state == PRESENT && !removals) return wake(page), 1;
    uint64_t first = page, end = page + 1, low = page / window * window, high = low + window;
    while (state != PRESENT && first > low && states[first - 1] == state) first--;
    while (state != PRESENT && end < high && end < pages && states[end] == state) end++;
    int64_t done = transfer(first, (end - first) * page_size, state != MISSING);
    if (done > 0) {
      memset(states + first, PRESENT, done / page_size);
      if (first + done / page_size > page) return 1;
    } else if (done == -EEXIST) {
      states[first] = PRESENT;
      if (first == page) return wake(page), 1;
    } else {
      errno = -done;
      check(done == -EAGAIN || done == -ENOENT || done == -ESRCH, "a fault was not answered");
      return done != -EAGAIN;
    }
  }
}

// Returns whether the guest is gone. A spinning handler checks the connection only now and then.
static int await(struct pollfd *fds, int waiting) {
  static uint32_t looks;
  if (spin && ++looks % READS_A_LOOK) return 0;
  check(poll(fds, 2, spin ? 0 : waiting ? 1 : -1) >= 0, "poll");
  return fds[1].revents != 0;
}

static void serve(int connection) {
  static struct uffd_msg messages[MESSAGES];
  static uint64_t waiting[1 << 16];
  uint32_t count = 0;
  struct pollfd fds[2] = {{uffd, POLLIN, 0}, {connection, POLLIN, 0}};
  while (!await(fds, count > 0)) {
    for (ssize_t bytes; (bytes = read(uffd, messages, sizeof messages)) > 0;) {
      for (ssize_t i = 0; i < bytes / (ssize_t)sizeof *messages; i++) {
        if (messages[i].event == UFFD_EVENT_REMOVE) {
          uint64_t first = (messages[i].arg.remove.start - base) / page_size;
          memset(states + first, REMOVED, (messages[i].arg.remove.end - base) / page_size - first);
          removals = 1;
        } else {
          waiting[count++] = (messages[i].arg.pagefault.address - base) / page_size;
        }
      }
      if (bytes < (ssize_t)sizeof messages) break;
    }
    uint32_t left = 0;
    for (uint32_t i = 0; i < count; i++)
      if (!fill(waiting[i])) waiting[left++] = waiting[i];
    count = left;
  }
}

int main(int words, char **word) {
  static const struct option options[] = {{"socket", required_argument, NULL, 's'},
                                          {"memory", required_argument, NULL, 'm'},
                                          {"window", required_argument, NULL, 'w'},
                                          {"wait", required_argument, NULL, 'h'},
                                          {0}};
  const char *path = NULL, *memory = NULL;
  for (int option; (option = getopt_long(words, word, "", options, NULL)) != -1;) {
    if (option == 's') path = optarg;
    if (option == 'm') memory = optarg;
    if (option == 'w') window = strtoull(optarg, NULL, 10);
    if (option == 'h') spin = strcmp(optarg, "spin") == 0;
    if (option == '?') return 2;
  }
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (!path || !memory || window == 0 || strlen(path) >= sizeof address.sun_path)
    return fprintf(stderr, "usage: handler --socket PATH --memory FILE [--window N] [--wait poll|spin]\n"), 2;
  int file = open(memory, O_RDONLY | O_CLOEXEC);
  struct stat stat;
  check(file >= 0 && fstat(file, &stat) == 0, memory);
  source = mmap(NULL, stat.st_size, PROT_READ, MAP_PRIVATE, file, 0);
  states = calloc(stat.st_size / 4096 + 1, 1);
  check(source != MAP_FAILED && states, "mmap");
  strcpy(address.sun_path, path);
  int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  check(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 8) == 0, "listen");
  puts("ready");
  fflush(stdout);
  for (int connection; (connection = accept(listener, NULL, NULL)) >= 0; close(connection)) {
    uffd = take(connection);
    serve(connection);
    close(uffd);
  }
  return 1;
}
