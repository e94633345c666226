/* The threads and processes (actors) with which a semantics test touches memory. An actor performs one step at a
 * time: a call of a C function. The test requests the step through a page that it shares with forked processes. The
 * actor may sleep in that call until the test resolves its fault. A signal that memory raises ends the step, but not
 * the process.
 *
 * Rules: a forked actor runs on a copy of a process with many threads, so nothing here allocates or locks.
 * A function returns a number >= 0, or -1 with errno. Actors run on the CPU of the thread that steps them: when that
 * thread yields the CPU, the actors run; when it runs again, each actor has finished its step or is asleep. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef long (*step)(long, long, long, long, long, long);

enum turn { IDLE, COMMANDED, DONE };

/* State of an actor: awake (running or done), asleep in one of three places, or without its memory. */
enum found { AWAKE, IN_FAULT, IN_EVENT, IN_READ, GONE };

/* Where a thread sleeps, by a substring of its wchan (the kernel's name for the place). */
static const struct {
	const char *name;
	enum found found;
} places[] = {
	{ "handle_userfault", IN_FAULT },
	{ "userfaultfd_event_wait", IN_EVENT },
	{ "userfaultfd_ctx_read", IN_READ },
	{ "userfaultfd_read", IN_READ },
	{ "nanosleep", GONE },
};

/* `actor_settle` polls an actor this often with yields; after that it sleeps this long between polls. */
#define SHORT_LOOKS 100
#define PAUSE_NS 20000
/* If a yield took this long, other processes compete for the CPU. A thread that has slept then gets the CPU sooner
 * than a thread that yields, so the next CROWDED_WAITS waits sleep instead. */
#define CROWDED_NS 500000
#define CROWDED_WAITS 500

struct actor {
	_Atomic uint32_t turn;
	int signal;
	step function;
	long arguments[6];
	long result;
	/* The struct of an ioctl that this actor issues: at most five words. */
	uint64_t words[5];
	int pipe[2];
	pthread_t thread;
	/* Descriptor of the actor's wchan in /proc; -1 until it is opened. */
	int place;
};

#define SHARED __thread __attribute__((tls_model("initial-exec")))

static SHARED struct actor *self;
static SHARED sigjmp_buf *armed;

/* ---- signals ------------------------------------------------------------------------------------------ */

static struct sigaction former[2];

static void caught(int number, siginfo_t *info, void *context)
{
	struct sigaction *then = &former[number == SIGBUS];

	if (armed) {
		self->signal = number;
		siglongjmp(*armed, 1);
	}
	/* Not during a step: call the handler that was installed before. */
	if (then->sa_flags & SA_SIGINFO)
		then->sa_sigaction(number, info, context);
	else
		sigaction(number, then, NULL);
}

static void noticed(int number)
{
	(void)number;
}

/* Interrupts a sleeping actor: the actor handles the signal and continues. */
int actor_interrupt(int process, int thread)
{
	return (int)syscall(SYS_tgkill, process, thread, SIGRTMIN + 5);
}

__attribute__((constructor)) static void handle_signals(void)
{
	struct sigaction catch = { .sa_sigaction = caught, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK };
	struct sigaction notice = { .sa_handler = noticed, .sa_flags = SA_RESTART };

	sigaction(SIGSEGV, &catch, &former[0]);
	sigaction(SIGBUS, &catch, &former[1]);
	sigaction(SIGRTMIN + 5, &notice, NULL);
}

/* Pins the thread that steps the actors; the actors inherit its CPU. */
__attribute__((constructor)) static void stay_on_this_processor(void)
{
	cpu_set_t here;

	CPU_ZERO(&here);
	CPU_SET(sched_getcpu(), &here);
	sched_setaffinity(0, sizeof here, &here);
	/* Reduce the timer slack to 1 ns, so that short sleeps end on time. */
	prctl(PR_SET_TIMERSLACK, 1);
}

/* ---- steps -------------------------------------------------------------------------------------------- */

static void attempt(struct actor *actor)
{
	sigjmp_buf frame;
	long *a = actor->arguments, result;

	actor->signal = 0;
	if (sigsetjmp(frame, 1) == 0) {
		armed = &frame;
		result = actor->function(a[0], a[1], a[2], a[3], a[4], a[5]);
		/* Functions that return an int leave the upper half of the register undefined. */
		actor->result = (int)result == -1 ? -errno : result;
	}
	armed = NULL;
}

static void *serve(void *page)
{
	struct actor *actor = self = page;

	for (;;) {
		uint32_t turn = atomic_load(&actor->turn);

		if (turn != COMMANDED) {
			syscall(SYS_futex, &actor->turn, FUTEX_WAIT, turn, NULL, NULL, 0);
			continue;
		}
		if (!actor->function)
			return NULL;
		attempt(actor);
		atomic_store(&actor->turn, DONE);
		syscall(SYS_futex, &actor->turn, FUTEX_WAKE, 1, NULL, NULL, 0);
	}
}

/* Creates an actor without a thread. */
struct actor *actor_new(void)
{
	struct actor *actor =
		mmap(NULL, sizeof *actor, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (actor == MAP_FAILED || pipe2(actor->pipe, O_CLOEXEC | O_NONBLOCK) < 0)
		return NULL;
	actor->place = -1;
	return actor;
}

/* Starts a thread of this process for the actor. */
int actor_start(struct actor *actor)
{
	sigset_t blocked, before;
	int error;

	/* Block all other signals: Node's own threads handle them. */
	sigfillset(&blocked);
	sigdelset(&blocked, SIGSEGV);
	sigdelset(&blocked, SIGBUS);
	sigdelset(&blocked, SIGRTMIN + 5);
	pthread_sigmask(SIG_SETMASK, &blocked, &before);
	error = pthread_create(&actor->thread, NULL, serve, actor);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return -error;
}

static int64_t nanoseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Lets an actor run: yields the CPU or sleeps. */
static void let_on(struct actor *actor, int sleep)
{
	static int crowded;
	const struct timespec pause = { 0, PAUSE_NS };
	int64_t begun;

	if (sleep || crowded > 0) {
		crowded -= crowded > 0;
		syscall(SYS_futex, &actor->turn, FUTEX_WAIT, COMMANDED, &pause, NULL, 0);
		return;
	}
	begun = nanoseconds();
	sched_yield();
	if (nanoseconds() - begun > CROWDED_NS)
		crowded = CROWDED_WAITS;
}

void actor_step(struct actor *actor, step function, long a, long b, long c, long d, long e, long f)
{
	long arguments[] = { a, b, c, d, e, f };

	actor->function = function;
	memcpy(actor->arguments, arguments, sizeof arguments);
	atomic_store(&actor->turn, COMMANDED);
	syscall(SYS_futex, &actor->turn, FUTEX_WAKE, 1, NULL, NULL, 0);
	let_on(actor, 0);
}

static enum found asleep(struct actor *actor, int thread, int forked)
{
	siginfo_t ended = { 0 };
	char path[32], name[64];
	ssize_t length;

	if (thread == 0)
		return AWAKE;
	if (forked && waitid(P_PID, thread, &ended, WEXITED | WNOHANG | WNOWAIT | __WALL) == 0 && ended.si_pid)
		return GONE;
	if (actor->place < 0) {
		snprintf(path, sizeof path, "/proc/%d/wchan", thread);
		actor->place = open(path, O_RDONLY | O_CLOEXEC);
	}
	length = pread(actor->place, name, sizeof name - 1, 0);
	name[length < 0 ? 0 : length] = 0;
	for (size_t i = 0; i < sizeof places / sizeof *places; i++)
		if (strstr(name, places[i].name))
			return places[i].found;
	return AWAKE;
}

/* Waits until an actor has finished its step, is asleep or is gone. Once a waking call has returned, the wchan of a
 * woken thread no longer shows a place. `thread` is 0 while the thread id is unknown. */
int actor_settle(struct actor *actor, int thread, int forked)
{
	for (int looks = 0; atomic_load(&actor->turn) == COMMANDED; looks++) {
		enum found found = asleep(actor, thread, forked);

		if (found != AWAKE)
			return found;
		let_on(actor, looks >= SHORT_LOOKS);
	}
	return AWAKE;
}

int actor_signal(struct actor *actor)
{
	return actor->signal;
}

long actor_result(struct actor *actor)
{
	return actor->result;
}

uint64_t *actor_words(struct actor *actor)
{
	return actor->words;
}

/* Ends the actor's thread, or its process if `process` is not 0. */
void actor_end(struct actor *actor, int process)
{
	if (process) {
		kill(process, SIGKILL);
		waitpid(process, NULL, __WALL);
	} else {
		actor_step(actor, NULL, 0, 0, 0, 0, 0, 0);
		pthread_join(actor->thread, NULL);
	}
	close(actor->pipe[0]);
	close(actor->pipe[1]);
	close(actor->place);
	munmap(actor, sizeof *actor);
}

/* ---- what can be seen from outside -------------------------------------------------------------------- */

/* Reads part of an open file of this process in /proc. Returns the number of bytes, or -1. */
long look(int file, void *buffer, long length, long from)
{
	return pread(file, buffer, length, from);
}

/* Reads two counters of a userfaultfd's open fdinfo: unread faults, and all waiting faults, read ones included. */
int queue_of(int file, long counts[2])
{
	char text[256];
	ssize_t length = pread(file, text, sizeof text - 1, 0);
	const char *pending, *total;

	text[length < 0 ? 0 : length] = 0;
	pending = strstr(text, "pending:");
	total = strstr(text, "total:");
	return pending && total && sscanf(pending, "pending: %ld", &counts[0]) == 1 &&
		sscanf(total, "total: %ld", &counts[1]) == 1 ? 0 : -1;
}

/* More pages than the kernel flushes one by one from the TLBs. */
#define MANY_PAGES 64

/* Flushes this process's translations from the TLB of every CPU. madvise flushes last: until then, threads can still
 * reach pages that it has already removed, even while it sleeps in between. Returns 0, or -1. */
int forget_translations(void)
{
	static char *pages;
	long page = sysconf(_SC_PAGESIZE), length = MANY_PAGES * page;

	if (!pages) {
		char *fresh = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (fresh == MAP_FAILED)
			return -1;
		pages = fresh;
	}
	/* mprotect flushes from the first to the last changed page, a range so large that it flushes all. */
	pages[0] = pages[length - page] = 1;
	return mprotect(pages, length, PROT_READ) | mprotect(pages, length, PROT_READ | PROT_WRITE);
}

/* ---- what an actor can do, beside the C library's own functions --------------------------------------- */

long own_tid(void)
{
	return syscall(SYS_gettid);
}

long peek(const volatile uint8_t *at)
{
	return *at;
}

long poke(volatile uint8_t *at, long value)
{
	*at = (uint8_t)value;
	return 0;
}

/* The kernel reads the byte. */
long kernel_peek(const uint8_t *at)
{
	uint8_t byte;

	return write(self->pipe[1], at, 1) < 0 || read(self->pipe[0], &byte, 1) < 0 ? -1 : byte;
}

/* The kernel writes the byte. */
long kernel_poke(uint8_t *at, long value)
{
	uint8_t byte = (uint8_t)value;
	int error;

	if (write(self->pipe[1], &byte, 1) < 0)
		return -1;
	if (read(self->pipe[0], at, 1) == 1)
		return 0;
	error = errno;
	if (read(self->pipe[0], &byte, 1) < 0)
		return -1;
	errno = error;
	return -1;
}

/* Reads a byte of another process. */
long remote_peek(int process, void *at)
{
	uint8_t byte;
	struct iovec here = { &byte, 1 }, there = { at, 1 };

	return process_vm_readv(process, &here, 1, &there, 1, 0) < 0 ? -1 : byte;
}

/* Forks a process whose memory is a copy, and which runs `child`. Returns its id. CLONE_FILES shares descriptors. */
long fork_actor(struct actor *child, long flags)
{
	long process = syscall(SYS_clone, flags, 0, 0, 0, 0);

	if (process == 0) {
		serve(child);
		syscall(SYS_exit_group, 0);
	}
	return process;
}

/* Replaces the process with a program that sleeps. */
long exec_sleep(void)
{
	char *const arguments[] = { "sleep", "1000000", NULL }, *const environment[] = { NULL };

	execve("/bin/sleep", arguments, environment);
	execve("/usr/bin/sleep", arguments, environment);
	return -1;
}

long new_userfaultfd(long flags)
{
	return syscall(SYS_userfaultfd, flags);
}

long own_ioctl(int fd, unsigned long request)
{
	return ioctl(fd, request, self->words);
}

/* Drops all privileges. Only for an actor with its own process: the bare system call changes one thread. */
long drop_privileges(void)
{
	return syscall(SYS_setresuid, 65534, 65534, 65534);
}

/* Limits this process to descriptors below `limit`. Returns the former limit. */
long limit_descriptors(long limit)
{
	struct rlimit now;
	long former_limit;

	if (getrlimit(RLIMIT_NOFILE, &now) < 0)
		return -1;
	former_limit = (long)now.rlim_cur;
	now.rlim_cur = (rlim_t)limit;
	return setrlimit(RLIMIT_NOFILE, &now) < 0 ? -1 : former_limit;
}
