// The guest of the benchmark: hands memory over to a page-fault handler as a monitor does, has threads touch it, and
// tells how long that took, one line of JSON. Whoever serves it has no part in what is measured.
//
//   guest SOCKET PAGES THREADS ORDER SEED CPU BALLOON TOUCHED
//
// ORDER: 0 in ascending order, each thread its share; 1 at random, each page once. CPU: where all threads run; -1:
// anywhere. BALLOON: pages that another thread gives back meanwhile, again and again; 0: none. TOUCHED: how many pages
// are touched.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, LIMIT_SECONDS = 120 };

static unsigned char *memory;
static uint32_t pages, touched, threads, *places, *latencies;
static int cpu, balloon;
static atomic_int ready, over;
static atomic_uint_least64_t begun;

static void check(int sound, const char *what) {
  if (sound) return;
  fprintf(stderr, "guest: %s: %s\n", what, strerror(errno));
  exit(1);
}

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void settle(void) {
  if (cpu < 0) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  check(sched_setaffinity(0, sizeof set, &set) == 0, "sched_setaffinity");
}

static uint64_t await_begin(void) {
  settle();
  atomic_fetch_add(&ready, 1);
  uint64_t at;
  while (!(at = atomic_load(&begun))) usleep(100);
  return at;
}

// What the file has in a page: see main.ts.
static int is_wrong(uint32_t page) {
  uint32_t word;
  memcpy(&word, memory + (size_t)page * PAGE + PAGE - 4, 4);
  return word != page + 1 && !(balloon && word == 0);
}

static void *touch(void *argument) {
  uint32_t thread = (uintptr_t)argument;
  uint32_t from = (uint64_t)touched * thread / threads, to = (uint64_t)touched * (thread + 1) / threads;
  await_begin();
  uintptr_t wrong = 0;
  for (uint32_t at = from; at < to; at++) {
    uint32_t page = places[at];
    uint64_t before = now();
    (void)*(volatile unsigned char *)(memory + (size_t)page * PAGE);
    latencies[at] = now() - before;
    wrong += is_wrong(page);
  }
  return (void *)wrong;
}

static void *give_back(void *unused) {
  (void)unused;
  uint32_t state = 1;
  await_begin();
  while (!atomic_load(&over)) {
    state ^= state << 13, state ^= state >> 17, state ^= state << 5;
    uint32_t first = state % pages, count = balloon < (int)(pages - first) ? balloon : (int)(pages - first);
    madvise(memory + (size_t)first * PAGE, (size_t)count * PAGE, MADV_DONTNEED);
    usleep(1000);
  }
  return NULL;
}

static int watch(void) {
  int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  check(uffd >= 0, "userfaultfd");
  struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE};
  check(ioctl(uffd, UFFDIO_API, &api) == 0, "UFFDIO_API");
  struct uffdio_register range = {
      .range = {.start = (uintptr_t)memory, .len = (uint64_t)pages * PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
  check(ioctl(uffd, UFFDIO_REGISTER, &range) == 0, "UFFDIO_REGISTER");
  return uffd;
}

static void hand_over(const char *path, int uffd) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  strncpy(address.sun_path, path, sizeof address.sun_path - 1);
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  check(connect(fd, (struct sockaddr *)&address, sizeof address) == 0, "connect");
  char text[256];
  int length = snprintf(text, sizeof text, "[{\"base_host_virt_addr\":%llu,\"size\":%llu,\"offset\":0,\"page_size\":%d}]",
                        (unsigned long long)(uintptr_t)memory, (unsigned long long)pages * PAGE, PAGE);
  char control[CMSG_SPACE(sizeof uffd)] = {0};
  struct iovec vector = {text, length};
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof uffd);
  memcpy(CMSG_DATA(header), &uffd, sizeof uffd);
  check(sendmsg(fd, &message, 0) == length, "sendmsg");
}

static int ascending(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return (x > y) - (x < y);
}

int main(int count, char **words) {
  if (count != 9) return fprintf(stderr, "usage: guest SOCKET PAGES THREADS ORDER SEED CPU BALLOON TOUCHED\n"), 2;
  pages = atoi(words[2]), threads = atoi(words[3]), cpu = atoi(words[6]), balloon = atoi(words[7]);
  touched = atoi(words[8]);
  int random = atoi(words[4]);
  uint32_t state = atoi(words[5]) * 2654435761u | 1;
  alarm(LIMIT_SECONDS);
  places = malloc(pages * sizeof *places), latencies = malloc(pages * sizeof *latencies);
  // So that no touch below waits for this.
  memset(latencies, 0, pages * sizeof *latencies);
  for (uint32_t i = 0; i < pages; i++) places[i] = i;
  for (uint32_t i = pages - 1; random && i > 0; i--) {
    state ^= state << 13, state ^= state >> 17, state ^= state << 5;
    uint32_t other = state % (i + 1), place = places[i];
    places[i] = places[other], places[other] = place;
  }
  memory = mmap(NULL, (size_t)pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  check(memory != MAP_FAILED, "mmap");
  madvise(memory, (size_t)pages * PAGE, MADV_NOHUGEPAGE);
  int uffd = watch();
  pthread_t ids[threads], balloon_id;
  for (uintptr_t i = 0; i < threads; i++) check(pthread_create(&ids[i], NULL, touch, (void *)i) == 0, "pthread_create");
  if (balloon) check(pthread_create(&balloon_id, NULL, give_back, NULL) == 0, "pthread_create");
  while (atomic_load(&ready) < (int)threads + (balloon > 0)) usleep(100);
  uint64_t handed = now();
  hand_over(words[1], uffd);
  uint64_t begin = now();
  atomic_store(&begun, begin);
  uint64_t wrong = 0;
  for (uint32_t i = 0; i < threads; i++) {
    void *some;
    pthread_join(ids[i], &some);
    wrong += (uintptr_t)some;
  }
  uint64_t end = now();
  atomic_store(&over, 1);
  if (balloon) pthread_join(balloon_id, NULL);
  uint64_t first = latencies[0];
  qsort(latencies, touched, sizeof *latencies, ascending);
  printf("{\"pages\":%u,\"wrong\":%llu,\"ns\":%llu,\"firstNs\":%llu,\"p50Ns\":%u,\"p99Ns\":%u,\"handOverNs\":%llu}\n", touched,
         (unsigned long long)wrong, (unsigned long long)(end - begin), (unsigned long long)first, latencies[touched / 2],
         latencies[touched / 100 * 99], (unsigned long long)(begin - handed));
  return wrong > 0;
}
