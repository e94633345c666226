/* Descriptors that are no guest's userfaultfd, and guests' memory with its userfaultfd. */
#include <linux/userfaultfd.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>

#define PAGE 4096
/* The least that the memory files have. */
#define PAGES 64

/* Where connections over TCP are neither accepted nor read: they end when this program does. */
static int pit;
static struct sockaddr_in pit_address = { .sin_family = AF_INET };

static void dig_pit(void)
{
	socklen_t length = sizeof(pit_address);
	int small = 1;

	pit = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	pit_address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	setsockopt(pit, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
	if (bind(pit, (struct sockaddr *)&pit_address, sizeof(pit_address)) || listen(pit, 4096) ||
	    getsockname(pit, (struct sockaddr *)&pit_address, &length))
		fail("a listener");
}

/* One end of a connection over TCP that has unsent bytes, and waits an hour for them when it is closed. */
static int lingering_tcp(void)
{
	static const char bytes[65536];
	struct linger hour = { .l_onoff = 1, .l_linger = 3600 };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	/* The queue of the pit may be full: this one has nothing to send then. */
	(void)!connect(fd, (struct sockaddr *)&pit_address, sizeof(pit_address));
	await(fd, 0);
	while (send(fd, bytes, sizeof(bytes), MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
		;
	fcntl(fd, F_SETFL, 0);
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &hour, sizeof(hour));
	return marked(fd);
}

static int pipe_end(struct dice *dice, bool full)
{
	int ends[2];
	char bytes[4096] = "";

	if (pipe2(ends, O_CLOEXEC | (full ? O_NONBLOCK : 0)))
		fail("pipe2");
	while (full && write(ends[1], bytes, sizeof(bytes)) > 0)
		;
	if (roll(dice, 2)) {
		close(ends[1]);
		return marked(ends[0]);
	}
	linger(dice, ends[1]);
	return marked(ends[0]);
}

static int socket_end(struct dice *dice)
{
	int ends[2];

	if (socketpair(AF_UNIX, roll(dice, 2) ? SOCK_STREAM : SOCK_DGRAM, 0, ends))
		fail("socketpair");
	/* Readable at once, like a userfaultfd that has a message. */
	(void)!write(ends[1], "\x12", 1);
	linger(dice, ends[1]);
	return marked(ends[0]);
}

static int some_epoll(struct dice *dice)
{
	int fd = epoll_create1(EPOLL_CLOEXEC);
	int end = socket_end(dice);
	struct epoll_event event = { .events = EPOLLIN };

	epoll_ctl(fd, EPOLL_CTL_ADD, end, &event);
	close(end);
	return marked(fd);
}

static int some_signalfd(void)
{
	sigset_t signals;

	sigemptyset(&signals);
	sigaddset(&signals, SIGUSR1);
	return marked(signalfd(-1, &signals, SFD_CLOEXEC));
}

static int some_timerfd(void)
{
	struct itimerspec often = { .it_value.tv_nsec = 1, .it_interval.tv_nsec = 1 };
	int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);

	timerfd_settime(fd, 0, &often, NULL);
	return marked(fd);
}

/* Anything but a userfaultfd. */
static int wrong_descriptor(struct dice *dice, unsigned which)
{
	switch (which) {
	case 0:
		return pipe_end(dice, false);
	case 1:
		return pipe_end(dice, true);
	case 2:
		return lingering_tcp();
	case 3:
		return marked(open("/", O_RDONLY | O_CLOEXEC));
	case 4:
		return marked(open("/dev/null", O_RDWR | O_CLOEXEC));
	case 5:
		return some_epoll(dice);
	case 6:
		return marked(eventfd(1, EFD_CLOEXEC));
	case 7:
		return some_signalfd();
	case 8:
		return some_timerfd();
	case 9:
		return marked(inotify_init1(IN_CLOEXEC));
	case 10:
		return marked(memfd_create("hostile", MFD_CLOEXEC));
	case 11:
		return socket_end(dice);
	case 12:
		return marked(open("/dev/zero", O_RDONLY | O_CLOEXEC));
	default:
		return marked(open("/proc/self/maps", O_RDONLY | O_CLOEXEC));
	}
}
#define WRONG_DESCRIPTORS 14

struct guest {
	char *start;
	size_t length;
	int fd;
};

static int open_userfaultfd(void)
{
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
#ifdef USERFAULTFD_IOC_NEW
	if (fd < 0) {
		int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

		fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
		close(device);
	}
#endif
	if (fd < 0)
		fail("userfaultfd");
	return marked(fd);
}

static struct guest new_guest(uint64_t features, uint64_t mode)
{
	struct guest guest = { .length = PAGES * PAGE };
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	struct uffdio_register range;

	guest.start = mmap(NULL, guest.length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (guest.start == MAP_FAILED)
		fail("mmap");
	guest.fd = open_userfaultfd();
	range = (struct uffdio_register){ .range = { (uintptr_t)guest.start, guest.length }, .mode = mode };
	if (ioctl(guest.fd, UFFDIO_API, &api) || ioctl(guest.fd, UFFDIO_REGISTER, &range))
		fail("registering memory");
	return guest;
}

static struct guest plain_guest(void)
{
	return new_guest(UFFD_FEATURE_EVENT_REMOVE, UFFDIO_REGISTER_MODE_MISSING);
}

/* What an honest monitor would send for it. */
static const char *text_of(const struct guest *guest)
{
	static char text[256];

	snprintf(text, sizeof(text), "[{\"base_host_virt_addr\":%llu,\"size\":%zu,\"offset\":0,\"page_size\":%d}]",
		 (unsigned long long)(uintptr_t)guest->start, guest->length, PAGE);
	return text;
}

/* Reads or writes random pages. On a page that no handler serves it sleeps until it is killed. */
static void touch(struct dice *dice, const struct guest *guest, unsigned times)
{
	for (unsigned i = 0; i < times; i++) {
		volatile char *at = guest->start + roll(dice, PAGES) * PAGE;

		if (roll(dice, 2))
			(void)*at;
		else
			*at = 1;
	}
}
