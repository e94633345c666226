/* Monitors that hand over what cannot be served, in ways that are no monitor's, or do not live to see it served. Each
 * is a process of its own, which the server may kill, and which is killed here after a while. */
#include <pthread.h>
#include <sys/prctl.h>

#define TEXT_MOST (6 << 20)

/* The server reads, answers nothing, and hangs up or not. */
static void wait_a_little(struct dice *dice, int connection)
{
	if (roll(dice, 2))
		await(connection, roll(dice, 30));
}

/* Some descriptor for a text that is wrong: mostly none, or one that is no userfaultfd; now and then a real one. */
static int any_descriptor(struct dice *dice)
{
	switch (roll(dice, 4)) {
	case 0:
		return -1;
	case 1:
		return plain_guest().fd;
	default:
		return wrong_descriptor(dice, roll(dice, WRONG_DESCRIPTORS));
	}
}

static void send_text(struct dice *dice, const char *text, size_t length)
{
	int connection = dial(dice);
	int fd = any_descriptor(dice);

	give(connection, text, length, &fd, fd >= 0);
	wait_a_little(dice, connection);
	let_go(dice, connection);
}

static void send_words(struct dice *dice, const char *text)
{
	send_text(dice, text, strlen(text));
}

/* ---- how it is sent ---- */

static void half(struct dice *dice)
{
	struct guest guest = plain_guest();
	const char *text = text_of(&guest);
	int connection = dial(dice);

	give(connection, text, 1 + roll(dice, strlen(text) - 1), &guest.fd, roll(dice, 2));
	wait_a_little(dice, connection);
	let_go(dice, connection);
}

static void byte_by_byte(struct dice *dice)
{
	struct guest guest = plain_guest();
	const char *text = text_of(&guest);
	size_t with = roll(dice, strlen(text)), length = strlen(text);
	int connection = dial(dice);

	for (size_t at = 0; at < length; at++) {
		if (!give(connection, text + at, 1, &guest.fd, at == with))
			break;
		if (roll(dice, 8) == 0)
			pause_us(dice, 100);
	}
	wait_a_little(dice, connection);
	touch(dice, &guest, roll(dice, 20));
}

static void no_descriptor(struct dice *dice)
{
	struct guest guest = plain_guest();
	int connection = dial(dice);

	give_text(connection, text_of(&guest), -1);
	wait_a_little(dice, connection);
	let_go(dice, connection);
}

static void late_descriptor(struct dice *dice)
{
	struct guest guest = plain_guest();
	int connection = dial(dice);
	int fd = roll(dice, 2) ? guest.fd : wrong_descriptor(dice, roll(dice, WRONG_DESCRIPTORS));

	give_text(connection, text_of(&guest), -1);
	pause_us(dice, 150000);
	give_text(connection, " ", fd);
	wait_a_little(dice, connection);
	if (fd == guest.fd && roll(dice, 2))
		touch(dice, &guest, 10);
}

static void several_descriptors(struct dice *dice, int count)
{
	struct guest guest = plain_guest();
	int connection = dial(dice);
	int fds[FDS_MOST];

	for (int i = 0; i < count; i++)
		fds[i] = i == 0 && roll(dice, 2) ? guest.fd : wrong_descriptor(dice, 3 + roll(dice, 8));
	give(connection, text_of(&guest), strlen(text_of(&guest)), fds, count);
	wait_a_little(dice, connection);
	if (count == 2 && fds[0] == guest.fd)
		touch(dice, &guest, 20);
}

static void two_descriptors(struct dice *dice)
{
	several_descriptors(dice, 2);
}

static void three_descriptors(struct dice *dice)
{
	several_descriptors(dice, 3);
}

/* As many as a message carries, in front of the text or in the middle of it. */
static void most_descriptors(struct dice *dice)
{
	struct guest guest = plain_guest();
	int connection = dial(dice);
	const char *text = text_of(&guest);
	size_t with = roll(dice, strlen(text));
	int fds[FDS_MOST], fd = wrong_descriptor(dice, roll(dice, WRONG_DESCRIPTORS));
	int count = 4 + roll(dice, FDS_MOST - 3);

	for (int i = 0; i < count; i++)
		fds[i] = roll(dice, 20) ? fd : guest.fd;
	give(connection, text, with, NULL, 0);
	give(connection, text + with, strlen(text) - with, fds, count);
	wait_a_little(dice, connection);
	let_go(dice, connection);
}

/* Text that is waited with for its descriptor, and then as much as fits. */
static void flood(struct dice *dice)
{
	static char spaces[1 << 16];
	int connection = dial(dice);
	int blocks = 1 + roll(dice, 200);

	memset(spaces, roll(dice, 2) ? ' ' : '[', sizeof(spaces));
	give_text(connection, roll(dice, 2) ? "[]" : "[{}]", -1);
	for (int i = 0; i < blocks && give(connection, spaces, sizeof(spaces), NULL, 0); i++)
		;
	let_go(dice, connection);
}

static void hang(struct dice *dice)
{
	linger(dice, dial(dice));
}

static void storm(struct dice *dice)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fds[100], count = 1 + roll(dice, 100);

	strncpy(address.sun_path, sockets[roll(dice, socket_count)], sizeof(address.sun_path) - 1);
	for (int i = 0; i < count; i++) {
		fds[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		/* The queue may be full. */
		(void)!connect(fds[i], (struct sockaddr *)&address, sizeof(address));
		if (roll(dice, 2))
			close(fds[i]), fds[i] = -1;
	}
	pause_us(dice, 3000);
	for (int i = 0; i < count; i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

/* Hand-offs of one connection, without end. */
static void many_hand_offs(struct dice *dice)
{
	struct guest guest = plain_guest();
	int connection = dial(dice);
	int count = 1 + roll(dice, 100);
	bool real = roll(dice, 8) == 0;

	for (int i = 0; i < (real ? 1 + count / 20 : count); i++) {
		int fd = real ? guest.fd : wrong_descriptor(dice, 3 + roll(dice, WRONG_DESCRIPTORS - 3));
		bool went = give_text(connection, text_of(&guest), fd);

		if (!real)
			close(fd);
		if (!went)
			break;
	}
	wait_a_little(dice, connection);
}

static void half_closed(struct dice *dice)
{
	struct guest guest = plain_guest();
	int connection = dial(dice);

	if (roll(dice, 2))
		give_text(connection, text_of(&guest), roll(dice, 2) ? guest.fd : -1);
	shutdown(connection, roll(dice, 3));
	wait_a_little(dice, connection);
	let_go(dice, connection);
}

/* ---- what is sent as a userfaultfd ---- */

static void wrong(struct dice *dice, unsigned which)
{
	struct guest guest = plain_guest();
	int connection = dial(dice);

	give_text(connection, text_of(&guest), wrong_descriptor(dice, which));
	wait_a_little(dice, connection);
	let_go(dice, connection);
}

#define WRONG(name, which)                                                                                             \
	static void name(struct dice *dice)                                                                            \
	{                                                                                                              \
		wrong(dice, which);                                                                                    \
	}
WRONG(a_pipe, 0)
WRONG(a_full_pipe, 1)
WRONG(a_lingering_socket, 2)
WRONG(a_directory, 3)
WRONG(dev_null, 4)
WRONG(an_epoll, 5)
WRONG(an_eventfd, 6)
WRONG(a_signalfd, 7)
WRONG(a_timerfd, 8)
WRONG(a_memfd, 10)
WRONG(a_readable_socket, 11)

/* The connection that it is sent over, one of its peers, or a knot of sockets in flight. */
static void the_connection_itself(struct dice *dice)
{
	struct guest guest = plain_guest();
	int connection = dial(dice);
	int knot[2];

	marked(connection);
	if (roll(dice, 2)) {
		give_text(connection, text_of(&guest), connection);
	} else {
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, knot))
			fail("socketpair");
		marked(knot[0]), marked(knot[1]);
		give(knot[0], "x", 1, &knot[1], 1);
		give(knot[1], "x", 1, &knot[0], 1);
		give(knot[0], "x", 1, &connection, 1);
		give_text(connection, text_of(&guest), knot[roll(dice, 2)]);
	}
	wait_a_little(dice, connection);
}

static void no_handshake(struct dice *dice)
{
	struct guest guest = plain_guest();
	int connection = dial(dice);

	give_text(connection, text_of(&guest), open_userfaultfd());
	wait_a_little(dice, connection);
}

static void may_block(struct dice *dice)
{
	struct guest guest = plain_guest();
	int connection = dial(dice);
	bool before = roll(dice, 2);

	if (before)
		fcntl(guest.fd, F_SETFL, O_APPEND);
	give_text(connection, text_of(&guest), guest.fd);
	if (!before) {
		pause_us(dice, 20000);
		fcntl(guest.fd, F_SETFL, O_APPEND);
	}
	if (roll(dice, 2))
		touch(dice, &guest, 10);
	wait_a_little(dice, connection);
}

/* Made by a process that is gone, or is about to be. */
static void of_another_process(struct dice *dice)
{
	struct guest guest = plain_guest();
	const char *text = text_of(&guest);
	int ends[2], connection = dial(dice);
	pid_t maker;
	bool wait = roll(dice, 2);

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends))
		fail("socketpair");
	maker = fork();
	if (maker == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		guest = plain_guest();
		give(ends[0], text_of(&guest), strlen(text_of(&guest)) + 1, &guest.fd, 1);
		if (!wait)
			pause_us(dice, 10000);
		_exit(0);
	}
	/* The descriptor stays in the message: what the server is given is passed on from there. */
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	char other[256];
	struct iovec vector = { other, sizeof(other) };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	int fd = -1;

	if (recvmsg(ends[1], &message, 0) > 0)
		memcpy(&fd, CMSG_DATA(&control.header), sizeof(fd)), text = other;
	if (wait)
		usleep(2000);
	give_text(connection, text, fd);
	wait_a_little(dice, connection);
}

/* ---- guests that are odd ---- */

/* Regions that are elsewhere: of other memory, of none, or of more than was registered. */
static void other_memory(struct dice *dice)
{
	struct guest guest = plain_guest(), announced = guest;
	int connection = dial(dice);

	switch (roll(dice, 4)) {
	case 0:
		announced.start += roll(dice, 2 * PAGES) * PAGE;
		break;
	case 1:
		munmap(guest.start, guest.length);
		break;
	case 2:
		announced.start = (char *)(uintptr_t)(roll(dice, 1ull << 35) * PAGE);
		break;
	default:
		munmap(guest.start + PAGE, PAGE);
	}
	give_text(connection, text_of(&announced), guest.fd);
	if (roll(dice, 2))
		touch(dice, &guest, 3);
	wait_a_little(dice, connection);
}

static void other_modes(struct dice *dice)
{
	static const uint64_t FEATURES[] = {
		0,
		UFFD_FEATURE_EVENT_FORK,
		UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_UNMAP,
		UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_FORK,
		UFFD_FEATURE_SIGBUS,
		UFFD_FEATURE_THREAD_ID,
	};
	uint64_t features = FEATURES[roll(dice, sizeof(FEATURES) / sizeof(*FEATURES))];
	uint64_t mode = roll(dice, 3) ? UFFDIO_REGISTER_MODE_MISSING : UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MISSING;
	struct guest guest = new_guest(features, mode);
	int connection = dial(dice);

	give_text(connection, text_of(&guest), guest.fd);
	if (!(features & UFFD_FEATURE_SIGBUS))
		touch(dice, &guest, 5);
	if (features & UFFD_FEATURE_EVENT_FORK) {
		for (int i = roll(dice, 4); i > 0; i--)
			if (fork() == 0)
				_exit(0);
	}
	if (features & UFFD_FEATURE_EVENT_UNMAP)
		munmap(guest.start + roll(dice, PAGES) * PAGE, PAGE);
	if (features & UFFD_FEATURE_EVENT_REMAP)
		(void)mremap(guest.start, guest.length, 2 * guest.length, MREMAP_MAYMOVE);
	wait_a_little(dice, connection);
}

/* One userfaultfd for two hand-offs: over one connection or two, to one socket or two. */
static void handed_over_twice(struct dice *dice)
{
	struct guest guest = plain_guest();
	int one = dial(dice), other = roll(dice, 2) ? one : dial(dice);

	give_text(one, text_of(&guest), guest.fd);
	give_text(other, text_of(&guest), guest.fd);
	touch(dice, &guest, roll(dice, 60));
	wait_a_little(dice, one);
}

/* Takes its memory away, moves and unregisters it, while it is served. */
static void restless(struct dice *dice)
{
	struct guest guest = plain_guest();
	int connection = dial(dice);
	struct uffdio_range range = { (uintptr_t)guest.start, guest.length };

	give_text(connection, text_of(&guest), guest.fd);
	for (int i = roll(dice, 20); i > 0; i--) {
		touch(dice, &guest, 3);
		madvise(guest.start + roll(dice, PAGES) * PAGE, PAGE, MADV_DONTNEED);
	}
	switch (roll(dice, 3)) {
	case 0:
		ioctl(guest.fd, UFFDIO_UNREGISTER, &range);
		break;
	case 1:
		munmap(guest.start, guest.length);
		break;
	default:
		(void)mremap(guest.start, guest.length, guest.length, MREMAP_MAYMOVE | MREMAP_FIXED, guest.start + (1ull << 32));
	}
	wait_a_little(dice, connection);
}

/* ---- monitors that do not stay ---- */

static void *touch_for_ever(void *argument)
{
	struct guest *guest = argument;
	struct dice dice = { 1 };

	for (;;) {
		touch(&dice, guest, PAGES);
		madvise(guest->start, guest->length, MADV_DONTNEED);
	}
	return NULL;
}

static struct guest served_guest(struct dice *dice)
{
	static struct guest guest;
	pthread_t thread;

	guest = plain_guest();
	give_text(dial(dice), text_of(&guest), guest.fd);
	if (roll(dice, 2))
		pthread_create(&thread, NULL, touch_for_ever, &guest);
	return guest;
}

static void killed(struct dice *dice)
{
	served_guest(dice);
	pause_us(dice, 20000);
	raise(SIGKILL);
}

/* The process that started it kills it. */
static void stopped(struct dice *dice)
{
	served_guest(dice);
	pause_us(dice, 5000);
	raise(SIGSTOP);
}

static void executed(struct dice *dice)
{
	/* Held open by the connection that is kept, or by nothing. */
	struct guest guest = served_guest(dice);

	if (roll(dice, 2))
		fcntl(guest.fd, F_SETFD, 0);
	pause_us(dice, 5000);
	execl("/bin/sleep", "sleep", "0.01", NULL);
}

/* Exits before the server has read its peer credentials; another process keeps a copy of the userfaultfd. */
static void gone_at_once(struct dice *dice)
{
	struct guest guest = plain_guest();
	int connection = dial(dice);

	if (fork() == 0) {
		prctl(PR_SET_PDEATHSIG, 0);
		pause_us(dice, 3000);
		give_text(connection, text_of(&guest), guest.fd);
		pause_us(dice, 3000);
	}
	_exit(0);
}
