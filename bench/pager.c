// What `npm run bench -- --pager` does natively: threads that touch memory, and the plain calls that a pager is compared
// with. Page number p of all data begins with the number p + 1, so every touch checks what it finds.
//
// Functions that return int64_t return nanoseconds, or -errno.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ull

static cpu_set_t allowed;

__attribute__((constructor)) static void remember_allowed(void) {
  sched_getaffinity(0, sizeof allowed, &allowed);
}

// Binds the calling thread to one processor; -1: to all processors that the process may use.
static void bind_to(int cpu) {
  cpu_set_t set = allowed;
  if (cpu >= 0) {
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
  }
  sched_setaffinity(0, sizeof set, &set);
}

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ll + t.tv_nsec;
}

// The i-th place of `places`: in order if `seed` is 0, else at random (xorshift).
static uint64_t place(uint64_t i, uint64_t places, uint64_t *seed) {
  if (!*seed) return i % places;
  *seed ^= *seed << 13;
  *seed ^= *seed >> 7;
  *seed ^= *seed << 17;
  return *seed % places;
}

// Reads the first number of `count` places that are `step` bytes apart; `wrong` gets how many were wrong.
int64_t read_memory(volatile char *memory, uint64_t step, uint64_t places, uint64_t count, uint64_t seed, int cpu,
                    uint64_t *wrong) {
  bind_to(cpu);
  uint64_t bad = 0;
  int64_t begin = now();
  for (uint64_t i = 0; i < count; i++) {
    uint64_t at = place(i, places, &seed) * step;
    bad += *(volatile uint64_t *)(memory + at) != at / PAGE + 1;
  }
  int64_t elapsed = now() - begin;
  *wrong = bad;
  return elapsed;
}

// As read_memory, but writes these numbers.
int64_t write_memory(volatile char *memory, uint64_t step, uint64_t places, uint64_t count, uint64_t seed, int cpu) {
  bind_to(cpu);
  int64_t begin = now();
  for (uint64_t i = 0; i < count; i++) {
    uint64_t at = place(i, places, &seed) * step;
    *(volatile uint64_t *)(memory + at) = at / PAGE + 1;
  }
  return now() - begin;
}

// Reads `count` places of a file, `bytes` each, one pread(2) at a time, and looks at each page.
int64_t read_file(int fd, uint64_t bytes, uint64_t places, uint64_t count, uint64_t seed, int cpu, uint64_t *wrong) {
  char *into = aligned_alloc(PAGE, bytes);
  if (!into) return -ENOMEM;
  memset(into, 0, bytes);
  bind_to(cpu);
  uint64_t bad = 0;
  int64_t begin = now(), result = 0;
  for (uint64_t i = 0; i < count && result >= 0; i++) {
    uint64_t at = place(i, places, &seed) * bytes;
    for (uint64_t done = 0; done < bytes;) {
      ssize_t got = pread(fd, into + done, bytes - done, at + done);
      if (got <= 0) {
        result = got ? -errno : -EIO;
        break;
      }
      done += got;
    }
    for (uint64_t page = 0; page < bytes; page += PAGE)
      bad += *(uint64_t *)(into + page) != (at + page) / PAGE + 1;
  }
  int64_t elapsed = now() - begin;
  free(into);
  *wrong = bad;
  return result < 0 ? result : elapsed;
}

// Writes `count` blocks of a file from `memory`, with fdatasync(2) at the end if `sync` says so.
int64_t write_file(int fd, const char *memory, uint64_t bytes, uint64_t count, int sync, int cpu) {
  bind_to(cpu);
  int64_t begin = now();
  for (uint64_t i = 0; i < count; i++)
    if (pwrite(fd, memory + i * bytes, bytes, i * bytes) != (ssize_t)bytes) return -errno;
  if (sync && fdatasync(fd)) return -errno;
  return now() - begin;
}

// Removes a file's pages from the page cache.
int drop_cache(int fd) {
  if (fdatasync(fd)) return -errno;
  return -posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
}
