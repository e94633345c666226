/* A monitor and its guest, whose threads fault as often as they can. Each thread has its own pages, which it touches,
 * writes, removes (a balloon) and touches again. It compares every page with the expected contents.
 *
 *   churn SOCKET MEMORY [-t THREADS] [-n ROUNDS] [-x SPLITS] [-p PAGE SIZE] [-s SEED] [-l SECONDS]
 *
 *   -t  threads, 1 to 16
 *   -n  rounds of each thread; in each round it may remove some pages, and touches them
 *   -x  rounds in a thousand that split or join the mappings of the guest's memory (madvise, mprotect)
 *   -p  4096, or 2097152 for huge pages; the pool need not have that many
 *   -l  time limit, in seconds
 *
 * Exit code 0: all pages were right; 1: some were wrong, or it failed, or reached the time limit; 2: wrong arguments.
 *
 * A page holds the memory file's bytes, or zeros once it was removed, and one word that its thread has written. Chunks
 * of pages go to the threads in turn, so a fill's window includes pages that another thread removes. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define THREADS_MOST 16
#define CHUNK 8
#define WRONG_TOLD 10
/* One of so many touches of a 4096-byte page compares the whole page; the others compare its word and a random one. */
#define WHOLE_EVERY 8

struct page {
	/* The page was removed: it holds no bytes of the file. */
	bool taken;
	/* The value last written to the page's word; 0: none since the removal. */
	uint64_t written;
};

static char *guest, *file;
static long pages, page_size = 4096;
static struct page *known;
static int thread_count = 2;
static long rounds = 10000;
static unsigned splits;
static uint64_t seed = 1;
static atomic_long touched, taken, wrong;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t mixed(uint64_t value)
{
	value = (value ^ value >> 31) * 0x9e3779b97f4a7c15;
	value = (value ^ value >> 29) * 0xbf58476d1ce4e5b9;
	return value ^ value >> 32;
}

static uint64_t roll(uint64_t *state, uint64_t below)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return (*state >> 11) % below;
}

/* The word of a page that its thread writes. */
static long word_of(long page)
{
	return mixed(page) % (page_size / 8);
}

static void check(long page, long word)
{
	const struct page *should = &known[page];
	uint64_t found = ((volatile uint64_t *)(guest + page * page_size))[word];
	uint64_t right = should->taken ? 0 : ((uint64_t *)(file + page * page_size))[word];

	if (should->written && word == word_of(page))
		right = should->written;
	if (found == right)
		return;
	if (atomic_fetch_add(&wrong, 1) < WRONG_TOLD)
		fprintf(stderr, "page %ld, word %ld: %016llx instead of %016llx; taken away: %d\n", page, word,
			(unsigned long long)found, (unsigned long long)right, should->taken);
}

static void touch(long page, uint64_t *random)
{
	long words = page_size / 8;

	if (roll(random, 4) == 0) {
		/* If the page is missing, this is a write fault; the reads below cause read faults. */
		known[page].written = *random | 1;
		((volatile uint64_t *)(guest + page * page_size))[word_of(page)] = known[page].written;
	}
	if (roll(random, WHOLE_EVERY * page_size / 4096) == 0) {
		for (long word = 0; word < words; word++)
			check(page, word);
	} else {
		check(page, word_of(page));
		check(page, roll(random, words));
	}
	atomic_fetch_add(&touched, 1);
}

static void take_away(long first, long count)
{
	if (madvise(guest + first * page_size, count * page_size, MADV_DONTNEED))
		fail("madvise");
	for (long page = first; page < first + count; page++)
		known[page] = (struct page){ .taken = true };
	atomic_fetch_add(&taken, count);
}

/* Makes the kernel split or join mappings, for which it posts no event. */
static void split(long first, long count, uint64_t *random)
{
	char *start = guest + first * page_size;

	switch (roll(random, 4)) {
	case 0:
		madvise(start, count * page_size, MADV_DONTDUMP);
		break;
	case 1:
		madvise(start, count * page_size, MADV_DODUMP);
		break;
	case 2:
		/* No other thread touches these pages. */
		mprotect(start, count * page_size, roll(random, 2) ? PROT_READ : PROT_NONE);
		usleep(roll(random, 200));
		mprotect(start, count * page_size, PROT_READ | PROT_WRITE);
		break;
	default:
		madvise(start, count * page_size, roll(random, 2) ? MADV_DONTFORK : MADV_DOFORK);
	}
}

static void *run(void *argument)
{
	long index = (long)argument;
	uint64_t random = mixed(seed * THREADS_MOST + index) | 1;
	long mine = pages / (CHUNK * thread_count);

	for (long round = 0; round < rounds; round++) {
		long chunk = (roll(&random, mine) * thread_count + index) * CHUNK;
		long first = chunk + roll(&random, CHUNK);
		long count = 1 + roll(&random, chunk + CHUNK - first);

		if (roll(&random, 1000) < splits)
			split(first, count, &random);
		if (roll(&random, 2))
			take_away(first, count);
		for (long page = first; page < first + count; page++)
			touch(page, &random);
	}
	return NULL;
}

static int watch_guest(void)
{
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };

	range.range.start = (uintptr_t)guest;
	range.range.len = pages * page_size;
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &range))
		fail("userfaultfd");
	return fd;
}

static void hand_over(const char *path, int uffd)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char text[256];
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = { .header = { .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
	struct iovec bytes = { .iov_base = text };
	struct msghdr message = {
		.msg_iov = &bytes,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control.room),
	};

	strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
	if (connect(connection, (struct sockaddr *)&address, sizeof(address)))
		fail(path);
	bytes.iov_len = snprintf(text, sizeof(text), "[{\"base_host_virt_addr\":%llu,\"size\":%ld,\"offset\":0,\"page_size\":%ld}]",
				 (unsigned long long)(uintptr_t)guest, pages * page_size, page_size);
	memcpy(CMSG_DATA(&control.header), &uffd, sizeof(int));
	if (sendmsg(connection, &message, MSG_NOSIGNAL) != (ssize_t)bytes.iov_len)
		fail("sendmsg");
}

static void out_of_time(int signal)
{
	static const char text[] = "it took too long\n";

	(void)signal;
	(void)!write(STDERR_FILENO, text, sizeof(text) - 1);
	_exit(1);
}

int main(int words, char **arguments)
{
	pthread_t threads[THREADS_MOST];
	struct stat stat;
	int option, fd, flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	long limit = 60;

	while ((option = getopt(words, arguments, "t:n:x:p:s:l:")) != -1) {
		switch (option) {
		case 't':
			thread_count = atoi(optarg);
			break;
		case 'n':
			rounds = atol(optarg);
			break;
		case 'x':
			splits = atoi(optarg);
			break;
		case 'p':
			page_size = atol(optarg);
			break;
		case 's':
			seed = strtoull(optarg, NULL, 10);
			break;
		case 'l':
			limit = atol(optarg);
			break;
		default:
			return 2;
		}
	}
	if (optind != words - 2 || thread_count < 1 || thread_count > THREADS_MOST) {
		fprintf(stderr, "usage: churn SOCKET MEMORY [-t THREADS] [-n ROUNDS] [-x SPLITS] [-p PAGE SIZE] [-s SEED] [-l SECONDS]\n");
		return 2;
	}
	signal(SIGALRM, out_of_time);
	alarm(limit);
	fd = open(arguments[optind + 1], O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &stat))
		fail(arguments[optind + 1]);
	pages = stat.st_size / page_size;
	if (pages < CHUNK * thread_count) {
		fprintf(stderr, "%s: %d whole pages for each thread are the least\n", arguments[optind + 1], CHUNK);
		return 2;
	}
	file = mmap(NULL, pages * page_size, PROT_READ, MAP_SHARED, fd, 0);
	guest = mmap(NULL, pages * page_size, PROT_READ | PROT_WRITE, flags | (page_size > 4096 ? MAP_HUGETLB : 0), -1, 0);
	known = calloc(pages, sizeof(*known));
	if (file == MAP_FAILED || guest == MAP_FAILED || !known)
		fail("mmap");
	/* The monitor keeps the descriptor open too: if the handler ended, the guest would sleep until the time limit. */
	hand_over(arguments[optind], watch_guest());
	for (long i = 0; i < thread_count; i++)
		if (pthread_create(&threads[i], NULL, run, (void *)i))
			fail("pthread_create");
	for (int i = 0; i < thread_count; i++)
		pthread_join(threads[i], NULL);
	for (long page = 0; page < pages; page++)
		for (long word = 0; word < page_size / 8; word++)
			check(page, word);
	printf("{\"pages\":%ld,\"touched\":%ld,\"taken\":%ld,\"wrong\":%ld}\n", pages, atomic_load(&touched), atomic_load(&taken),
	       atomic_load(&wrong));
	return wrong != 0;
}
