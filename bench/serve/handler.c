// The handler in C that `uffd serve` is compared with: the same hand-off, the same policy. It waits in poll, reads,
// and copies from the mapped memory file. One guest after the other, until it is killed.
//
//   handler SOCKET FILE WINDOW CPU

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
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

enum { PAGE = 4096, MESSAGES = 64 };
enum { MISSING, PRESENT, REMOVED };

static unsigned char *source, *states;
static uint64_t base, pages, window;
static int uffd;

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
  unsigned long long start, size, offset;
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  check(header && sscanf(text, "[{\"base_host_virt_addr\":%llu,\"size\":%llu,\"offset\":%llu", &start, &size, &offset) == 3,
        "hand-off");
  base = start, pages = size / PAGE;
  memset(states, MISSING, pages);
  int fd;
  memcpy(&fd, CMSG_DATA(header), sizeof fd);
  return fd;
}

static void wake(uint64_t page) {
  struct uffdio_range range = {base + page * PAGE, PAGE};
  ioctl(uffd, UFFDIO_WAKE, &range);
}

// 0: a mapping change came first; it has to be read.
static int fill(uint64_t page) {
  unsigned char state = states[page];
  if (state == PRESENT) return wake(page), 1;
  uint64_t first = page, last = page + 1, low = page / window * window, high = low + window;
  while (first > low && states[first - 1] == state) first--;
  while (last < high && last < pages && states[last] == state) last++;
  uint64_t length = (last - first) * PAGE;
  if (state == REMOVED) {
    struct uffdio_zeropage zero = {.range = {base + first * PAGE, length}};
    if (ioctl(uffd, UFFDIO_ZEROPAGE, &zero) < 0) {
      if (errno == EEXIST) return wake(page), states[page] = PRESENT, 1;
      return errno == ENOENT || errno == ESRCH;
    }
  } else {
    struct uffdio_copy copy = {.dst = base + first * PAGE, .src = (uintptr_t)source + first * PAGE, .len = length};
    if (ioctl(uffd, UFFDIO_COPY, &copy) < 0) {
      if (errno == EEXIST) return wake(page), states[page] = PRESENT, 1;
      return errno == ENOENT || errno == ESRCH;
    }
  }
  memset(states + first, PRESENT, last - first);
  return 1;
}

static void serve(int connection) {
  static struct uffd_msg messages[MESSAGES];
  static uint64_t waiting[1 << 16];
  uint32_t count = 0;
  struct pollfd fds[2] = {{uffd, POLLIN, 0}, {connection, POLLIN, 0}};
  for (;;) {
    check(poll(fds, 2, count ? 1 : -1) >= 0, "poll");
    if (fds[1].revents) return;
    for (ssize_t bytes; (bytes = read(uffd, messages, sizeof messages)) > 0;) {
      for (ssize_t i = 0; i < bytes / (ssize_t)sizeof *messages; i++) {
        if (messages[i].event == UFFD_EVENT_REMOVE) {
          uint64_t first = (messages[i].arg.remove.start - base) / PAGE, end = (messages[i].arg.remove.end - base) / PAGE;
          memset(states + first, REMOVED, end - first);
        } else {
          waiting[count++] = (messages[i].arg.pagefault.address - base) / PAGE;
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
  if (words != 5) return fprintf(stderr, "usage: handler SOCKET FILE WINDOW CPU\n"), 2;
  window = atoi(word[3]);
  int cpu = atoi(word[4]), file = open(word[2], O_RDONLY | O_CLOEXEC);
  struct stat stat;
  check(file >= 0 && fstat(file, &stat) == 0, word[2]);
  source = mmap(NULL, stat.st_size, PROT_READ, MAP_PRIVATE, file, 0);
  states = calloc(stat.st_size / PAGE + 1, 1);
  check(source != MAP_FAILED && states, "mmap");
  if (cpu >= 0) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    check(sched_setaffinity(0, sizeof set, &set) == 0, "sched_setaffinity");
  }
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  strncpy(address.sun_path, word[1], sizeof address.sun_path - 1);
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
