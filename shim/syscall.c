/* SPDX-License-Identifier: Apache-2.0 */
/*
 * syscall(): some programs make their system calls by number. Those that concern
 * us are made by the functions of the same name; all others go on to libc's
 * function with the stack as it is, which matters to clone.
 */
#include "intercept.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>

#include "fdtable.h"
#include "fds.h"
#include "process.h"
#include "signals.h"
#include "sys.h"

#define NS_PER_S 1000000000u
#define NUMBERS 512

/* What is ours of a system call. */
enum concern {
	NOTHING = 0,
	IF_OURS, /* the first argument is a descriptor: if it is one of ours */
	ALWAYS,
	CREATES, /* the result is a new descriptor */
};

static const uint8_t concerns[NUMBERS] = {
	[SYS_read] = IF_OURS,
	[SYS_write] = IF_OURS,
	[SYS_readv] = IF_OURS,
	[SYS_writev] = IF_OURS,
	[SYS_preadv2] = IF_OURS,
	[SYS_pwritev2] = IF_OURS,
	[SYS_recvfrom] = IF_OURS,
	[SYS_sendto] = IF_OURS,
	[SYS_sendfile] = IF_OURS,
	[SYS_listen] = IF_OURS,
	[SYS_connect] = IF_OURS,
	[SYS_bind] = IF_OURS,
	[SYS_getsockname] = IF_OURS,
	[SYS_getpeername] = IF_OURS,
	[SYS_getsockopt] = IF_OURS,
	[SYS_setsockopt] = IF_OURS,
	[SYS_shutdown] = IF_OURS,
	[SYS_close] = IF_OURS,
	[SYS_dup] = IF_OURS,
	[SYS_fcntl] = IF_OURS,
	[SYS_ioctl] = IF_OURS,
	[SYS_epoll_wait] = IF_OURS,
	[SYS_epoll_pwait] = IF_OURS,
	[SYS_epoll_pwait2] = IF_OURS,
	[SYS_recvmsg] = ALWAYS, /* messages may carry descriptors */
	[SYS_recvmmsg] = ALWAYS,
	[SYS_sendmsg] = ALWAYS,
	[SYS_sendmmsg] = ALWAYS,
	[SYS_splice] = ALWAYS,
	[SYS_socket] = ALWAYS,
	[SYS_socketpair] = ALWAYS,
	[SYS_accept] = ALWAYS,
	[SYS_accept4] = ALWAYS,
	[SYS_close_range] = ALWAYS,
	[SYS_dup2] = ALWAYS,
	[SYS_dup3] = ALWAYS,
	[SYS_pipe] = ALWAYS,
	[SYS_pipe2] = ALWAYS,
	[SYS_poll] = ALWAYS,
	[SYS_ppoll] = ALWAYS,
	[SYS_select] = ALWAYS,
	[SYS_pselect6] = ALWAYS,
	[SYS_epoll_create] = ALWAYS,
	[SYS_epoll_create1] = ALWAYS,
	[SYS_epoll_ctl] = ALWAYS,
	[SYS_execve] = ALWAYS,
	[SYS_execveat] = ALWAYS,
	[SYS_fork] = ALWAYS,
	[SYS_clone] = ALWAYS,
	[SYS_clone3] = ALWAYS,
	[SYS_rt_sigaction] = ALWAYS,
	[SYS_open] = CREATES,
	[SYS_openat] = CREATES,
	[SYS_openat2] = CREATES,
	[SYS_creat] = CREATES,
	[SYS_open_by_handle_at] = CREATES,
	[SYS_open_tree] = CREATES,
	[SYS_memfd_create] = CREATES,
	[SYS_memfd_secret] = CREATES,
	[SYS_mq_open] = CREATES,
	[SYS_eventfd] = CREATES,
	[SYS_eventfd2] = CREATES,
	[SYS_signalfd] = CREATES,
	[SYS_signalfd4] = CREATES,
	[SYS_timerfd_create] = CREATES,
	[SYS_inotify_init] = CREATES,
	[SYS_inotify_init1] = CREATES,
	[SYS_fanotify_init] = CREATES,
	[SYS_pidfd_open] = CREATES,
	[SYS_pidfd_getfd] = CREATES,
	[SYS_userfaultfd] = CREATES,
	[SYS_perf_event_open] = CREATES,
	[SYS_io_uring_setup] = CREATES,
	[SYS_fsopen] = CREATES,
	[SYS_fspick] = CREATES,
	[SYS_fsmount] = CREATES,
	[SYS_landlock_create_ruleset] = CREATES,
};

/* As the kernel leaves it: what is left of the time. libc's functions do not. */
static void leave_rest(struct timespec *t, uint64_t start)
{
	uint64_t total, gone = et_now_ns() - start;

	if (!t || t->tv_sec < 0 || (uint64_t)t->tv_sec >= UINT64_MAX / NS_PER_S - 1)
		return;
	total = (uint64_t)t->tv_sec * NS_PER_S + (uint64_t)t->tv_nsec;
	total = total > gone ? total - gone : 0;
	t->tv_sec = (time_t)(total / NS_PER_S);
	t->tv_nsec = (long)(total % NS_PER_S);
}

static long by_ppoll(const long *a)
{
	struct timespec *t = (struct timespec *)a[2];
	uint64_t start = et_now_ns();
	long r = ppoll((struct pollfd *)a[0], (nfds_t)a[1], t, (const sigset_t *)a[3]);

	leave_rest(t, start);
	return r;
}

static long by_pselect(const long *a)
{
	const struct {
		const sigset_t *mask;
		size_t size;
	} *set = (const void *)a[5];
	struct timespec *t = (struct timespec *)a[4];
	uint64_t start = et_now_ns();
	long r = pselect((int)a[0], (fd_set *)a[1], (fd_set *)a[2], (fd_set *)a[3], t,
			 set ? set->mask : NULL);

	leave_rest(t, start);
	return r;
}

static long raw(long nr, const long *a)
{
	return et_return(et_sys6(nr, a[0], a[1], a[2], a[3], a[4], a[5]));
}

/* A process with memory and descriptors of its own, on the caller's stack. */
static long by_fork(long nr, const long *a, uint64_t flags, uint64_t stack)
{
	long r;

	if (flags & (CLONE_VM | CLONE_FILES) || stack)
		return raw(nr, a);
	et_process_unwatched();
	r = raw(nr, a);
	if (r == 0)
		et_process_child();
	return r;
}

static long by_clone3(const long *a)
{
	const struct clone_args *args = (const void *)a[0];

	if (!args || (size_t)a[1] < CLONE_ARGS_SIZE_VER0)
		return raw(SYS_clone3, a);
	return by_fork(SYS_clone3, a, args->flags, args->stack);
}

static long by_sigaction(const long *a)
{
	long r = raw(SYS_rt_sigaction, a);

	if (r == 0 && a[1])
		et_signals_learn((int)a[0]);
	return r;
}

/* clang-format off */
static long by_name(long nr, const long *a)
{
	const int fd = (int)a[0];
	void *const p = (void *)a[1];

	switch (nr) {
	case SYS_read: return read(fd, p, (size_t)a[2]);
	case SYS_write: return write(fd, p, (size_t)a[2]);
	case SYS_readv: return readv(fd, p, (int)a[2]);
	case SYS_writev: return writev(fd, p, (int)a[2]);
	case SYS_preadv2: return preadv2(fd, p, (int)a[2], a[3], (int)a[5]);
	case SYS_pwritev2: return pwritev2(fd, p, (int)a[2], a[3], (int)a[5]);
	case SYS_recvfrom: return recvfrom(fd, p, (size_t)a[2], (int)a[3], (void *)a[4], (void *)a[5]);
	case SYS_sendto: return sendto(fd, p, (size_t)a[2], (int)a[3], (void *)a[4], (socklen_t)a[5]);
	case SYS_recvmsg: return recvmsg(fd, p, (int)a[2]);
	case SYS_recvmmsg: return recvmmsg(fd, p, (unsigned int)a[2], (int)a[3], (void *)a[4]);
	case SYS_sendmsg: return sendmsg(fd, p, (int)a[2]);
	case SYS_sendmmsg: return sendmmsg(fd, p, (unsigned int)a[2], (int)a[3]);
	case SYS_sendfile: return sendfile(fd, (int)a[1], (off_t *)a[2], (size_t)a[3]);
	case SYS_splice: return splice(fd, p, (int)a[2], (off64_t *)a[3], (size_t)a[4], (unsigned int)a[5]);
	case SYS_socket: return socket(fd, (int)a[1], (int)a[2]);
	case SYS_socketpair: return socketpair(fd, (int)a[1], (int)a[2], (int *)a[3]);
	case SYS_listen: return listen(fd, (int)a[1]);
	case SYS_accept: return accept(fd, p, (socklen_t *)a[2]);
	case SYS_accept4: return accept4(fd, p, (socklen_t *)a[2], (int)a[3]);
	case SYS_connect: return connect(fd, p, (socklen_t)a[2]);
	case SYS_bind: return bind(fd, p, (socklen_t)a[2]);
	case SYS_getsockname: return getsockname(fd, p, (socklen_t *)a[2]);
	case SYS_getpeername: return getpeername(fd, p, (socklen_t *)a[2]);
	case SYS_getsockopt: return getsockopt(fd, (int)a[1], (int)a[2], (void *)a[3], (socklen_t *)a[4]);
	case SYS_setsockopt: return setsockopt(fd, (int)a[1], (int)a[2], (void *)a[3], (socklen_t)a[4]);
	case SYS_shutdown: return shutdown(fd, (int)a[1]);
	case SYS_close: return close(fd);
	case SYS_close_range: return close_range((unsigned int)a[0], (unsigned int)a[1], (int)a[2]);
	case SYS_dup: return dup(fd);
	case SYS_dup2: return dup2(fd, (int)a[1]);
	case SYS_dup3: return dup3(fd, (int)a[1], (int)a[2]);
	case SYS_pipe: return pipe((int *)a[0]);
	case SYS_pipe2: return pipe2((int *)a[0], (int)a[1]);
	case SYS_fcntl: return fcntl(fd, (int)a[1], a[2]);
	case SYS_ioctl: return ioctl(fd, (unsigned long)a[1], a[2]);
	case SYS_poll: return poll((struct pollfd *)a[0], (nfds_t)a[1], (int)a[2]);
	case SYS_ppoll: return by_ppoll(a);
	case SYS_select: return select(fd, p, (fd_set *)a[2], (fd_set *)a[3], (struct timeval *)a[4]);
	case SYS_pselect6: return by_pselect(a);
	case SYS_epoll_create: return epoll_create(fd);
	case SYS_epoll_create1: return epoll_create1(fd);
	case SYS_epoll_ctl: return epoll_ctl(fd, (int)a[1], (int)a[2], (struct epoll_event *)a[3]);
	case SYS_epoll_wait: return epoll_wait(fd, p, (int)a[2], (int)a[3]);
	case SYS_epoll_pwait: return epoll_pwait(fd, p, (int)a[2], (int)a[3], (const sigset_t *)a[4]);
	case SYS_epoll_pwait2: return epoll_pwait2(fd, p, (int)a[2], (struct timespec *)a[3], (const sigset_t *)a[4]);
	case SYS_execve: return execve((const char *)a[0], p, (char *const *)a[2]);
	case SYS_execveat: return execveat(fd, p, (char *const *)a[2], (char *const *)a[3], (int)a[4]);
	case SYS_fork: return by_fork(nr, a, 0, 0);
	case SYS_clone: return by_fork(nr, a, (uint64_t)a[0], (uint64_t)a[1]);
	case SYS_clone3: return by_clone3(a);
	case SYS_rt_sigaction: return by_sigaction(a);
	default: return et_fd_new((int)raw(nr, a));
	}
}
/* clang-format on */

static __attribute__((noinline)) long ours(long nr, long a, long b, long c, long d, long e, long f)
{
	const long args[6] = {a, b, c, d, e, f};

	return by_name(nr, args);
}

/* In C the arguments of a variadic function cannot be passed on as they are. */
ET_EXPORT long et_syscall(long nr, long a, long b, long c, long d, long e,
			  long f) __asm__("syscall");

ET_EXPORT long et_syscall(long nr, long a, long b, long c, long d, long e, long f)
{
	uint8_t concern = (unsigned long)nr < NUMBERS ? concerns[nr] : NOTHING;

	if (et_likely(concern == NOTHING || (concern == IF_OURS && !et_fd_entry((int)a))))
		return et_real.syscall(nr, a, b, c, d, e, f);
	return ours(nr, a, b, c, d, e, f);
}
