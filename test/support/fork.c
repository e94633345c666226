/* Forks with the bare system call, and waits for the child. The C library's fork would hold malloc's locks until the
 * fork event is read, which can hang the very thread that must read it. For the same reason the child, a copy of one
 * thread of many, only touches memory and exits. */
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* The child touches pages, each of which should begin with its number plus 1. Returns its wait status: 0 if all did. */
int fork_touch(uint64_t address, uint64_t first, uint64_t count)
{
	uint64_t page_size = sysconf(_SC_PAGESIZE);
	long pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	int status;

	if (pid == 0) {
		int wrong = 0;

		for (uint64_t page = first; page < first + count; page++)
			wrong |= *(volatile uint64_t *)(uintptr_t)(address + page * page_size) != page + 1;
		syscall(SYS_exit_group, wrong);
	}
	if (pid < 0)
		return -1;
	return waitpid((pid_t)pid, &status, 0) < 0 ? -1 : status;
}

/* The child only exits. */
int fork_once(void)
{
	return fork_touch(0, 0, 0);
}
