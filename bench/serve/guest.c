// The guest of the benchmark. It hands memory over to a page-fault handler as a monitor does, touches the memory from
// threads, and prints the times as one line of JSON. The handler takes no part in the measurement.
//
//   guest --socket PATH --pages N [--threads N] [--order ascending|random|zipf|neighbours|spread] [--touches N]
//         [--page-size BYTES] [--regions N] [--cpu N] [--balloon N] [--reuse 1] [--hold MS] [--sparse 1] [--seed N]
//         [--share 1]
//
// Options:
//  - order: `ascending` and `random` touch each page once, and each thread touches its share. `zipf` draws pages again
//    and again, the k-th most frequent page 1/k times as often as the first. `neighbours` goes through the memory with
//    all threads side by side: each of n threads touches every n-th page. `spread` touches pages at equal distances.
//  - touches: default: one for each page. page-size: 4096, or 2 MiB for hugetlb pages.
//  - regions: the number of mappings, with a gap behind each. cpu: the processor of all threads; default: any.
//  - balloon: how many pages another thread gives back to the kernel at once, again and again, during the touches.
//  - reuse: after all touches, the guest gives all of its memory back, writes it again in ascending order, and prints
//    the time.
//  - hold: milliseconds that the guest then stays. sparse: the memory file has holes, whose pages are zeros.
//  - share: asks the handler for the memory that its guests share, and maps it privately. Its pages are missing or minor
//    faults then.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
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

enum { SMALL = 4096, LIMIT_SECONDS = 120 };

static const char *path, *order = "ascending";
static unsigned char *memory;
static size_t page_size = SMALL;
static uint32_t pages, touches, threads = 1, seed = 7, regions = 1, *places, *latencies;
static int cpu = -1, balloon, reuse, hold, sparse, share, connection, shared = -1;
static atomic_int ready, over;
static atomic_uint_least64_t begun, first_done;

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

// Before a page lie the gaps of all regions before its own.
static unsigned char *at(uint32_t page) {
  return memory + (page + (regions > 1 ? page / (pages / regions) : 0)) * page_size;
}

// Each 4 KiB block of the file ends with its number, counted from 1. Removed pages and holes are zeros.
static int is_wrong(uint32_t page) {
  uint32_t word;
  memcpy(&word, at(page) + page_size - 4, 4);
  return word != (page + 1) * (page_size / SMALL) && !((balloon || sparse) && word == 0);
}

static void *touch(void *argument) {
  uint32_t thread = (uintptr_t)argument;
  uint32_t from = (uint64_t)touches * thread / threads, to = (uint64_t)touches * (thread + 1) / threads;
  await_begin();
  uintptr_t wrong = 0;
  for (uint32_t index = from; index < to; index++) {
    uint32_t page = places[index];
    uint64_t before = now();
    (void)*(volatile unsigned char *)at(page);
    uint64_t after = now(), none = 0;
    latencies[index] = after - before;
    if (index == from) atomic_compare_exchange_strong(&first_done, &none, after);
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
    madvise(memory + first * page_size, count * page_size, MADV_DONTNEED);
    usleep(1000);
  }
  return NULL;
}

static int watch(void) {
  int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  check(uffd >= 0, "userfaultfd");
  struct uffdio_api api = {.api = UFFD_API,
                           .features = UFFD_FEATURE_EVENT_REMOVE | (share ? UFFD_FEATURE_MINOR_SHMEM : 0)};
  check(ioctl(uffd, UFFDIO_API, &api) == 0, "UFFDIO_API");
  for (uint32_t region = 0, each = pages / regions; region < regions; region++) {
    struct uffdio_register range = {.range = {.start = (uintptr_t)at(region * each), .len = each * page_size},
                                    .mode = UFFDIO_REGISTER_MODE_MISSING | (share ? UFFDIO_REGISTER_MODE_MINOR : 0)};
    check(ioctl(uffd, UFFDIO_REGISTER, &range) == 0, "UFFDIO_REGISTER");
  }
  return uffd;
}

static void dial(void) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  strncpy(address.sun_path, path, sizeof address.sun_path - 1);
  connection = socket(AF_UNIX, SOCK_STREAM, 0);
  check(connect(connection, (struct sockaddr *)&address, sizeof address) == 0, "connect");
}

// Asks for the memory that guests share: docs/firecracker.md, "Guests that share pages".
static void request_memory(void) {
  static const char request[] = "[{\"request\":\"memory\"}]";
  check(send(connection, request, sizeof request - 1, 0) == sizeof request - 1, "send");
  char answer[4096], control[CMSG_SPACE(sizeof shared)];
  struct iovec vector = {answer, sizeof answer - 1};
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  ssize_t length = recvmsg(connection, &message, MSG_CMSG_CLOEXEC);
  check(length > 0, "recvmsg");
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  answer[length] = 0;
  if (!header) fprintf(stderr, "guest: no memory to share: %s\n", answer), exit(1);
  memcpy(&shared, CMSG_DATA(header), sizeof shared);
}

static void hand_over(int uffd) {
  if (!share) dial();
  char *text = malloc(180 * regions + 1);
  int length = 0;
  for (uint32_t region = 0, each = pages / regions; region < regions; region++) {
    const char *form = "%c{\"base_host_virt_addr\":%llu,\"size\":%llu,\"offset\":%llu,\"page_size\":%zu%s}";
    length += sprintf(text + length, form, region ? ',' : '[', (unsigned long long)(uintptr_t)at(region * each),
                      (unsigned long long)each * page_size, (unsigned long long)region * each * page_size, page_size,
                      share ? ",\"shared\":true" : "");
  }
  text[length++] = ']';
  char control[CMSG_SPACE(sizeof uffd)] = {0};
  struct iovec vector = {text, length};
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof uffd);
  memcpy(CMSG_DATA(header), &uffd, sizeof uffd);
  ssize_t sent = sendmsg(connection, &message, 0);
  check(sent > 0, "sendmsg");
  for (ssize_t more; sent < length; sent += more) check((more = send(connection, text + sent, length - sent, 0)) > 0, "send");
  free(text);
}

static int ascending(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return (x > y) - (x < y);
}

static uint32_t next(uint32_t *state) {
  return *state ^= *state << 13, *state ^= *state >> 17, *state ^= *state << 5;
}

// Chooses the page of each touch.
static void draw(void) {
  for (uint32_t i = 0; *order == 's' && i < touches; i++) places[i] = (uint64_t)i * pages / touches;
  if (*order == 's') return;
  uint32_t state = seed * 2654435761u | 1, *shuffled = malloc(pages * sizeof *shuffled);
  for (uint32_t i = 0; i < pages; i++) shuffled[i] = i;
  for (uint32_t i = pages - 1; (*order == 'r' || *order == 'z') && i > 0; i--) {
    uint32_t other = next(&state) % (i + 1), place = shuffled[i];
    shuffled[i] = shuffled[other], shuffled[other] = place;
  }
  double *sums = malloc(pages * sizeof *sums), sum = 0;
  for (uint32_t i = 0; i < pages; i++) sums[i] = sum += 1.0 / (i + 1);
  for (uint32_t i = 0; i < touches; i++) {
    uint32_t low = i % pages, high = pages - 1;
    if (*order == 'z') {
      double at = next(&state) / 4294967296.0 * sum;
      for (low = 0; low < high;) {
        uint32_t middle = (low + high) / 2;
        if (sums[middle] <= at) low = middle + 1;
        else high = middle;
      }
    }
    places[i] = shuffled[low];
  }
  for (uint32_t i = 0, thread = 0, next = 0; *order == 'n' && i < touches; i++, next += threads) {
    if (i == (uint64_t)touches * (thread + 1) / threads) next = ++thread;
    places[i] = next % pages;
  }
  free(sums), free(shuffled);
}

static uint32_t distinct(void) {
  unsigned char *seen = calloc(pages, 1);
  uint32_t count = 0;
  for (uint32_t i = 0; i < touches; i++) count += !seen[places[i]], seen[places[i]] = 1;
  free(seen);
  return count;
}

static void prepare(void) {
  places = malloc(touches * sizeof *places), latencies = malloc(touches * sizeof *latencies);
  check(places && latencies, "malloc");
  // Install the array's pages now, so that no measured touch waits for them.
  memset(latencies, 0, touches * sizeof *latencies);
  draw();
  int huge = page_size > SMALL ? MAP_HUGETLB : 0;
  size_t bytes = (pages + (regions > 1 ? regions : 0)) * page_size;
  int kind = MAP_PRIVATE | MAP_NORESERVE | huge | (share ? 0 : MAP_ANONYMOUS);
  memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, kind, shared, 0);
  check(memory != MAP_FAILED, "mmap");
  if (!huge) madvise(memory, bytes, MADV_NOHUGEPAGE);
  for (uint32_t region = 1; regions > 1 && region <= regions; region++)
    munmap(at(region * (pages / regions)) - page_size, page_size);
}

static void parse(int count, char **words) {
  static const struct option options[] = {{"socket", 1, NULL, 's'},  {"pages", 1, NULL, 'p'},   {"threads", 1, NULL, 't'},
                                          {"order", 1, NULL, 'o'},   {"touches", 1, NULL, 'n'}, {"page-size", 1, NULL, 'z'},
                                          {"balloon", 1, NULL, 'b'}, {"seed", 1, NULL, 'e'},    {"cpu", 1, NULL, 'c'},
                                          {"reuse", 1, NULL, 'r'},   {"hold", 1, NULL, 'h'},
                                          {"regions", 1, NULL, 'g'}, {"sparse", 1, NULL, 'a'},
                                          {"share", 1, NULL, 'm'},
                                          {0}};
  for (int option; (option = getopt_long(count, words, "", options, NULL)) != -1;) {
    if (option == 's') path = optarg;
    if (option == 'p') pages = atoi(optarg);
    if (option == 't') threads = atoi(optarg);
    if (option == 'o') order = optarg;
    if (option == 'n') touches = atoi(optarg);
    if (option == 'z') page_size = atoi(optarg);
    if (option == 'b') balloon = atoi(optarg);
    if (option == 'e') seed = atoi(optarg);
    if (option == 'c') cpu = atoi(optarg);
    if (option == 'r') reuse = atoi(optarg);
    if (option == 'h') hold = atoi(optarg);
    if (option == 'g') regions = atoi(optarg);
    if (option == 'a') sparse = atoi(optarg);
    if (option == 'm') share = atoi(optarg);
    if (option == '?') exit(2);
  }
  if (!touches) touches = pages;
  // The gaps behind regions are not part of the shared memory.
  if (path && pages && threads && regions && pages % regions == 0 && !(share && regions > 1)) return;
  fprintf(stderr, "usage: guest --socket PATH --pages N [options]\n");
  exit(2);
}

// Gives all memory back and writes it again. Returns the nanoseconds of the writes.
static uint64_t use_again(uint64_t *wrong) {
  check(madvise(memory, pages * page_size, MADV_DONTNEED) == 0, "madvise");
  uint64_t begin = now();
  for (uint32_t page = 0; page < pages; page++) {
    unsigned char *bytes = memory + page * page_size;
    *wrong += bytes[page_size - 1] != 0;
    bytes[0] = 1;
  }
  return now() - begin;
}

static uint32_t percentile(double percent) { return latencies[(uint32_t)((touches - 1) * percent / 100)]; }

int main(int count, char **words) {
  parse(count, words);
  alarm(LIMIT_SECONDS);
  if (share) dial(), request_memory();
  prepare();
  int uffd = watch();
  pthread_t ids[threads], balloon_id;
  for (uintptr_t i = 0; i < threads; i++) check(pthread_create(&ids[i], NULL, touch, (void *)i) == 0, "pthread_create");
  if (balloon) check(pthread_create(&balloon_id, NULL, give_back, NULL) == 0, "pthread_create");
  while (atomic_load(&ready) < (int)threads + (balloon > 0)) usleep(100);
  hand_over(uffd);
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
  uint64_t again = reuse ? use_again(&wrong) : 0;
  usleep(hold * 1000);
  qsort(latencies, touches, sizeof *latencies, ascending);
  printf("{\"touches\":%u,\"pages\":%u,\"wrong\":%llu,\"ns\":%llu,\"p50Ns\":%u,\"p99Ns\":%u,\"p999Ns\":%u,"
         "\"maxNs\":%u,\"firstNs\":%llu,\"reuseNs\":%llu}\n",
         touches, distinct(), (unsigned long long)wrong, (unsigned long long)(end - begin), percentile(50),
         percentile(99), percentile(99.9), percentile(100), (unsigned long long)(first_done - begin),
         (unsigned long long)again);
  return wrong > 0;
}
