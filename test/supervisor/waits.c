// A handler for tests of the simulated userfaultfd, which waits in the way that its third argument names:
//
//   handler SOCKET MEMORY poll|ppoll|select|pselect|epoll|edge|blocking|spin|sleep|threads

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { REGIONS = 16, MESSAGES = 64, WAITING = 4096, REMOVED = 4096 };

static struct { unsigned long long start, size, offset, page; } regions[REGIONS];
static int count, uffd, connection, memory, epoll, removals, waiters;
static uint64_t waiting[WAITING], removed[REMOVED][2];
static const char *way;

static int is(const char *name) { return strcmp(way, name) == 0; }

static void check(int sound, const char *what) {
  if (sound) return;
  fprintf(stderr, "%s: %s\n", what, strerror(errno));
  exit(3);
}

static void hand_off(void) {
  char text[65536] = {0}, control[CMSG_SPACE(sizeof(int))];
  struct iovec vector = {text, sizeof text - 1};
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  check(recvmsg(connection, &message, 0) > 0, "recvmsg");
  memcpy(&uffd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof uffd);
  const char *form = "{\"base_host_virt_addr\":%llu,\"size\":%llu,\"offset\":%llu,\"page_size\":%llu";
  for (char *at = strchr(text, '{'); at && count < REGIONS; at = strchr(at + 1, '{'), count++)
    check(sscanf(at, form, &regions[count].start, &regions[count].size, &regions[count].offset, &regions[count].page) == 4, "json");
}

// Fills the page of a fault. Returns 0 if it has to be deferred.
static int fill(uint64_t address) {
  static _Thread_local char *bytes;
  int r = 0;
  while (r < count && address - regions[r].start >= regions[r].size) r++;
  check(r < count, "no region");
  uint64_t size = regions[r].page, page = address & ~(size - 1);
  if (!bytes) bytes = malloc(1 << 21);
  check(pread(memory, bytes, size, page - regions[r].start + regions[r].offset) == (ssize_t)size, "pread");
  for (int i = 0; i < removals; i++)
    if (page >= removed[i][0] && page < removed[i][1]) memset(bytes, 0, size);
  struct uffdio_copy copy = {.dst = page, .src = (uintptr_t)bytes, .len = size};
  struct uffdio_range range = {page, size};
  if (ioctl(uffd, UFFDIO_COPY, &copy) == 0) return 1;
  if (errno == EAGAIN) return 0;
  check(errno == EEXIST || errno == ESRCH, "UFFDIO_COPY");
  return ioctl(uffd, UFFDIO_WAKE, &range), 1;
}

static void wait_for_messages(void) {
  struct pollfd fds[2] = {{uffd, POLLIN, 0}, {connection, POLLIN, 0}};
  int limit = waiters ? 1 : -1, highest = (uffd > connection ? uffd : connection) + 1;
  struct timespec brief = {0, 1000000}, *time = waiters ? &brief : NULL;
  struct timeval little = {0, 1000};
  struct epoll_event events[2];
  fd_set set;
  FD_ZERO(&set);
  FD_SET(uffd, &set);
  FD_SET(connection, &set);
  if (is("poll") || is("threads")) poll(fds, 2, limit);
  if (is("ppoll")) ppoll(fds, 2, time, NULL);
  if (is("select")) select(highest, &set, NULL, NULL, waiters ? &little : NULL);
  if (is("pselect")) pselect(highest, &set, NULL, NULL, time, NULL);
  if (is("epoll") || is("edge")) epoll_wait(epoll, events, 2, limit);
  if (is("sleep")) nanosleep(&brief, NULL);
}

static void drain(void) {
  static struct uffd_msg messages[MESSAGES];
  struct iovec halves[2] = {{messages, sizeof messages / 2}, {messages + MESSAGES / 2, sizeof messages / 2}};
  for (;;) {
    // A blocking read would wait, although faults are deferred.
    if (is("blocking") && waiters) fcntl(uffd, F_SETFL, O_NONBLOCK);
    else if (is("blocking")) fcntl(uffd, F_SETFL, 0);
    ssize_t bytes = is("ppoll") ? readv(uffd, halves, 2) : read(uffd, messages, sizeof messages);
    check(bytes >= 0 || errno == EAGAIN, "read");
    if (bytes < 0) return;
    for (ssize_t i = 0; i < bytes / (ssize_t)sizeof *messages; i++) {
      if (messages[i].event == UFFD_EVENT_REMOVE) {
        check(removals < REMOVED, "too many removals");
        removed[removals][0] = messages[i].arg.remove.start, removed[removals++][1] = messages[i].arg.remove.end;
      } else {
        check(waiters < WAITING, "too many faults");
        waiting[waiters++] = messages[i].arg.pagefault.address;
      }
    }
    if (is("blocking")) return;
  }
}

static void *fill_all(void *unused) {
  int left = 0;
  for (int i = 0; i < waiters; i++)
    if (!fill(waiting[i])) waiting[left++] = waiting[i];
  waiters = left;
  return unused;
}

int main(int words, char **word) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  check(words == 4 && strlen(word[1]) < sizeof address.sun_path, "handler SOCKET MEMORY WAY");
  way = word[3];
  memory = open(word[2], O_RDONLY);
  strcpy(address.sun_path, word[1]);
  int listener = socket(AF_UNIX, SOCK_STREAM, 0);
  check(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 1) == 0, "listen");
  connection = accept(listener, NULL, NULL);
  hand_off();
  epoll = epoll_create1(0);
  struct epoll_event event = {.events = EPOLLIN | (is("edge") ? EPOLLET : 0)};
  epoll_ctl(epoll, EPOLL_CTL_ADD, uffd, &event);
  for (;;) {
    wait_for_messages();
    drain();
    pthread_t filler;
    if (!is("threads")) fill_all(NULL);
    else if (pthread_create(&filler, NULL, fill_all, NULL) == 0) pthread_join(filler, NULL);
  }
}
