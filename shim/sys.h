/* SPDX-License-Identifier: Apache-2.0 */
/*
 * System calls without libc: they do not touch errno, cannot be interposed
 * (not even by ourselves: -Bsymbolic would bind read() to our own wrapper),
 * and return the result or a negative errno.
 */
#ifndef ET_SYS_H
#define ET_SYS_H

#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

static inline long et_sys6(long nr, long a, long b, long c, long d, long e, long f)
{
	long ret;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}

static inline long et_sys3(long nr, long a, long b, long c)
{
	long ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c)
			 : "rcx", "r11", "memory");
	return ret;
}

static inline ssize_t et_sys_write(int fd, const void *p, size_t n)
{
	return et_sys3(SYS_write, fd, (long)p, (long)n);
}

static inline ssize_t et_sys_writev(int fd, const struct iovec *iov, int n)
{
	return et_sys3(SYS_writev, fd, (long)iov, n);
}

static inline ssize_t et_sys_read(int fd, void *p, size_t n)
{
	return et_sys3(SYS_read, fd, (long)p, (long)n);
}

static inline ssize_t et_sys_recv(int fd, void *p, size_t n, int flags)
{
	return et_sys6(SYS_recvfrom, fd, (long)p, (long)n, flags, 0, 0);
}

static inline ssize_t et_sys_recvmsg(int fd, struct msghdr *m, int flags)
{
	return et_sys3(SYS_recvmsg, fd, (long)m, flags);
}

static inline ssize_t et_sys_sendmsg(int fd, const struct msghdr *m, int flags)
{
	return et_sys3(SYS_sendmsg, fd, (long)m, flags);
}

static inline int et_sys_close(int fd)
{
	return (int)et_sys3(SYS_close, fd, 0, 0);
}

static inline int et_sys_fcntl(int fd, int cmd, long arg)
{
	return (int)et_sys3(SYS_fcntl, fd, cmd, arg);
}

static inline int et_sys_ppoll(struct pollfd *p, unsigned long n, const struct timespec *t)
{
	return (int)et_sys6(SYS_ppoll, (long)p, (long)n, (long)t, 0, 8, 0);
}

/* A mapping, or a pointer in [-4095, -1] that is a negative errno. */
static inline void *et_sys_mmap(size_t n, int prot, int flags, int fd, uint64_t offset)
{
	return (void *)et_sys6(SYS_mmap, 0, (long)n, prot, flags, fd, (long)offset);
}

static inline long et_sys_error(const void *p)
{
	return (uintptr_t)p >= (uintptr_t)-4095 ? (long)p : 0;
}

/* Shared between processes: the daemon waits on and wakes these words too. */
static inline long et_futex_wait(uint32_t *word, uint32_t value, const struct timespec *timeout)
{
	return et_sys6(SYS_futex, (long)word, FUTEX_WAIT, value, (long)timeout, 0, 0);
}

static inline void et_futex_wake(uint32_t *word, int n)
{
	et_sys6(SYS_futex, (long)word, FUTEX_WAKE, n, 0, 0, 0);
}

/* Monotonic time in nanoseconds, through the vDSO. */
static inline uint64_t et_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void et_pause(void)
{
	__builtin_ia32_pause();
}

#endif
