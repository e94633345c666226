// The hand-off of a guest's memory, for handlers in C: one message with a JSON array of regions and the userfaultfd.
//
// The text may come in pieces, in any order of its members, with members that this file does not know; the descriptor
// may come after the text.

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct region {
  uint64_t start, size, offset, page_size;
};

enum { REGIONS_MOST = 4096, TEXT_MOST = 1 << 20, DEPTH_MOST = 16, FDS_MOST = 16, LATE_MS = 500 };

// A text that is being read. `short_`: it may be the beginning of a valid one.
struct reader {
  const char *at, *end;
  int short_;
};

static int next_is(struct reader *text, char wanted) {
  while (text->at < text->end && strchr(" \t\r\n", *text->at)) text->at++;
  if (text->at == text->end) return text->short_ = 1, 0;
  if (*text->at != wanted) return 0;
  text->at++;
  return 1;
}

static int skip_string(struct reader *text) {
  for (; text->at < text->end; text->at++) {
    if (*text->at == '\\') text->at++;
    else if (*text->at == '"') return text->at++, 1;
  }
  text->at = text->end;
  return text->short_ = 1, 0;
}

// Reads a value; *number is its value if it is a plain integer, and UINT64_MAX otherwise.
static int read_value(struct reader *text, uint64_t *number, int depth) {
  uint64_t ignored;
  *number = UINT64_MAX;
  if (depth > DEPTH_MOST) return 0;
  if (next_is(text, '"')) return skip_string(text);
  for (int object = 0; object < 2; object++) {
    if (!next_is(text, "[{"[object])) continue;
    if (next_is(text, "]}"[object])) return 1;
    do {
      if (object && !(next_is(text, '"') && skip_string(text) && next_is(text, ':'))) return 0;
      if (!read_value(text, &ignored, depth + 1)) return 0;
    } while (next_is(text, ','));
    return next_is(text, "]}"[object]);
  }
  const char *begin = text->at;
  while (text->at < text->end && !strchr(",]} \t\r\n", *text->at)) text->at++;
  if (text->at == text->end) return text->short_ = 1, 0;
  if (text->at > begin && strspn(begin, "0123456789") == (size_t)(text->at - begin))
    *number = strtoull(begin, NULL, 10);
  return text->at > begin;
}

static int read_region(struct reader *text, struct region *region) {
  static const char *const names[] = {"base_host_virt_addr", "size", "offset", "page_size", "page_size_kib"};
  uint64_t values[] = {UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX}, value;
  if (!next_is(text, '{')) return 0;
  do {
    if (!next_is(text, '"')) return 0;
    const char *name = text->at;
    if (!skip_string(text)) return 0;
    size_t length = text->at - 1 - name;
    if (!next_is(text, ':') || !read_value(text, &value, 0)) return 0;
    for (int i = 0; i < 5; i++)
      if (strlen(names[i]) == length && memcmp(names[i], name, length) == 0) values[i] = value;
  } while (next_is(text, ','));
  // The older name of the page size, which holds bytes, too.
  uint64_t page_size = values[3] != UINT64_MAX ? values[3] : values[4] != UINT64_MAX ? values[4] : 4096;
  *region = (struct region){values[0], values[1], values[2], page_size};
  return next_is(text, '}');
}

static int is_sound(const struct region *region, uint64_t file_bytes) {
  uint64_t mask = region->page_size - 1;
  return (region->page_size == 4096 || region->page_size == 1 << 21) && region->size > 0 &&
         ((region->start | region->size | region->offset) & mask) == 0 && region->size <= file_bytes &&
         region->offset <= file_bytes - region->size && region->start < UINT64_MAX - region->size;
}

static int overlaps(const struct region *a, const struct region *b) {
  return a->start < b->start + b->size && b->start < a->start + a->size;
}

// Returns the number of regions, 0 if the text is incomplete, or −1 if it is wrong.
static int parse_regions(const char *bytes, size_t length, struct region *regions, uint64_t file_bytes) {
  struct reader text = {bytes, bytes + length, 0};
  int count = 0;
  if (next_is(&text, '[')) {
    do {
      if (count == REGIONS_MOST) return -1;
      if (!read_region(&text, &regions[count])) return text.short_ ? 0 : -1;
      if (!is_sound(&regions[count], file_bytes)) return -1;
      for (int i = 0; i < count; i++)
        if (overlaps(&regions[i], &regions[count])) return -1;
      count++;
    } while (next_is(&text, ','));
    if (next_is(&text, ']')) return count;
  }
  return text.short_ ? 0 : -1;
}

// Receives a hand-off. Returns the number of regions, or −1 with the reason on stderr. *fd: the userfaultfd.
static int receive_hand_off(int connection, struct region *regions, uint64_t file_bytes, int *fd) {
  static char text[TEXT_MOST];
  size_t length = 0;
  int count = 0;
  const char *reason = "the text is too long";
  *fd = -1;
  while (length < sizeof text && (count <= 0 || *fd < 0)) {
    struct pollfd readable = {connection, POLLIN, 0};
    reason = "no descriptor came";
    if (count > 0 && poll(&readable, 1, LATE_MS) <= 0) break;
    char control[CMSG_SPACE(FDS_MOST * sizeof(int))];
    struct iovec vector = {text + length, sizeof text - length};
    struct msghdr message = {
        .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t received = recvmsg(connection, &message, MSG_CMSG_CLOEXEC);
    for (struct cmsghdr *one = CMSG_FIRSTHDR(&message); received >= 0 && one; one = CMSG_NXTHDR(&message, one)) {
      if (one->cmsg_level != SOL_SOCKET || one->cmsg_type != SCM_RIGHTS) continue;
      for (size_t i = 0; i < (one->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
        int came;
        memcpy(&came, CMSG_DATA(one) + i * sizeof came, sizeof came);
        // The first one is the userfaultfd.
        if (*fd < 0) *fd = came;
        else close(came);
      }
    }
    reason = "the connection was closed";
    if (received <= 0) break;
    length += received;
    if (count == 0) count = parse_regions(text, length, regions, file_bytes);
    reason = "the text is no array of regions of the memory file";
    if (count < 0) break;
  }
  if (count > 0 && *fd >= 0) return count;
  fprintf(stderr, "handler: no hand-off: %s\n", reason);
  if (*fd >= 0) close(*fd);
  return -1;
}
