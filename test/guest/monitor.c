/* A monitor that restores a microVM's memory through a page-fault handler, as Firecracker's documentation describes
 * (docs/snapshotting/handling-page-faults-on-snapshot-resume.md), and its guest: threads that touch every page.
 *
 *   monitor SOCKET MEMORY [-t THREADS] [-r ROUNDS] [-b] [-s SEED] [-l SECONDS]
 *
 *   -t  threads that touch pages, 1 to 16
 *   -r  how often each of them touches every page
 *   -b  inflate a balloon meanwhile: ranges of pages are removed, and must read as zeros afterwards
 *   -s  seed of the random choices, among them the orders of the pages
 *   -l  time limit, in seconds
 *
 * Exit code 0: all pages were right; 1: some were wrong, or it failed, or reached the time limit; 2: wrong arguments.
 * It prints one line of JSON: the number of the guest's pages, of touches, of removals, and of wrong pages found.
 *
 * A page holds the memory file's words until it is removed, and zeros from then on. Each thread owns one word of each
 * page and writes marks there; the other threads recognize a mark when they read it. While a page is being removed,
 * both contents are right. */
#define _GNU_SOURCE
#include <errno.h>
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

#define PAGE 4096
#define WORDS (PAGE / 8)
#define REGIONS 2
#define HOLE_PAGES 512
#define THREADS_MOST 16
#define BALLOON_PAGES 32
#define WRONG_TOLD 10

/* The version of the mark that a thread last wrote to its word of a page; the removals of the page that had ended
 * before the write, and those that had begun after it. */
struct written {
	uint32_t version;
	uint32_t ended_before;
	uint32_t begun_after;
};

struct toucher {
	pthread_t thread;
	int index;
	uint64_t random;
	int scratch;
	struct written *written;
};

static struct region {
	char *start;
	long first;
	long pages;
} regions[REGIONS];

static long pages;
static int memory_file;
static int thread_count = 1;
static int rounds = 2;
static uint64_t seed = 1;
static struct toucher touchers[THREADS_MOST];
/* Numbers of each page's removals that have begun, and that have ended. */
static _Atomic uint32_t *begun;
static _Atomic uint32_t *ended;
static atomic_long touched;
static atomic_long removed;
static atomic_long wrong;
static atomic_bool touching = true;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static uint64_t mixed(uint64_t value)
{
	value = (value ^ value >> 31) * 0x9e3779b97f4a7c15;
	value = (value ^ value >> 29) * 0xbf58476d1ce4e5b9;
	return value ^ value >> 32;
}

static char *page_at(long page)
{
	const struct region *region = &regions[page >= regions[1].first];

	return region->start + (page - region->first) * PAGE;
}

/* The word of a page that a thread owns. */
static int word_of(long page, int thread)
{
	return (mixed(page) + thread) % WORDS;
}

/* Number of the thread that owns the word; thread_count or more: no thread owns it. */
static int owner_of(long page, int word)
{
	return (word + WORDS - word_of(page, 0)) % WORDS;
}

static uint64_t mark(long page, int thread, uint32_t version)
{
	return (mixed(page * THREADS_MOST + thread + 1) & ~0xffffull) | (version & 0xffff);
}

static void say_wrong(long page, int word, uint64_t found, uint64_t file)
{
	if (atomic_fetch_add(&wrong, 1) < WRONG_TOLD)
		fprintf(stderr, "page %ld, word %d: %016llx; in the file %016llx, removed %u times\n", page, word,
			(unsigned long long)found, (unsigned long long)file, atomic_load(&ended[page]));
}

/* Whether a word may have this value if `own` wrote a mark to it. `before`: removals that had ended before the page
 * was read. `after`: removals that had begun after the read. */
static bool own_word_right(uint64_t found, uint64_t marked, const struct written *own, uint32_t before, uint32_t after)
{
	if (found == marked)
		return before <= own->begun_after;
	return found == 0 && after != own->ended_before;
}

static bool word_right(long page, int word, uint64_t found, uint64_t file, const struct toucher *self, uint32_t before,
		       uint32_t after)
{
	int owner = owner_of(page, word);

	if (owner < thread_count) {
		const struct written *own = self && owner == self->index ? &self->written[page] : NULL;

		if (own && own->version)
			return own_word_right(found, mark(page, owner, own->version), own, before, after);
		if (!own && (found | 0xffff) == (mark(page, owner, 0) | 0xffff))
			return true;
	}
	return (found == file && before == 0) || (found == 0 && after > 0);
}

/* Reads and checks a whole page: by loads, as a guest does, or by a system call of the monitor. */
static void look(long page, struct toucher *self, bool by_kernel)
{
	uint64_t found[WORDS], file[WORDS];
	uint32_t before = atomic_load(&ended[page]);
	uint32_t after;

	if (by_kernel) {
		if (pwrite(self->scratch, page_at(page), PAGE, 0) != PAGE)
			fail("pwrite from guest memory");
		if (pread(self->scratch, found, PAGE, 0) != PAGE)
			fail("pread");
	} else {
		_Atomic uint64_t *words = (void *)page_at(page);

		for (int word = 0; word < WORDS; word++)
			found[word] = atomic_load_explicit(&words[word], memory_order_relaxed);
	}
	atomic_thread_fence(memory_order_seq_cst);
	after = atomic_load(&begun[page]);
	if (pread(memory_file, file, PAGE, page * PAGE) != PAGE)
		fail("pread from the memory file");
	for (int word = 0; word < WORDS; word++) {
		if (!word_right(page, word, found[word], file[word], self, before, after)) {
			say_wrong(page, word, found[word], file[word]);
			return;
		}
	}
}

static void write_mark(long page, struct toucher *self)
{
	_Atomic uint64_t *words = (void *)page_at(page);
	struct written *own = &self->written[page];

	own->version++;
	own->ended_before = atomic_load(&ended[page]);
	atomic_store(&words[word_of(page, self->index)], mark(page, self->index, own->version));
	own->begun_after = atomic_load(&begun[page]);
}

/* Puts all pages into a random order. */
static void shuffle(long *order, uint64_t *random)
{
	for (long i = 0; i < pages; i++)
		order[i] = i;
	for (long i = pages - 1; i > 0; i--) {
		long other = next_random(random) % (i + 1);
		long page = order[i];

		order[i] = order[other];
		order[other] = page;
	}
}

static void *touch_all(void *argument)
{
	struct toucher *self = argument;
	long *order = calloc(pages, sizeof(*order));

	if (!order)
		fail("calloc");
	for (int round = 0; round < rounds; round++) {
		shuffle(order, &self->random);
		for (long i = 0; i < pages; i++) {
			uint64_t how = next_random(&self->random);

			/* A quarter of the pages is written before the check, and a quarter after it. */
			if ((how & 3) == 0)
				write_mark(order[i], self);
			look(order[i], self, (how >> 8) % 8 == 0);
			if ((how & 3) == 1)
				write_mark(order[i], self);
			atomic_fetch_add(&touched, 1);
		}
	}
	free(order);
	return NULL;
}

static void take_away(long first, long count)
{
	for (long page = first; page < first + count; page++)
		atomic_fetch_add(&begun[page], 1);
	if (madvise(page_at(first), count * PAGE, MADV_DONTNEED))
		fail("madvise");
	for (long page = first; page < first + count; page++)
		atomic_fetch_add(&ended[page], 1);
	atomic_fetch_add(&removed, count);
	for (long page = first; page < first + count; page++)
		look(page, NULL, false);
}

/* Removes as many pages as the guest has in every two rounds, so that removals come between the touches of a page. */
static void *inflate(void *argument)
{
	uint64_t random = mixed(seed + THREADS_MOST) | 1;

	(void)argument;
	/* At least once, however fast the guest is. */
	while (atomic_load(&touching) || atomic_load(&removed) == 0) {
		const struct region *region = &regions[next_random(&random) % REGIONS];
		long first = next_random(&random) % region->pages;
		long count = 1 + next_random(&random) % BALLOON_PAGES;

		if (atomic_load(&removed) * 2 * thread_count > atomic_load(&touched)) {
			usleep(100);
			continue;
		}
		take_away(region->first + first, count < region->pages - first ? count : region->pages - first);
	}
	return NULL;
}

/* Maps two regions, below and above a hole, like those of an x86 guest with more memory than fits below 4 GiB. */
static void map_guest(void)
{
	char *room;

	regions[0].pages = (pages * 5 / 8) | 1;
	regions[1].first = regions[0].pages;
	regions[1].pages = pages - regions[0].pages;
	room = mmap(NULL, (pages + HOLE_PAGES) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (room == MAP_FAILED)
		fail("mmap");
	regions[0].start = room;
	regions[1].start = room + (regions[0].pages + HOLE_PAGES) * PAGE;
	for (int i = 0; i < REGIONS; i++) {
		if (mmap(regions[i].start, regions[i].pages * PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
			fail("mmap");
	}
}

static int open_userfaultfd(void)
{
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
#ifdef USERFAULTFD_IOC_NEW
	if (fd < 0) {
		int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

		if (device < 0)
			fail("/dev/userfaultfd");
		fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
		close(device);
	}
#endif
	if (fd < 0)
		fail("userfaultfd");
	return fd;
}

static int watch_guest(void)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE };
	int fd = open_userfaultfd();

	if (ioctl(fd, UFFDIO_API, &api))
		fail("UFFDIO_API");
	for (int i = 0; i < REGIONS; i++) {
		struct uffdio_register range = {
			.range = { .start = (uintptr_t)regions[i].start, .len = regions[i].pages * PAGE },
			.mode = UFFDIO_REGISTER_MODE_MISSING,
		};

		if (ioctl(fd, UFFDIO_REGISTER, &range))
			fail("UFFDIO_REGISTER");
	}
	return fd;
}

static int connect_to(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof(address.sun_path)) {
		fprintf(stderr, "%s: the path is too long for a socket\n", path);
		exit(2);
	}
	strcpy(address.sun_path, path);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)))
		fail(path);
	return fd;
}

/* Sends one message: the regions as text, and the userfaultfd as ancillary data. */
static void hand_over(int connection, int uffd)
{
	char text[1024] = "[";
	struct iovec bytes = { .iov_base = text };
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = { .header = { .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
	struct msghdr message = {
		.msg_iov = &bytes,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control.room),
	};

	for (int i = 0; i < REGIONS; i++) {
		size_t length = strlen(text);

		snprintf(text + length, sizeof(text) - length,
			 "%s{\"base_host_virt_addr\":%llu,\"size\":%lu,\"offset\":%lu,\"page_size\":%d,\"page_size_kib\":%d}",
			 i ? "," : "", (unsigned long long)(uintptr_t)regions[i].start, regions[i].pages * PAGE,
			 regions[i].first * PAGE, PAGE, PAGE);
	}
	strcat(text, "]");
	bytes.iov_len = strlen(text);
	memcpy(CMSG_DATA(&control.header), &uffd, sizeof(int));
	if (sendmsg(connection, &message, MSG_NOSIGNAL) != (ssize_t)bytes.iov_len)
		fail("sendmsg");
}

static void begin_touching(struct toucher *self, int index)
{
	self->index = index;
	self->random = mixed(seed + index) | 1;
	self->written = calloc(pages, sizeof(*self->written));
	self->scratch = memfd_create("scratch", MFD_CLOEXEC);
	if (!self->written || self->scratch < 0)
		fail("memory of a thread");
	if (pthread_create(&self->thread, NULL, touch_all, self))
		fail("pthread_create");
}

static void out_of_time(int signal)
{
	static const char text[] = "it took too long\n";

	(void)signal;
	(void)!write(STDERR_FILENO, text, sizeof(text) - 1);
	_exit(1);
}

static long number(const char *text, long least, long most)
{
	char *end;
	long value = strtol(text, &end, 10);

	if (*text && !*end && value >= least && value <= most)
		return value;
	fprintf(stderr, "%s: a number from %ld to %ld is wanted\n", text, least, most);
	exit(2);
}

int main(int count, char **arguments)
{
	bool balloon = false;
	pthread_t balloon_thread;
	struct stat stat;
	int option, connection;
	long limit = 60;

	while ((option = getopt(count, arguments, "t:r:bs:l:")) != -1) {
		if (option == 't')
			thread_count = number(optarg, 1, THREADS_MOST);
		else if (option == 'r')
			rounds = number(optarg, 1, 1000);
		else if (option == 'b')
			balloon = true;
		else if (option == 's')
			seed = number(optarg, 0, INT32_MAX);
		else if (option == 'l')
			limit = number(optarg, 1, 86400);
		else
			return 2;
	}
	if (optind != count - 2) {
		fprintf(stderr, "usage: monitor SOCKET MEMORY [-t THREADS] [-r ROUNDS] [-b] [-s SEED] [-l SECONDS]\n");
		return 2;
	}
	signal(SIGALRM, out_of_time);
	alarm(limit);
	memory_file = open(arguments[optind + 1], O_RDONLY | O_CLOEXEC);
	if (memory_file < 0 || fstat(memory_file, &stat))
		fail(arguments[optind + 1]);
	pages = stat.st_size / PAGE;
	if (pages < 4 || stat.st_size % PAGE) {
		fprintf(stderr, "%s: four whole pages are the least\n", arguments[optind + 1]);
		return 2;
	}
	begun = calloc(pages, sizeof(*begun));
	ended = calloc(pages, sizeof(*ended));
	if (!begun || !ended)
		fail("calloc");

	map_guest();
	connection = connect_to(arguments[optind]);
	/* The monitor keeps the descriptor open too: if the handler ended, the guest would sleep until the time limit. */
	hand_over(connection, watch_guest());
	for (int i = 0; i < thread_count; i++)
		begin_touching(&touchers[i], i);
	if (balloon && pthread_create(&balloon_thread, NULL, inflate, NULL))
		fail("pthread_create");
	for (int i = 0; i < thread_count; i++)
		pthread_join(touchers[i].thread, NULL);
	atomic_store(&touching, false);
	if (balloon)
		pthread_join(balloon_thread, NULL);
	for (long page = 0; page < pages; page++)
		for (int i = 0; i < thread_count; i++)
			look(page, &touchers[i], false);

	printf("{\"pages\":%ld,\"touched\":%ld,\"removed\":%ld,\"wrong\":%ld}\n", pages, atomic_load(&touched),
	       atomic_load(&removed), atomic_load(&wrong));
	return wrong != 0;
}
