/* A process whose memory another process serves. It registers PAGES pages with a userfaultfd that has the features of a
 * bit mask, prints where both are, and runs the commands on its standard input: one per line, most answered by a line.
 *
 *   watched PAGES FEATURES        prints: pid, descriptor, address
 *
 * Page i must hold i + 1 in its first eight bytes; `wrong` below counts pages that do not. Forks are bare system calls:
 * a child may run while another thread holds a lock, so it must take no lock. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

static long page_size;
static char *memory;
static long pages;
static int uffd;

static void fail(const char *what)
{
	perror(what);
	exit(100);
}

static char *page(long index)
{
	return memory + index * page_size;
}

static int wrong(char *base, long first, long count)
{
	int found = 0;

	for (long i = first; i < first + count; i++)
		found += *(volatile uint64_t *)(base + i * page_size) != (uint64_t)i + 1;
	return found;
}

static void watch(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };

	memory = mmap(NULL, pages * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		fail("mmap");
	madvise(memory, pages * page_size, MADV_NOHUGEPAGE);
	uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (uffd < 0)
		uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		fail("userfaultfd");
	range.range.start = (uintptr_t)memory;
	range.range.len = pages * page_size;
	if (ioctl(uffd, UFFDIO_REGISTER, &range))
		fail("UFFDIO_REGISTER");
}

/* Forks a child that acts and exits with 0, or with 1 if a page was wrong. Returns the child's pid. */
static pid_t child(char action, long first, long count)
{
	pid_t pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	char *base = memory;
	int status = 0;

	if (pid)
		return pid;
	if (action == 'u') { /* unmaps these pages, touches the others */
		munmap(page(first), count * page_size);
		status = wrong(base, 0, first) + wrong(base, first + count, pages - first - count);
	} else if (action == 'm') { /* moves all of them, touches these */
		base = mmap(NULL, pages * page_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		base = mremap(memory, pages * page_size, pages * page_size, MREMAP_MAYMOVE | MREMAP_FIXED, base);
		status = base == MAP_FAILED || wrong(base, first, count);
	} else {
		status = wrong(base, first, count);
	}
	if (action == 'p') /* touches, then waits to be killed */
		for (;;)
			pause();
	syscall(SYS_exit_group, status != 0);
	return 0;
}

/* Waits for a child, and returns whether it failed. */
static int failed(pid_t pid)
{
	int status;

	return pid < 0 || waitpid(pid, &status, 0) < 0 || status != 0;
}

static volatile int storming;

/* Touches the lower half and then removes its pages, again and again. */
static void *toucher(void *rounds)
{
	intptr_t found = 0;

	while (storming) {
		found += wrong(memory, 0, pages / 2);
		madvise(memory, pages / 2 * page_size, MADV_DONTNEED);
		++*(long *)rounds;
	}
	return (void *)found;
}

/* Moves the upper quarter away and back, and removes its first page, again and again. */
static void *changer(void *rounds)
{
	long quarter = pages / 4 * page_size;
	char *here = page(pages - pages / 4);
	char *there = mmap(NULL, quarter, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	intptr_t found = there == MAP_FAILED;

	while (storming) {
		found += mremap(here, quarter, quarter, MREMAP_MAYMOVE | MREMAP_FIXED, there) != there;
		found += mremap(there, quarter, quarter, MREMAP_MAYMOVE | MREMAP_FIXED, here) != here;
		madvise(here, page_size, MADV_DONTNEED);
		++*(long *)rounds;
	}
	return (void *)found;
}

/* Forks `forks` times, with at most `most` children at once; each child touches `count` pages of the lower three
 * quarters. Meanwhile other threads touch memory and, if `changes` is set, change mappings. Prints: children that
 * failed, pages that were wrong here, rounds of each thread. */
static void storm(long forks, long count, long most, int changes)
{
	void *(*body[])(void *) = { toucher, changer };
	long rounds[2] = { 0, 0 };
	pthread_t thread[2];
	long bad = 0, here = 0;
	pid_t alive[64] = { 0 };

	storming = 1;
	for (int i = 0; i < 1 + changes; i++)
		pthread_create(&thread[i], NULL, body[i], &rounds[i]);
	for (long i = 0; i < forks; i++) {
		pid_t *slot = &alive[i % most];

		if (*slot)
			bad += failed(*slot);
		*slot = child('t', (i * 7) % (pages * 3 / 4 - count), count);
	}
	for (long i = 0; i < most; i++)
		if (alive[i])
			bad += failed(alive[i]);
	storming = 0;
	for (int i = 0; i < 1 + changes; i++) {
		void *found;

		pthread_join(thread[i], &found);
		here += (intptr_t)found;
	}
	printf("%ld %ld %ld %ld\n", bad, here, rounds[0], rounds[1]);
}

static int act(const char *line)
{
	char verb[16], action = 't';
	long a = 0, b = 0, c = 0, d = 0;

	if (sscanf(line, "fork %c %ld %ld", &action, &a, &b) == 3)
		return printf("%d\n", failed(child(action, a, b)));
	if (sscanf(line, "start %c %ld %ld", &action, &a, &b) == 3)
		return printf("%d\n", child(action, a, b));
	sscanf(line, "%15s %ld %ld %ld %ld", verb, &a, &b, &c, &d);
	if (!strcmp(verb, "touch"))
		return printf("%d\n", wrong(memory, a, b));
	if (!strcmp(verb, "read"))
		return printf("%llu\n", *(volatile unsigned long long *)page(a));
	if (!strcmp(verb, "drop"))
		return printf("%d\n", madvise(page(a), b * page_size, MADV_DONTNEED));
	if (!strcmp(verb, "unmap"))
		return printf("%d\n", munmap(page(a), b * page_size));
	if (!strcmp(verb, "handed"))
		return printf("%d\n", close(uffd));
	if (!strcmp(verb, "sleep"))
		return usleep(1000 * a);
	if (!strcmp(verb, "reap"))
		return printf("%d\n", waitpid(a, NULL, 0) < 0 ? -errno : 0);
	if (!strcmp(verb, "storm"))
		storm(a, b, c, d);
	else if (!strcmp(verb, "exec"))
		execl("/bin/cat", "cat", NULL);
	else if (!strcmp(verb, "exit"))
		exit(a);
	else if (!strcmp(verb, "kill"))
		kill(getpid(), SIGKILL);
	return 0;
}

int main(int argc, char **argv)
{
	char line[128];

	if (argc != 3)
		return 100;
	page_size = sysconf(_SC_PAGESIZE);
	pages = atol(argv[1]);
	watch(strtoull(argv[2], NULL, 0));
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("%d %d %llu\n", getpid(), uffd, (unsigned long long)(uintptr_t)memory);
	while (fgets(line, sizeof line, stdin))
		act(line);
	return 0;
}
