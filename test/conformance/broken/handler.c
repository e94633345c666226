// A small handler with one fault, which FAULT chooses; FAULT 0 is honest. The tests of check-handler compile it once for
// each fault, with bench/peers/c in the path of its includes.
//
//   handler SOCKET MEMORY
//
// FAULT, and what goes wrong:
//   1  it fills pages of a batch before it looks at the batch's removals
//   2  it counts −EAGAIN, which the kernel leaves in the result, as bytes
//   3  it defers a fault, and then waits for the next message without a time limit
//   4  it tries a fill a fixed number of times
//   5  it does not wake the thread of a page that is present
//   6  it chooses a page's data when it reads the fault, before it waits for a removal
//   7  it fills removed pages from the file
//   8  it drops the messages of a batch behind the sixteenth
//   9  it takes the address for the offset in the file
//  10  it fills huge pages by 4 KiB
//  11  it takes a short copy for a whole one (with a window of eight pages)
//  12  it ends when a fill fails with ESRCH
//  13  it kills its monitor, as a handler does that ends with an error of its own
//  14  it keeps what it knows of one guest's pages for the next guest
//  15  it takes ENOENT for the end of the memory (with a window of eight pages), which a border of two mappings gives, too

#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "handoff.h"

#ifndef FAULT
#define FAULT 0
#endif

enum { MESSAGES = 512, BATCH = 16, WAITING = 1 << 16, TRIES = 100, WINDOW = FAULT == 11 || FAULT == 15 ? 8 : 1 };
enum { MISSING, PRESENT, REMOVED };

static struct region regions[REGIONS_MOST];
static int count, uffd;
// A fault that was read, and the state that its page had then.
struct fault {
  uint64_t address;
  int state;
};

static struct fault waiting[WAITING];
static int waiters;
static uint64_t file_bytes;
static unsigned char *source, *states, *zeros;  // states: by 4 KiB of the file

static int drain(void);

static void die(const char *what) {
  fprintf(stderr, "handler: %s: %s\n", what, strerror(errno));
  exit(1);
}

static const struct region *region_at(uint64_t address) {
  for (int i = 0; i < count; i++)
    if (address - regions[i].start < regions[i].size) return &regions[i];
  return NULL;
}

static uint64_t offset_of(const struct region *region, uint64_t address) {
  return address - (FAULT == 9 ? regions[0].start : region->start - region->offset);
}

static void mark(uint64_t offset, uint64_t length, int state) { memset(states + offset / 4096, state, length / 4096); }

static void wake(uint64_t address, uint64_t length) {
  struct uffdio_range range = {address, length};
  ioctl(uffd, UFFDIO_WAKE, &range);
}

// Fills a page. Returns 0 if the fault has to be deferred.
static int fill(struct fault fault) {
  uint64_t address = fault.address;
  const struct region *region = region_at(address);
  if (!region) return 1;
  uint64_t size = FAULT == 10 ? 4096 : region->page_size, offset = offset_of(region, address) & ~(size - 1);
  uint64_t at = address & ~(size - 1), most = region->offset + region->size - offset;
  uint64_t length = states[offset / 4096] == MISSING && size == 4096 && WINDOW * size <= most ? WINDOW * size : size;
  if (FAULT == 11 && states[offset / 4096] == PRESENT) return wake(at, size), 1;
  for (int tries = 1;; tries++) {
    int state = FAULT == 7 ? MISSING : FAULT == 1 || FAULT == 6 ? fault.state : states[offset / 4096];
    const unsigned char *from = state == MISSING ? source + offset : zeros;
    struct uffdio_copy copy = {.dst = at, .src = (uintptr_t)from, .len = length};
    if (ioctl(uffd, UFFDIO_COPY, &copy) == 0) return mark(offset, length, PRESENT), 1;
    if (errno == EEXIST) {
      // Of huge pages, it may mean that the pool is empty.
      if (size == 4096) mark(offset, size, PRESENT);
      if (FAULT != 5) wake(at, size);
      return 1;
    }
    if (errno == ESRCH && FAULT == 12) die("the guest is gone");
    if (errno == ESRCH) return 1;
    if (errno == ENOENT && (length == size || FAULT == 15)) return 1;
    if (errno == ENOENT) length = size;
    else if (errno != EAGAIN) die("a fault was not answered");
    else if (copy.copy > 0) return mark(offset, FAULT == 11 ? length : (uint64_t)copy.copy, PRESENT), 1;
    else if (FAULT == 2 && (uint64_t)copy.copy >= length) return 1;
    else if (FAULT == 4 && tries == TRIES) return 1;
    else if (FAULT == 4) drain();
    else if (FAULT != 1) return 0;
  }
}

static void removed(uint64_t start, uint64_t end) {
  for (int i = 0; i < count; i++) {
    uint64_t from = start > regions[i].start ? start : regions[i].start, last = regions[i].start + regions[i].size;
    uint64_t to = end < last ? end : last;
    if (from < to) mark(from - regions[i].start + regions[i].offset, to - from, REMOVED);
  }
}

// Reads all messages. Returns 0 if the userfaultfd cannot be read.
static int drain(void) {
  struct uffd_msg messages[MESSAGES];
  for (ssize_t bytes; (bytes = read(uffd, messages, sizeof messages)) != 0;) {
    if (bytes < 0) return errno == EAGAIN;
    int got = bytes / sizeof *messages;
    for (int i = 0; i < got; i++) {
      if (messages[i].event == UFFD_EVENT_REMOVE) {
        removed(messages[i].arg.remove.start, messages[i].arg.remove.end);
        continue;
      }
      uint64_t address = messages[i].arg.pagefault.address;
      const struct region *region = region_at(address);
      struct fault fault = {address, region ? states[offset_of(region, address) / 4096] : MISSING};
      if (FAULT == 8 && i >= BATCH) continue;
      else if (FAULT == 1) fill(fault);
      else if (waiters == WAITING) die("too many faults");
      else waiting[waiters++] = fault;
    }
  }
  return 1;
}

static void serve(int connection) {
  struct pollfd fds[2] = {{uffd, POLLIN, 0}, {connection, POLLIN, 0}};
  struct ucred peer = {0};
  socklen_t length = sizeof peer;
  if (FAULT == 13 && getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0) kill(peer.pid, SIGKILL);
  for (waiters = 0; fds[1].revents == 0;) {
    if (poll(fds, 2, waiters > 0 && FAULT != 3 ? 1 : -1) < 0) die("poll");
    if (!drain()) return;
    int left = 0;
    // FAULT 4 reads further faults inside of `fill`, behind those that wait.
    for (int i = 0; i < waiters; i++)
      if (!fill(waiting[i])) waiting[left++] = waiting[i];
    waiters = left;
  }
}

int main(int words, char **word) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (words != 3 || strlen(word[1]) >= sizeof address.sun_path) return fprintf(stderr, "handler SOCKET MEMORY\n"), 2;
  int file = open(word[2], O_RDONLY | O_CLOEXEC);
  struct stat stat;
  if (file < 0 || fstat(file, &stat) < 0) die(word[2]);
  file_bytes = stat.st_size;
  source = mmap(NULL, file_bytes, PROT_READ, MAP_PRIVATE, file, 0);
  zeros = mmap(NULL, 1 << 21, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  states = calloc(file_bytes / 4096, 1);
  if (source == MAP_FAILED || zeros == MAP_FAILED || !states) die("mmap");
  strcpy(address.sun_path, word[1]);
  int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 8) < 0) die("listen");
  for (int connection; (connection = accept(listener, NULL, NULL)) >= 0; close(connection)) {
    if (FAULT != 14) memset(states, MISSING, file_bytes / 4096);
    count = receive_hand_off(connection, regions, file_bytes, &uffd);
    if (count < 0) continue;
    serve(connection);
    close(uffd);
  }
  die("accept");
}
