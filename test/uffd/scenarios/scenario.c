/* The parts of the scenarios that JavaScript cannot do: touch memory that raises a signal, check a child right after a
 * fork, pin pages, and count under locks that lie in the pages themselves. The bare system call creates the children,
 * which only make system calls and accesses: the C library's fork would hold malloc's locks until the event is read. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/io_uring.h>

static __thread sigjmp_buf back;

static void jump(int signal)
{
	siglongjmp(back, signal);
}

/* Reads the byte at an address (value -1), or writes one there. Returns the signal that this raised, or 0. */
int touch(uintptr_t at, int value)
{
	volatile char *byte = (volatile char *)at;
	struct sigaction old, action = { .sa_handler = jump };
	int signal;

	sigaction(SIGBUS, &action, &old);
	signal = sigsetjmp(back, 1);
	if (signal == 0) {
		if (value < 0)
			(void)*byte;
		else
			*byte = (char)value;
	}
	sigaction(SIGBUS, &old, 0);
	return signal;
}

/* Forks, runs a step in the child, and waits. Returns the result of the step, or -1 if the child was killed. */
static int in_child(int (*step)(void *), void *with)
{
	int status;
	long pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);

	if (pid == 0)
		syscall(SYS_exit_group, step(with));
	if (pid < 0 || waitpid((pid_t)pid, &status, 0) < 0)
		return -1;
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Returns 1 if the page is write-protected for userfaultfd in this process, or has the marker; 2: unknown. */
static int protected_here(void *at)
{
	uint64_t entry = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY);

	if (fd < 0 || pread(fd, &entry, 8, (uintptr_t)at / (uintptr_t)sysconf(_SC_PAGESIZE) * 8) != 8)
		return 2;
	close(fd);
	return entry >> 57 & 1;
}

int child_protected(uintptr_t at)
{
	return in_child(protected_here, (void *)at);
}

struct change {
	uint8_t *area, *to;
	size_t pages, page_size;
	int removal, writes;
};

/* Whether each page is full of `first` plus its number times `step`, checked at three offsets. */
static int full(const uint8_t *area, const struct change *it, int first, int step)
{
	for (size_t page = 0; page < it->pages; page++) {
		const volatile uint8_t *bytes = area + page * it->page_size;
		uint8_t expected = (uint8_t)(first + step * (int)page);

		if (bytes[1] != expected || bytes[it->page_size / 2] != expected ||
		    bytes[it->page_size - 1] != expected)
			return 0;
	}
	return 1;
}

/* Uses the memory of this process, moves it elsewhere, and removes its pages. Returns the number of the first step
 * that fails or finds a wrong byte, or 0. */
static int change(void *with)
{
	struct change *it = with;
	size_t length = it->pages * it->page_size;
	uint8_t *moved;

	if (!full(it->area, it, 1, 1))
		return 1;
	for (size_t page = 0; it->writes && page < it->pages; page++)
		it->area[page * it->page_size] = (uint8_t)(100 + page);
	moved = mremap(it->area, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, it->to);
	if (moved != it->to)
		return 2;
	if (!full(moved, it, 1, 1))
		return 3;
	for (size_t page = 0; it->writes && page < it->pages; page++)
		if (moved[page * it->page_size] != (uint8_t)(100 + page))
			return 4;
	if (madvise(moved, length, it->removal) != 0)
		return 5;
	if (!full(moved, it, 0, 0))
		return 6;
	memset(moved, 7, length);
	return full(moved, it, 7, 0) ? 0 : 7;
}

int child_changes(uintptr_t area, uintptr_t to, size_t pages, size_t page_size, int removal, int writes)
{
	struct change it = { (uint8_t *)area, (uint8_t *)to, pages, page_size, removal, writes };

	return in_child(change, &it);
}

/* Pins pages as buffers of an io_uring, until its descriptor is closed. Returns the descriptor, or -errno. */
int pin(uintptr_t at, size_t length)
{
	struct io_uring_params parameters;
	struct iovec buffer = { (void *)at, length };
	int ring;

	memset(&parameters, 0, sizeof parameters);
	ring = (int)syscall(SYS_io_uring_setup, 1, &parameters);
	if (ring < 0)
		return -errno;
	if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &buffer, 1) < 0) {
		int error = errno;

		close(ring);
		return -error;
	}
	return ring;
}

/* The next pseudo-random number (xorshift). */
static uint64_t next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* Adds 1 to the counters of `steps` pages. Each page has one counter at each end, and a lock before the first. The
 * pages follow each other from `first` on, or are random if `seed` is not 0. `written` holds the expected count of each
 * page, under the same lock. Returns the number of a page with a wrong count, counted from 1; 0 for none. */
int count(uintptr_t area, uintptr_t written, size_t pages, size_t page_size, size_t steps, size_t first, uint64_t seed)
{
	uint64_t *expected = (uint64_t *)written;

	for (size_t step = 0; step < steps; step++) {
		size_t page = (seed ? next(&seed) : first + step) % pages;
		uint64_t *words = (uint64_t *)(area + page * page_size);
		volatile uint64_t *head = words + 1, *tail = words + page_size / 8 - 1;
		int right;

		while (__atomic_exchange_n(words, 1, __ATOMIC_ACQUIRE))
			sched_yield();
		right = *head == expected[page] && *tail == expected[page];
		expected[page]++;
		*head = expected[page];
		*tail = expected[page];
		__atomic_store_n(words, 0, __ATOMIC_RELEASE);
		if (!right)
			return (int)page + 1;
	}
	return 0;
}
