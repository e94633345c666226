/* One read or write by io_uring, without its library. */
#include <errno.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* Ways to name the memory. */
enum { PLAIN = 0, REGISTERED = 1, WORKER = 2 };

static int transfer(int ring, const struct io_uring_params *params, int write, int way, int fd, uint64_t address,
		    uint32_t length, uint64_t offset)
{
	size_t sq_bytes = params->sq_off.array + params->sq_entries * sizeof(uint32_t);
	size_t cq_bytes = params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe);
	size_t bytes = sq_bytes > cq_bytes ? sq_bytes : cq_bytes;
	char *rings = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	struct io_uring_sqe *sqe = mmap(0, params->sq_entries * sizeof(*sqe), PROT_READ | PROT_WRITE, MAP_SHARED, ring,
					IORING_OFF_SQES);
	struct iovec memory = { (void *)(uintptr_t)address, length };
	int result;

	if (rings == MAP_FAILED || sqe == MAP_FAILED)
		return -errno;
	memset(sqe, 0, sizeof(*sqe));
	sqe->fd = fd;
	sqe->addr = address;
	sqe->len = length;
	sqe->off = offset;
	sqe->opcode = way == REGISTERED ? (write ? IORING_OP_WRITE_FIXED : IORING_OP_READ_FIXED)
					: (write ? IORING_OP_WRITE : IORING_OP_READ);
	/* The kernel's own thread makes the call. */
	if (way == WORKER)
		sqe->flags = IOSQE_ASYNC;
	if (way == REGISTERED && syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &memory, 1) < 0)
		return -errno;
	((uint32_t *)(rings + params->sq_off.array))[0] = 0;
	__atomic_store_n((uint32_t *)(rings + params->sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) < 0)
		return -errno;
	result = ((struct io_uring_cqe *)(rings + params->cq_off.cqes))[0].res;
	munmap(rings, bytes);
	munmap(sqe, params->sq_entries * sizeof(*sqe));
	return result;
}

/* The bytes transferred, or −errno; −ENOSYS: io_uring cannot be used here. */
int uring_transfer(int write, int way, int fd, uint64_t address, uint32_t length, uint64_t offset)
{
	struct io_uring_params params = { 0 };
	int ring = syscall(SYS_io_uring_setup, 4, &params);
	int result;

	if (ring < 0 || !(params.features & IORING_FEAT_SINGLE_MMAP)) {
		if (ring >= 0)
			close(ring);
		return -ENOSYS;
	}
	result = transfer(ring, &params, write, way, fd, address, length, offset);
	close(ring);
	return result;
}
