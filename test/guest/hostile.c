/* Hostile and broken clients of `uffd serve`: monitors on its sockets, clients of its metrics port, signals.
 *
 *   hostile [-k KIND] [-j JOBS] [-p SERVER'S PID] [-m METRICS PORT] SEED FIRST COUNT SOCKET...
 *   hostile -l
 *
 * Plays COUNT tries from number FIRST on, in JOBS processes at a time. SEED and a try's number decide what the try
 * does; its effect also depends on what the other jobs and the server do meanwhile. -k: only this kind; -l: lists the
 * kinds.
 *
 * After all tries it prints one line of JSON: the number of tries by kind, and how many of its processes the server
 * has killed. It then stays until it is killed, and keeps the peers of the sockets that it has handed over: the server
 * must not wait for them. The test that started it checks whether the server is well.
 *
 * Rule: every try ends, as a process that hangs in a page fault is killed after a while. */
#define _GNU_SOURCE
#include "hostile/dice.h"
#include "hostile/descriptors.h"
#include "hostile/http.h"
#include "hostile/monitors.h"
#include "hostile/texts.h"
#include <stdatomic.h>
#include <sys/wait.h>

/* Tries of a job before a new process takes its place; the old one's lingering descriptors are closed. */
#define TRIES_OF_JOB 100
#define JOBS_MOST 64
/* Time limit of a try's own process, in milliseconds. */
#define PATIENCE_MS 400

static void harmless_signal(struct dice *dice)
{
	static const int SIGNALS[] = { SIGPIPE, SIGWINCH, SIGURG, SIGCONT, SIGCHLD };

	if (server > 0)
		kill(server, SIGNALS[roll(dice, sizeof(SIGNALS) / sizeof(*SIGNALS))]);
}

/* A kind that is `apart` runs in a process of its own, because it has a guest or may be killed. */
static const struct kind {
	const char *name;
	void (*play)(struct dice *dice);
	bool apart;
} KINDS[] = {
	{ "half", half, true },
	{ "byte-by-byte", byte_by_byte, true },
	{ "no-descriptor", no_descriptor, true },
	{ "late-descriptor", late_descriptor, true },
	{ "two-descriptors", two_descriptors, true },
	{ "three-descriptors", three_descriptors, true },
	{ "most-descriptors", most_descriptors, true },
	{ "flood", flood, false },
	{ "hang", hang, false },
	{ "storm", storm, false },
	{ "many-hand-offs", many_hand_offs, true },
	{ "half-closed", half_closed, true },
	{ "pipe", a_pipe, true },
	{ "full-pipe", a_full_pipe, true },
	{ "lingering-socket", a_lingering_socket, true },
	{ "directory", a_directory, true },
	{ "dev-null", dev_null, true },
	{ "epoll", an_epoll, true },
	{ "eventfd", an_eventfd, true },
	{ "signalfd", a_signalfd, true },
	{ "timerfd", a_timerfd, true },
	{ "memfd", a_memfd, true },
	{ "readable-socket", a_readable_socket, true },
	{ "connection-itself", the_connection_itself, true },
	{ "no-handshake", no_handshake, true },
	{ "may-block", may_block, true },
	{ "of-another-process", of_another_process, true },
	{ "other-memory", other_memory, true },
	{ "other-modes", other_modes, true },
	{ "handed-over-twice", handed_over_twice, true },
	{ "restless", restless, true },
	{ "killed", killed, true },
	{ "stopped", stopped, true },
	{ "executed", executed, true },
	{ "gone-at-once", gone_at_once, true },
	{ "no-array", no_array, true },
	{ "deep", deep, true },
	{ "odd-numbers", odd_numbers, true },
	{ "overlapping", overlapping, true },
	{ "odd-keys", odd_keys, true },
	{ "no-utf8", no_utf8, true },
	{ "spaces", spaces, true },
	{ "many-regions", many_regions, true },
	{ "long-value", long_value, true },
	{ "damaged", damaged, true },
	{ "http-odd-target", http_odd_target, false },
	{ "http-huge-header", http_huge_header, false },
	{ "http-many-headers", http_many_headers, false },
	{ "http-slow", http_slow, false },
	{ "http-pipeline", http_pipeline, false },
	{ "http-idle", http_idle, false },
	{ "http-body", http_body, false },
	{ "http-method", http_method, false },
	{ "http-upgrade", http_upgrade, false },
	{ "http-noise", http_noise, false },
	{ "http-half-closed", http_half_closed, false },
	{ "signal", harmless_signal, false },
};
#define KIND_COUNT (sizeof(KINDS) / sizeof(*KINDS))

/* Shared by all processes. */
static struct board {
	atomic_long next;
	atomic_long killed;
	atomic_long played[KIND_COUNT];
} *board;

static uint64_t seed;
static long first, count;
static long only = -1;
static pid_t jobs[JOBS_MOST];
static int job_count = 4;

static void play_apart(const struct kind *kind, struct dice *dice)
{
	pid_t child = fork();
	struct pollfd end = { .events = POLLIN };
	int status;

	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		kind->play(dice);
		_exit(0);
	}
	if (child < 0)
		return;
	end.fd = syscall(SYS_pidfd_open, child, 0);
	/* A process that is stopped, or sleeps in a fault that is never answered, does not end by itself. */
	if (poll(&end, 1, kind->play == stopped ? (int)roll(dice, 40) : PATIENCE_MS) == 0)
		kill(child, SIGKILL);
	else if (waitid(P_PID, child, &(siginfo_t){ 0 }, WEXITED | WNOWAIT) == 0 && kind->play != killed) {
		siginfo_t info;

		if (waitid(P_PID, child, &info, WEXITED | WNOWAIT) == 0 && info.si_code == CLD_KILLED)
			atomic_fetch_add(&board->killed, 1);
	}
	waitpid(child, &status, 0);
	close(end.fd);
}

static void play(long number)
{
	struct dice dice = { mixed(seed * 0x100000001b3 + number) | 1 };
	unsigned which = only >= 0 ? only : (long)roll(&dice, KIND_COUNT);
	const struct kind *kind = &KINDS[which];

	if (kind->apart)
		play_apart(kind, &dice);
	else
		kind->play(&dice);
	atomic_fetch_add(&board->played[which], 1);
}

static void begin_job(int index)
{
	jobs[index] = fork();
	if (jobs[index] != 0)
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (int tries = 0; tries < TRIES_OF_JOB; tries++) {
		long next = atomic_fetch_add(&board->next, 1);

		if (next >= count)
			_exit(1);
		play(first + next);
	}
	_exit(0);
}

static void play_all(void)
{
	int running = job_count, status;

	for (int i = 0; i < job_count; i++)
		begin_job(i);
	while (running > 0) {
		pid_t ended = wait(&status);

		for (int i = 0; i < job_count; i++) {
			if (jobs[i] != ended)
				continue;
			/* A job exits with 1 if no try is left. A job that was killed may have left tries. */
			if (WIFEXITED(status) && WEXITSTATUS(status) != 0)
				running--;
			else
				begin_job(i);
		}
	}
}

static void report(void)
{
	printf("{\"tries\":%ld,\"killed\":%ld,\"kinds\":{", count, atomic_load(&board->killed));
	for (unsigned i = 0, any = 0; i < KIND_COUNT; i++) {
		long played = atomic_load(&board->played[i]);

		if (played)
			printf("%s\"%s\":%ld", any++ ? "," : "", KINDS[i].name, played);
	}
	printf("}}\n");
	fflush(stdout);
}

static void choose_kind(const char *name)
{
	for (unsigned i = 0; i < KIND_COUNT; i++)
		if (strcmp(KINDS[i].name, name) == 0)
			only = i;
	if (only < 0) {
		fprintf(stderr, "%s: no such kind\n", name);
		exit(2);
	}
}

static void list_kinds(void)
{
	for (unsigned i = 0; i < KIND_COUNT; i++)
		puts(KINDS[i].name);
	exit(0);
}

int main(int words, char **arguments)
{
	int option;

	while ((option = getopt(words, arguments, "k:j:p:m:l")) != -1) {
		switch (option) {
		case 'k':
			choose_kind(optarg);
			break;
		case 'j':
			job_count = atoi(optarg);
			break;
		case 'p':
			server = atoi(optarg);
			break;
		case 'm':
			http_port = atoi(optarg);
			break;
		case 'l':
			list_kinds();
			break;
		default:
			return 2;
		}
	}
	if (words - optind < 4 || words - optind - 3 > SOCKETS_MOST || job_count < 1 || job_count > JOBS_MOST) {
		fprintf(stderr, "usage: hostile [-k KIND] [-j JOBS] [-p PID] [-m PORT] SEED FIRST COUNT SOCKET...\n");
		return 2;
	}
	seed = strtoull(arguments[optind], NULL, 10);
	first = atol(arguments[optind + 1]);
	count = atol(arguments[optind + 2]);
	for (int i = optind + 3; i < words; i++)
		sockets[socket_count++] = arguments[i];
	/* Without its parent the results have no reader. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_IGN);
	board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (board == MAP_FAILED)
		fail("mmap");
	dig_pit();
	play_all();
	report();
	for (;;)
		pause();
}
