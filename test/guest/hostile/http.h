/* Clients of the metrics port, each of which does something that a scraper does not. */

static const char *const PATHS[] = { "/metrics", "/healthz", "/readyz", "/", "/none" };

static const char *some_path(struct dice *dice)
{
	return PATHS[roll(dice, sizeof(PATHS) / sizeof(*PATHS))];
}

/* Sends bytes, reads some of the answer or none, and hangs up, abruptly or not; or does not. */
static void send_bytes(struct dice *dice, const char *bytes, size_t length)
{
	struct linger abrupt = { .l_onoff = 1 };
	int fd = dial_http();
	char answer[512];

	if (fd < 0)
		return;
	send(fd, bytes, length, MSG_NOSIGNAL);
	if (roll(dice, 2)) {
		await(fd, 200);
		(void)!recv(fd, answer, 1 + roll(dice, sizeof(answer)), MSG_DONTWAIT);
	}
	if (roll(dice, 4) == 0)
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &abrupt, sizeof(abrupt));
	let_go(dice, fd);
}

static void tell_text(struct dice *dice, const char *text)
{
	send_bytes(dice, text, strlen(text));
}

static void http_odd_target(struct dice *dice)
{
	static const char *const TARGETS[] = {
		"//", "///", "//[", "http://[::1", "http://a:b@c/metrics", "http://127.0.0.1/metrics", "*", "?", "#", "/%",
		"/%00", "/\\", "/../..", "//@", "http://", "/metrics?x=%ff", "http:///healthz", "//%", "/:0", "file:///",
	};
	char text[256];

	snprintf(text, sizeof(text), "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n",
		 TARGETS[roll(dice, sizeof(TARGETS) / sizeof(*TARGETS))], roll(dice, 2) ? "x" : "[");
	tell_text(dice, text);
}

static void http_huge_header(struct dice *dice)
{
	size_t length = 1 + roll(dice, 200000);
	char *text = malloc(length + 200);
	int head = sprintf(text, "GET %s HTTP/1.1\r\nHost: x\r\nX-Large: ", some_path(dice));

	memset(text + head, roll(dice, 2) ? 'a' : '\t', length);
	strcpy(text + head + length, "\r\n\r\n");
	send_bytes(dice, text, head + length + 4);
	free(text);
}

static void http_many_headers(struct dice *dice)
{
	char *text = malloc(70000);
	int at = sprintf(text, "GET %s HTTP/1.1\r\n", some_path(dice));
	int count = roll(dice, 3000);

	for (int i = 0; i < count; i++)
		at += sprintf(text + at, "H%d: %d\r\n", i, i);
	at += sprintf(text + at, "\r\n");
	send_bytes(dice, text, at);
	free(text);
}

/* A request that never ends, byte by byte. */
static void http_slow(struct dice *dice)
{
	static const char TEXT[] = "GET /metrics HTTP/1.1\r\nHost: x\r\nX: ";
	int fd = dial_http();
	int count = roll(dice, sizeof(TEXT));

	if (fd < 0)
		return;
	for (int i = 0; i < count && send(fd, TEXT + i, 1, MSG_NOSIGNAL) == 1; i++)
		pause_us(dice, 200);
	linger(dice, fd);
}

/* A hundred requests at once, whose answers are not read. */
static void http_pipeline(struct dice *dice)
{
	char *text = malloc(100000);
	int count = 1 + roll(dice, 100);
	int at = 0;

	for (int i = 0; i < count; i++)
		at += sprintf(text + at, "%s %s HTTP/1.1\r\nHost: x\r\n\r\n", roll(dice, 5) ? "GET" : "POST", some_path(dice));
	send_bytes(dice, text, at);
	free(text);
}

static void http_idle(struct dice *dice)
{
	int count = 1 + roll(dice, 8);

	for (int i = 0; i < count; i++)
		linger(dice, dial_http());
}

static void http_body(struct dice *dice)
{
	static const char *const BODIES[] = {
		"Content-Length: 99999999999\r\n\r\nabc",
		"Content-Length: -1\r\n\r\n",
		"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
		"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
		"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
		"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
		"Expect: 100-continue\r\nContent-Length: 10\r\n\r\n",
		"Expect: nothing\r\n\r\n",
	};
	char text[512];

	snprintf(text, sizeof(text), "%s %s HTTP/1.1\r\nHost: x\r\n%s", roll(dice, 2) ? "POST" : "GET", some_path(dice),
		 BODIES[roll(dice, sizeof(BODIES) / sizeof(*BODIES))]);
	tell_text(dice, text);
}

static void http_method(struct dice *dice)
{
	static const char *const METHODS[] = {
		"POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "M-SEARCH", "get", "X", "", "HEAD", "QUERY", "PRI *",
	};
	char text[256];

	snprintf(text, sizeof(text), "%s %s HTTP/%s\r\nHost: x\r\n\r\n", METHODS[roll(dice, sizeof(METHODS) / sizeof(*METHODS))],
		 some_path(dice), roll(dice, 3) ? "1.1" : roll(dice, 2) ? "1.0" : "9.9");
	tell_text(dice, text);
}

static void http_upgrade(struct dice *dice)
{
	static const char *const TEXTS[] = {
		"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"CONNECT / HTTP/1.1\r\n\r\n",
		"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAAA\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	};

	tell_text(dice, TEXTS[roll(dice, sizeof(TEXTS) / sizeof(*TEXTS))]);
}

static void http_noise(struct dice *dice)
{
	unsigned char bytes[2000];
	size_t length = 1 + roll(dice, sizeof(bytes));

	for (size_t i = 0; i < length; i++)
		bytes[i] = roll(dice, 256);
	/* Now and then the begin of TLS. */
	if (roll(dice, 4) == 0)
		memcpy(bytes, "\x16\x03\x01\x02\x00\x01", length < 6 ? length : 6);
	send_bytes(dice, (char *)bytes, length);
}

/* Ends its half of the connection in the middle of a request, or right behind it. */
static void http_half_closed(struct dice *dice)
{
	static const char TEXT[] = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
	int fd = dial_http();

	if (fd < 0)
		return;
	send(fd, TEXT, roll(dice, sizeof(TEXT)), MSG_NOSIGNAL);
	shutdown(fd, roll(dice, 2) ? SHUT_WR : SHUT_RDWR);
	linger(dice, fd);
}
