// The handler in C that the others are compared with. It serves one guest after the other, until it is killed.
//
//   handler --socket PATH --memory FILE [--window N] [--wait poll|spin]
//
// The policy, which is that of `uffd serve` and of every handler in this folder:
//  - The handler receives one message: JSON with the memory's regions, and the userfaultfd (handoff.h). It maps the
//    memory file. A hand-off that is wrong ends its connection.
//  - It reads all queued messages, then answers each fault with one UFFDIO_COPY of the page and of the missing pages
//    around it in its window. A window is a run of N pages, aligned to N.
//  - Pages that a balloon has removed (REMOVE) are filled with zeros from then on. A page that was filled after a
//    removal and faults again is filled with zeros too, because the kernel removes pages a moment after the event was
//    read.
//  - EEXIST: another fill came first, so the handler wakes the threads that wait for the page. EAGAIN: the handler
//    keeps the pages that were filled, reads the mapping change, then handles the fault again. ENOENT: the window
//    reaches into another mapping, so the page is filled by itself; if it is a page by itself, the memory is gone.
//    ESRCH: the guest is gone. Any other error ends the handler.
//  - Huge pages have no zero page, so zeros are copied. EEXIST may mean that the pool is empty: the fault is tried again.

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

#include "handoff.h"

enum { MESSAGES = 64, READS_A_LOOK = 256 };
enum { MISSING, PRESENT, REMOVED };

struct memory {
  struct region at;
  uint64_t pages;
  unsigned char *states;
};

static unsigned char *source, *zeros;
static struct memory memory[REGIONS_MOST];
static uint64_t window = 1, file_bytes;
static int uffd, spin, removals, regions;

static void check(int sound, const char *what) {
  if (sound) return;
  fprintf(stderr, "handler: %s: %s\n", what, strerror(errno));
  exit(1);
}

// Receives a hand-off. Returns whether there was one.
static int take(int connection) {
  static struct region came[REGIONS_MOST];
  for (int i = 0; i < regions; i++) free(memory[i].states);
  regions = removals = 0;
  int count = receive_hand_off(connection, came, file_bytes, &uffd);
  for (; regions < count; regions++) {
    uint64_t pages = came[regions].size / came[regions].page_size;
    memory[regions] = (struct memory){came[regions], pages, calloc(pages, 1)};
    check(memory[regions].states != NULL, "calloc");
  }
  return count > 0;
}

static struct memory *memory_at(uint64_t address) {
  static int last;
  for (int i = 0; i < regions; i++) {
    struct memory *one = &memory[(last + i) % regions];
    if (address - one->at.start < one->at.size) return last = one - memory, one;
  }
  return NULL;
}

static void wake(uint64_t address, uint64_t length) {
  struct uffdio_range range = {address, length};
  ioctl(uffd, UFFDIO_WAKE, &range);
}

// Returns the bytes that were filled, or -errno if none were.
static int64_t transfer(const struct memory *in, uint64_t first, uint64_t count, int zero) {
  uint64_t size = in->at.page_size, offset = first * size, to = in->at.start + offset;
  int zeropage = zero && size == 4096;
  uint64_t length = zero && !zeropage ? size : count * size;
  struct uffdio_zeropage zeroing = {.range = {to, length}};
  uintptr_t from = (uintptr_t)(zero ? zeros : source + in->at.offset + offset);
  struct uffdio_copy copy = {.dst = to, .src = from, .len = length};
  void *argument = zeropage ? (void *)&zeroing : (void *)&copy;
  if (ioctl(uffd, zeropage ? UFFDIO_ZEROPAGE : UFFDIO_COPY, argument) == 0) return length;
  int64_t done = zeropage ? zeroing.zeropage : copy.copy;
  return errno == EAGAIN && done > 0 ? done : -errno;
}

// Returns 0 if the fault has to be handled again: the handler must first read the event of a mapping change.
static int fill(uint64_t address) {
  struct memory *in = memory_at(address);
  if (!in) return 1;
  uint64_t size = in->at.page_size, page = (address - in->at.start) / size, most = window;
  unsigned char *states = in->states;
  for (;;) {
    unsigned char state = states[page];
    if (state == PRESENT && !removals) return wake(in->at.start + page * size, size), 1;
    uint64_t first = page, end = page + 1, low = page / most * most, high = low + most;
    while (state != PRESENT && first > low && states[first - 1] == state) first--;
    while (state != PRESENT && end < high && end < in->pages && states[end] == state) end++;
    int64_t done = transfer(in, first, end - first, state != MISSING);
    if (done > 0) {
      memset(states + first, PRESENT, done / size);
      if (first + done / size > page) return 1;
    } else if (done == -EEXIST) {
      if (size == 4096) states[first] = PRESENT;
      if (first == page) return wake(in->at.start + page * size, size), 1;
      if (size != 4096) most = 1;
    } else if (done == -ENOENT && most > 1) {
      most = 1;
    } else {
      errno = -done;
      check(done == -EAGAIN || done == -ENOENT || done == -ESRCH, "a fault was not answered");
      return done != -EAGAIN;
    }
  }
}

static void removed(uint64_t start, uint64_t end) {
  removals = 1;
  for (int i = 0; i < regions; i++) {
    struct memory *in = &memory[i];
    uint64_t from = start > in->at.start ? start : in->at.start, last = in->at.start + in->at.size;
    uint64_t to = end < last ? end : last, size = in->at.page_size;
    if (from < to) memset(in->states + (from - in->at.start) / size, REMOVED, (to - from) / size);
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
          removed(messages[i].arg.remove.start, messages[i].arg.remove.end);
        } else {
          waiting[count++] = messages[i].arg.pagefault.address;
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
  file_bytes = (stat.st_size + 4095) / 4096 * 4096;
  zeros = mmap(NULL, 1 << 21, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  check(source != MAP_FAILED && zeros != MAP_FAILED, "mmap");
  strcpy(address.sun_path, path);
  int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  check(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 8) == 0, "listen");
  puts("ready");
  fflush(stdout);
  for (int connection; (connection = accept(listener, NULL, NULL)) >= 0; close(connection)) {
    if (!take(connection)) continue;
    serve(connection);
    close(uffd);
  }
  return 1;
}
