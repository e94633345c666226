// A swap engine in C, to compare a pager with: faults are answered with UFFDIO_COPY, the oldest block goes to a file with
// pwrite(2). One thread writes at random, one answers. Nothing else is done: no second chance, no check of what was
// changed, no compression.
//
//   pager-swap FILE BLOCK_BYTES ALL_BYTES RESIDENT_BYTES WRITER_CPU HANDLER_CPU
//
// Each line of standard input is a number of writes and a seed; the answer is the time in nanoseconds.

#include "pager.c"

#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

static char *memory, *buffer, *zeros, *swapped;
static uint64_t block_bytes, blocks, resident_most, in_memory, oldest;
static uint64_t *queue;
static int uffd, file, handler_cpu;

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static void evict(void) {
  uint64_t block = queue[oldest];
  char *at = memory + block * block_bytes;
  if (pwrite(file, at, block_bytes, block * block_bytes) != (ssize_t)block_bytes) fail("pwrite");
  if (madvise(at, block_bytes, MADV_DONTNEED)) fail("madvise");
  swapped[block] = 1;
  oldest = (oldest + 1) % resident_most;
  in_memory--;
}

static void answer(uint64_t address) {
  uint64_t block = (address - (uintptr_t)memory) / block_bytes;
  if (in_memory == resident_most) evict();
  if (swapped[block] && pread(file, buffer, block_bytes, block * block_bytes) != (ssize_t)block_bytes) fail("pread");
  struct uffdio_copy copy = {
    .dst = (uintptr_t)memory + block * block_bytes,
    .src = (uintptr_t)(swapped[block] ? buffer : zeros),
    .len = block_bytes,
  };
  queue[(oldest + in_memory++) % resident_most] = block;
  if (ioctl(uffd, UFFDIO_COPY, &copy)) fail("UFFDIO_COPY");
}

static void *serve(__attribute__((unused)) void *argument) {
  bind_to(handler_cpu);
  struct pollfd polled = {uffd, POLLIN, 0};
  for (;;) {
    if (poll(&polled, 1, -1) < 0 && errno != EINTR) return 0;
    struct uffd_msg message;
    if (read(uffd, &message, sizeof message) == sizeof message) answer(message.arg.pagefault.address);
  }
}

int main(int count, char **words) {
  if (count != 7) return 2;
  block_bytes = strtoull(words[2], 0, 10);
  uint64_t bytes = strtoull(words[3], 0, 10);
  resident_most = strtoull(words[4], 0, 10) / block_bytes;
  int writer_cpu = atoi(words[5]);
  handler_cpu = atoi(words[6]);
  blocks = bytes / block_bytes;
  file = open(words[1], O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (file < 0 || unlink(words[1])) fail(words[1]);
  memory = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  madvise(memory, bytes, MADV_NOHUGEPAGE);
  buffer = aligned_alloc(PAGE, block_bytes);
  zeros = aligned_alloc(PAGE, block_bytes);
  memset(zeros, 0, block_bytes);
  swapped = calloc(blocks, 1);
  queue = calloc(resident_most, sizeof *queue);
  uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  if (uffd < 0) uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
  struct uffdio_api api = {.api = UFFD_API};
  struct uffdio_register watch = {{(uintptr_t)memory, bytes}, UFFDIO_REGISTER_MODE_MISSING, 0};
  if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &watch)) fail("userfaultfd");
  pthread_t thread;
  if (pthread_create(&thread, 0, serve, 0)) fail("pthread_create");
  unsigned long long writes, seed;
  while (scanf("%llu %llu", &writes, &seed) == 2) {
    printf("%lld\n", (long long)write_memory(memory, PAGE, bytes / PAGE, writes, seed, writer_cpu));
    fflush(stdout);
  }
  return 0;
}
