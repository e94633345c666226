// The native half of the benchmark: the thread that touches memory, and the handler in C that the library is compared
// with. The process of the benchmark loads this code, so memory, process and toucher are the same for both handlers.
// Functions return a number >= 0, or -errno.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000ull

static cpu_set_t allowed;

__attribute__((constructor)) static void remember_allowed(void) {
  sched_getaffinity(0, sizeof allowed, &allowed);
}

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * SECOND + t.tv_nsec;
}

// The number of the index-th processor that this process may use, or -1.
int processor(int index) {
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, &allowed) && index-- == 0) return cpu;
  return -1;
}

// Binds the calling thread to one processor; -1: to all processors that the process may use.
int pin(int cpu) {
  cpu_set_t set = allowed;
  if (cpu >= 0) {
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
  }
  return sched_setaffinity(0, sizeof set, &set) ? -errno : 0;
}

// Nanoseconds of processor time that another process has used, its ended threads included.
int64_t cpu_ns(int pid) {
  clockid_t clock;
  struct timespec time;
  int error = clock_getcpuclockid(pid, &clock);
  if (error) return -error;
  return clock_gettime(clock, &time) ? -errno : time.tv_sec * 1000000000ll + time.tv_nsec;
}

// Makes the host provide `bytes` of memory to this machine: maps, touches and unmaps them. Returns nanoseconds.
int64_t warm(size_t bytes) {
  uint64_t begin = now();
  void *memory = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED) return -errno;
  munmap(memory, bytes);
  return now() - begin;
}

// ---- the toucher -----------------------------------------------------------------------------------------

struct touch {
  volatile char *region;
  size_t page;
  int first, count, cpu;
  uint64_t limit, elapsed;
  uint32_t *latency;
  int touched;
};

static void *touch_pages(void *argument) {
  struct touch *t = argument;
  pin(t->cpu);
  // The first touches are not timed, because the handler may not have entered its loop yet.
  for (int i = 0; i < t->first; i++) t->region[i * t->page];
  uint64_t begin = now(), before = begin;
  for (int i = 0; i < t->count && before - begin < t->limit; i++) {
    t->region[(t->first + i) * t->page];
    uint64_t after = now();
    t->latency[i] = after - before < UINT32_MAX ? after - before : UINT32_MAX;
    before = after;
    t->touched++;
  }
  t->elapsed = before - begin;
  return 0;
}

// Reads one byte of each page, in ascending order, from a thread of its own on `cpu`: `first` pages untimed, then at
// most `count` timed ones, until `limit` nanoseconds are over. Writes the nanoseconds of each touch to `latency`, and
// those of all to `elapsed`. Returns how many touches were timed; -ETIMEDOUT: a fault was not answered.
int touch(void *region, size_t page, int first, int count, int cpu, uint64_t limit, uint32_t *latency,
          uint64_t *elapsed) {
  // Not on the stack, because the thread still runs after a time-out.
  static struct touch t;
  t = (struct touch){region, page, first, count, cpu, limit, 0, latency, 0};
  pthread_t thread;
  int error = pthread_create(&thread, 0, touch_pages, &t);
  if (error) return -error;
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += limit / SECOND + 20;
  error = pthread_timedjoin_np(thread, 0, &until);
  *elapsed = t.elapsed;
  return error ? -error : t.touched;
}

// Returns how many of `count` pages differ from the page `source`.
int wrong_pages(const char *region, size_t page, int count, const char *source) {
  int wrong = 0;
  for (int i = 0; i < count; i++) wrong += memcmp(region + i * page, source, page) != 0;
  return wrong;
}

// ---- the handler -----------------------------------------------------------------------------------------

// How the handler waits. SLEEP: poll(2), read, answer, as in the example of userfaultfd(2). READ_FIRST: sleeps in
// poll(2) only after a read that found nothing. SPIN: reads again and again.
enum { SLEEP, READ_FIRST, SPIN };

static struct {
  int uffd, stop, cpu, wait;
  atomic_int stopping;
  size_t page;
  char *source;
  int answered;
  pthread_t thread;
} server;

static int answer(const struct uffd_msg *message) {
  if (message->event != UFFD_EVENT_PAGEFAULT) return -EPROTO;
  struct uffdio_copy copy = {
    .dst = message->arg.pagefault.address & ~(server.page - 1),
    .src = (uintptr_t)server.source,
    .len = server.page,
  };
  if (ioctl(server.uffd, UFFDIO_COPY, &copy)) return -errno;
  server.answered++;
  return 0;
}

static void *serve(__attribute__((unused)) void *argument) {
  struct pollfd polled[2] = {{server.uffd, POLLIN, 0}, {server.stop, POLLIN, 0}};
  ssize_t bytes = 0;
  pin(server.cpu);
  while (!atomic_load(&server.stopping)) {
    int sleeps = server.wait == SLEEP || (server.wait == READ_FIRST && bytes <= 0);
    if (sleeps && poll(polled, 2, -1) < 0 && errno != EINTR) break;
    struct uffd_msg messages[16];
    bytes = read(server.uffd, messages, sizeof messages);
    if (bytes < 0 && errno != EAGAIN && errno != EINTR) break;
    for (int i = 0; i < bytes / (ssize_t)sizeof messages[0]; i++)
      if (answer(&messages[i])) goto out;
  }
out:
  // Closing lets threads that still wait continue with zeros, which wrong_pages detects.
  close(server.uffd);
  return 0;
}

static int open_uffd(void) {
  int flags = O_CLOEXEC | O_NONBLOCK;
  int fd = syscall(SYS_userfaultfd, flags);
  return fd < 0 && errno == EPERM ? syscall(SYS_userfaultfd, flags | UFFD_USER_MODE_ONLY) : fd;
}

// Serves `region` from a thread on `cpu`: each fault gets a copy of the page `source`.
int serve_begin(void *region, size_t bytes, size_t page, void *source, int wait, int cpu) {
  server.cpu = cpu;
  server.wait = wait;
  server.page = page;
  server.source = source;
  server.answered = 0;
  atomic_store(&server.stopping, 0);
  server.uffd = open_uffd();
  if (server.uffd < 0) return -errno;
  struct uffdio_api api = {.api = UFFD_API};
  struct uffdio_register watch = {{(uintptr_t)region, bytes}, UFFDIO_REGISTER_MODE_MISSING, 0};
  server.stop = eventfd(0, EFD_CLOEXEC);
  if (server.stop < 0 || ioctl(server.uffd, UFFDIO_API, &api) ||
      ioctl(server.uffd, UFFDIO_REGISTER, &watch)) {
    int error = errno;
    close(server.uffd);
    close(server.stop);
    return -error;
  }
  return -pthread_create(&server.thread, 0, serve, 0);
}

// Stops the handler, and closes its userfaultfd. Returns how many faults it answered.
int serve_end(void) {
  atomic_store(&server.stopping, 1);
  eventfd_write(server.stop, 1);
  pthread_join(server.thread, 0);
  close(server.stop);
  return server.answered;
}
