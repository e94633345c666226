/* Texts that are no monitor's. */

#define REGION "{\"base_host_virt_addr\":65536,\"size\":4096,\"offset\":0,\"page_size\":4096}"

static const char *one_of(struct dice *dice, const char *const *texts, size_t count)
{
	return texts[roll(dice, count)];
}
#define ONE_OF(dice, texts) one_of(dice, texts, sizeof(texts) / sizeof(*(texts)))

static void no_array(struct dice *dice)
{
	static const char *const TEXTS[] = { "{}",   REGION, "1",      "null",    "\"[]\"", "true", "",	   "\xef\xbb\xbf[]",
					     "[[]]", "[1]",  "[null]", "[[[]]]",  "[\"\"]", "[]",   "[true]", "\0\0\0\0",
					     "]",    "}",    "[}",     "GET / HTTP/1.1\r\n\r\n", "[" REGION ",]", "[" REGION "}" };

	send_words(dice, ONE_OF(dice, TEXTS));
}

static void deep(struct dice *dice)
{
	static const char *const HEADS[] = { "", "[", "[{\"page_size\":", "[{\"base_host_virt_addr\":", "[{\"size\":", "[{\"offset\":",
					     "[" REGION "," };
	static const char *const TAILS[] = { "", "]", "}]", "}]", "}]", "}]", "]" };
	unsigned which = roll(dice, 7);
	size_t depth = 1 + roll(dice, roll(dice, 2) ? 200000 : 5000);
	char *text = malloc(12 * depth + 200);
	size_t at = sprintf(text, "%s", HEADS[which]);

	if (roll(dice, 2)) {
		memset(text + at, '[', depth);
		memset(text + at + depth, ']', depth);
		at += 2 * depth;
	} else {
		for (size_t i = 0; i < depth; i++)
			at += sprintf(text + at, "{\"a\":");
		at += sprintf(text + at, "1");
		memset(text + at, '}', depth);
		at += depth;
	}
	at += sprintf(text + at, "%s", TAILS[which]);
	send_text(dice, text, at);
	free(text);
}

static const char *const NUMBERS[] = {
	"-1",   "-4096",  "1e999", "-1e999",	      "18446744073709551616", "9007199254740992", "9007199254740991", "NaN",
	"0.5",  "1e3",	  "null",  "\"4096\"",	      "Infinity",	      "4095",		  "4097",	      "18446744073709547520",
	"[]",   "{}",	  "0",	   "9007199254738944", "-0",		      "0x1000",		  "1e-400",	      "281474976710656",
	"true", "4194304", "262144", "266240", "99999999999999999999999999999999999999999999999999",
};

/* A region whose numbers are odd: huge, negative, overflowing, unaligned, no numbers at all. */
static void odd_numbers(struct dice *dice)
{
	static const char *const NAMES[] = { "base_host_virt_addr", "size", "offset", "page_size", "page_size_kib" };
	char text[2000];
	int at = sprintf(text, "[{\"base_host_virt_addr\":65536");

	for (int i = 0; i < 5; i++)
		at += sprintf(text + at, ",\"%s\":%s", NAMES[roll(dice, 5)], roll(dice, 2) ? "4096" : ONE_OF(dice, NUMBERS));
	sprintf(text + at, "}]");
	send_words(dice, text);
}

static void overlapping(struct dice *dice)
{
	char text[4000];
	int at = sprintf(text, "["), count = 2 + roll(dice, 20);

	for (int i = 0; i < count; i++)
		at += sprintf(text + at, "%s{\"base_host_virt_addr\":%d,\"size\":%d,\"offset\":%d,\"page_size\":4096}", i ? "," : "",
			      (int)(65536 + roll(dice, 40) * 4096), (int)(roll(dice, 40) * 4096), (int)(roll(dice, 40) * 4096));
	sprintf(text + at, "]");
	send_words(dice, text);
}

static void odd_keys(struct dice *dice)
{
	static const char *const TEXTS[] = {
		"[{\"__proto__\":{\"size\":4096},\"base_host_virt_addr\":65536,\"offset\":0,\"page_size\":4096}]",
		"[{\"size\":4096,\"size\":-1,\"size\":8192,\"base_host_virt_addr\":65536,\"offset\":0,\"page_size\":4096}]",
		"[{\"constructor\":1,\"toString\":2,\"base_host_virt_addr\":{\"valueOf\":1}}]",
		"[{\"toJSON\":1,\"page_size\":{\"toJSON\":{}}}]",
		"[{\"\":0}]",
		"[{\"\\u0000\":0,\"\\ud800\":1}]",
		"[{\"base_host_virt_addr\":\"\\ud800\"}]",
		"[{\"size\" :4096 , \"base_host_virt_addr\"\n:65536,\"offset\":0}]",
	};

	send_words(dice, ONE_OF(dice, TEXTS));
}

static void no_utf8(struct dice *dice)
{
	char text[300] = "[{\"";
	size_t length = 3 + roll(dice, 200);

	for (size_t i = 3; i < length; i++)
		text[i] = roll(dice, 256);
	memcpy(text + length, "\":1}]", 5);
	send_text(dice, text, length + 5);
}

static void spaces(struct dice *dice)
{
	size_t length = (1 << 20) + roll(dice, 3) * 4096 - 4096;
	char *text = malloc(length + 200);

	memset(text, roll(dice, 2) ? ' ' : '\n', length);
	switch (roll(dice, 3)) {
	case 0:
		memcpy(text, "[", 1);
		break;
	case 1:
		memcpy(text + length - 2, "[]", 2);
		break;
	}
	send_text(dice, text, length);
	free(text);
}

static void many_regions(struct dice *dice)
{
	char *text = malloc(TEXT_MOST);
	size_t at = sprintf(text, "["), count = 1 + roll(dice, roll(dice, 4) ? 7000 : 100000);

	for (size_t i = 0; i < count && at < TEXT_MOST - 200; i++)
		at += sprintf(text + at, "%s{\"base_host_virt_addr\":%zu,\"size\":4096,\"offset\":0}", i ? "," : "", 65536 + i * 8192);
	at += sprintf(text + at, "]");
	send_text(dice, text, at);
	free(text);
}

static void long_value(struct dice *dice)
{
	size_t length = 1 + roll(dice, 1 << 20);
	char *text = malloc(length + 200);
	int head = sprintf(text, "[{\"page_size\":\"");

	memset(text + head, 'x', length);
	strcpy(text + head + length, "\"}]");
	send_text(dice, text, head + length + 3);
	free(text);
}

/* The right text with some bytes changed, doubled or left out. */
static void damaged(struct dice *dice)
{
	struct guest guest = plain_guest();
	char text[600];
	size_t length = sprintf(text, "%s", text_of(&guest));

	for (int i = roll(dice, 4); i >= 0; i--) {
		size_t at = roll(dice, length), rest = length - at - 1;

		if (roll(dice, 3) == 0)
			memmove(text + at, text + at + 1, rest), length--;
		else if (roll(dice, 2))
			text[at] = "[]{}\",:0-9.eE\\ \n"[roll(dice, 16)];
		else
			memmove(text + at + 1, text + at, rest + 1), length++;
	}
	send_text(dice, text, length);
}
