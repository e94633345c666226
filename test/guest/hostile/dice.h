/* What the other files share: random numbers that depend on seed and try alone, connections to the server, descriptors.
 *
 * Rule: every descriptor that may reach the server is marked with O_APPEND, which its copies there share. The test finds
 * a descriptor that the server has forgotten to close by that mark, in /proc/PID/fdinfo. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define SOCKETS_MOST 8
#define LINGERING 24
#define FDS_MOST 253

static const char *sockets[SOCKETS_MOST];
static int socket_count;
static int http_port;
static pid_t server;

struct dice {
	uint64_t state;
};

static uint64_t mixed(uint64_t value)
{
	value = (value ^ value >> 31) * 0x9e3779b97f4a7c15;
	value = (value ^ value >> 29) * 0xbf58476d1ce4e5b9;
	return value ^ value >> 32;
}

static uint64_t roll(struct dice *dice, uint64_t below)
{
	dice->state ^= dice->state << 13;
	dice->state ^= dice->state >> 7;
	dice->state ^= dice->state << 17;
	return (dice->state >> 11) % below;
}

static void pause_us(struct dice *dice, unsigned most)
{
	usleep(roll(dice, most));
}

static void fail(const char *what)
{
	perror(what);
	_exit(3);
}

static int marked(int fd)
{
	if (fd >= 0)
		fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_APPEND);
	return fd;
}

/* Every wait for a server that does not read or answer has a limit. */
static int limited(int fd)
{
	struct timeval limit = { .tv_sec = 3 };

	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	return fd;
}

/* A connection to one of the server's sockets; -1: it was not accepted in time. */
static int dial(struct dice *dice)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = limited(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));

	strncpy(address.sun_path, sockets[roll(dice, socket_count)], sizeof(address.sun_path) - 1);
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
		return fd;
	close(fd);
	return -1;
}

static int dial_http(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(http_port) };
	int fd = limited(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
		return fd;
	close(fd);
	return -1;
}

/* Sends bytes, with descriptors beside the first. False: not all of them. */
static bool give(int connection, const void *bytes, size_t length, const int *fds, int count)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(FDS_MOST * sizeof(int))];
	} control;
	struct iovec vector = { .iov_base = (void *)bytes, .iov_len = length };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1 };

	if (count > 0) {
		memset(&control, 0, sizeof(control));
		control.header.cmsg_len = CMSG_LEN(count * sizeof(int));
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		memcpy(CMSG_DATA(&control.header), fds, count * sizeof(int));
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(count * sizeof(int));
	}
	for (;;) {
		ssize_t sent = sendmsg(connection, &message, MSG_NOSIGNAL);

		if (sent < 0)
			return false;
		vector.iov_base = (char *)vector.iov_base + sent;
		vector.iov_len -= sent;
		if (vector.iov_len == 0)
			return true;
		message.msg_control = NULL;
		message.msg_controllen = 0;
	}
}

static bool give_text(int connection, const char *text, int fd)
{
	return give(connection, text, strlen(text), &fd, fd >= 0);
}

/* Waits until the server has said something or hung up, at most so long. */
static void await(int fd, int ms)
{
	struct pollfd one = { .fd = fd, .events = POLLIN };

	if (fd >= 0)
		poll(&one, 1, ms);
}

/* Descriptors that stay open for a random number of tries. */
static int lingering[LINGERING];

static void linger(struct dice *dice, int fd)
{
	int *place = &lingering[roll(dice, LINGERING)];

	if (fd < 0)
		return;
	if (*place > 0)
		close(*place);
	*place = fd;
}

static void let_go(struct dice *dice, int fd)
{
	if (fd < 0)
		return;
	if (roll(dice, 3) == 0)
		linger(dice, fd);
	else
		close(fd);
}
