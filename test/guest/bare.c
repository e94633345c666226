/* A monitor that hands its userfaultfd over and keeps no copy, and can act as a hostile or broken monitor would.
 *
 *   bare SOCKET BYTES TEXT [DOES...]
 *
 * TEXT is the text of the hand-off; the program replaces BASE in it with the address of its memory. DOES:
 *   keeps     keeps a copy of the userfaultfd open
 *   unblocks  a child with all descriptors clears O_NONBLOCK all the time, even after the monitor's end
 *   leaves    a child keeps the connection, prints "closed" when the handler has closed it, and ends
 *   lingers   hands over a TCP socket whose close(2) blocks for an hour
 *   queues    sends such a socket after the hand-off
 *
 * Lines on stdin: "touch N" reads page N in a thread of its own, which prints "page N: WORD"; "end" exits. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <signal.h>
#include <unistd.h>

static char *base;

static int does(char **v, const char *what)
{
	for (v += 4; *v; v++)
		if (!strcmp(*v, what))
			return 1;
	return 0;
}

static void say(const char *format, unsigned long one, unsigned long other)
{
	char text[100];
	int n = snprintf(text, sizeof text, format, one, other);

	(void)!write(1, text, n);
}

static void *touch(void *page)
{
	uint64_t word = *(volatile uint64_t *)(base + (uintptr_t)page * 4096);

	say("page %lu: %016lx\n", (uintptr_t)page, word);
	return NULL;
}

static int connected(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int s = socket(AF_UNIX, SOCK_STREAM, 0);

	strncpy(a.sun_path, path, sizeof a.sun_path - 1);
	if (connect(s, (void *)&a, sizeof a)) {
		perror("connect");
		exit(1);
	}
	return s;
}

static void pass(int s, const char *text, int fd)
{
	char control[CMSG_SPACE(4)] = { 0 };
	struct iovec iov = { (void *)text, strlen(text) };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	struct cmsghdr *h = CMSG_FIRSTHDR(&m);

	h->cmsg_level = SOL_SOCKET;
	h->cmsg_type = SCM_RIGHTS;
	h->cmsg_len = CMSG_LEN(4);
	memcpy(CMSG_DATA(h), &fd, 4);
	(void)!sendmsg(s, &m, MSG_NOSIGNAL);
}

/* A full TCP socket: its peer, in this process, never reads. */
static int lingering(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct linger l = { 1, 3600 };
	socklen_t n = sizeof a;
	static char bytes[65536];
	int listener = socket(AF_INET, SOCK_STREAM, 0), c = socket(AF_INET, SOCK_STREAM, 0);

	bind(listener, (void *)&a, sizeof a);
	listen(listener, 1);
	getsockname(listener, (void *)&a, &n);
	connect(c, (void *)&a, sizeof a);
	accept(listener, NULL, NULL);
	while (send(c, bytes, sizeof bytes, MSG_DONTWAIT) > 0)
		;
	setsockopt(c, SOL_SOCKET, SO_LINGER, &l, sizeof l);
	return c;
}

static int userfaultfd(size_t bytes)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE };
	struct uffdio_register r = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	r.range.start = (uintptr_t)base;
	r.range.len = bytes;
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &r)) {
		perror("userfaultfd");
		exit(1);
	}
	return fd;
}

static void child(int s, int fd, char **v)
{
	char byte;

	if (fork())
		return;
	/* The child ends when the handler has closed the connection, or after a bounded number of fcntl calls. */
	if (does(v, "leaves")) {
		close(fd);
		while (recv(s, &byte, 1, 0) > 0)
			;
		say("closed\n", 0, 0);
		_exit(0);
	}
	close(s);
	for (int i = 0; i < 20000000 && getppid() != 1; i++)
		fcntl(fd, F_SETFL, 0);
	for (int i = 0; i < 3000000; i++)
		fcntl(fd, F_SETFL, 0);
	_exit(0);
}

int main(int c, char **v)
{
	size_t bytes = strtoul(v[2], NULL, 0);
	char text[1000], line[100], *at = strstr(v[3], "BASE");
	pthread_t t;
	int fd, s;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	base = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (at)
		snprintf(text, sizeof text, "%.*s%lu%s", (int)(at - v[3]), v[3], (unsigned long)base, at + 4);
	else
		snprintf(text, sizeof text, "%s", v[3]);
	/* Before it connects, because from then on its time is limited. */
	fd = does(v, "lingers") ? lingering() : userfaultfd(bytes);
	s = connected(v[1]);
	pass(s, text, fd);
	if (does(v, "queues"))
		pass(s, text, lingering());
	if (does(v, "leaves") || does(v, "unblocks"))
		child(s, fd, v);
	if (!does(v, "keeps") && !does(v, "queues"))
		close(fd);
	say("handed over\n", 0, 0);
	while (fgets(line, sizeof line, stdin)) {
		if (!strncmp(line, "touch ", 6))
			pthread_create(&t, 0, touch, (void *)strtoul(line + 6, NULL, 0));
		else if (!strncmp(line, "end", 3))
			_exit(0);
	}
	for (;;)
		pause();
}
