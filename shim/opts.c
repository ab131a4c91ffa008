/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options and other properties of a socket. Those that change what goes over
 * the wire are for the kernel: the connection is given back first. Those that
 * only matter once the kernel has it again are set on the sleeping socket.
 */
#include "intercept.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>

#include "epoll.h"
#include "fds.h"
#include "sock.h"
#include "sys.h"

/* ---- fcntl, ioctl -------------------------------------------------------- */

static int set_flags(struct et_sock *s, int fd, long flags)
{
	int r;

	if (flags & O_ASYNC)
		et_sock_pin_down(s, fd, ETRAN_PATH_API);
	r = et_sys_fcntl(fd, F_SETFL, flags);
	if (r >= 0)
		atomic_store(&s->nonblock, (flags & O_NONBLOCK) != 0);
	return r;
}

static int do_fcntl(int fd, int cmd, long arg, int (*real)(int, int, ...))
{
	struct et_sock *s;
	int r;

	if (cmd == F_DUPFD || cmd == F_DUPFD_CLOEXEC)
		return et_fd_copied(fd, real(fd, cmd, arg));
	s = et_sock_enter(fd);
	if (!s)
		return real(fd, cmd, arg);
	r = set_flags(s, fd, arg);
	et_sock_leave(s);
	return (int)et_return(r);
}

static inline bool fcntl_concerns(int cmd)
{
	return cmd == F_SETFL || cmd == F_DUPFD || cmd == F_DUPFD_CLOEXEC;
}

/*
 * As the kernel has them: one argument more, used or not. In C a variadic
 * function has a frame and cannot go on to libc's without coming back, which
 * takes 40 ns more here.
 */
ET_EXPORT int et_fcntl(int fd, int cmd, long arg) __asm__("fcntl");
ET_EXPORT int et_fcntl64(int fd, int cmd, long arg) __asm__("fcntl64");
ET_EXPORT int et_fcntl_alias(int fd, int cmd, long arg) __asm__("__fcntl");
ET_EXPORT int et_ioctl(int fd, unsigned long request, void *arg) __asm__("ioctl");

ET_EXPORT int et_fcntl(int fd, int cmd, long arg)
{
	if (et_likely(!fcntl_concerns(cmd)))
		return et_real.fcntl(fd, cmd, arg);
	return do_fcntl(fd, cmd, arg, et_real.fcntl);
}

ET_EXPORT int et_fcntl64(int fd, int cmd, long arg)
{
	if (et_likely(!fcntl_concerns(cmd)))
		return et_real.fcntl64(fd, cmd, arg);
	return do_fcntl(fd, cmd, arg, et_real.fcntl64);
}

ET_EXPORT int et_fcntl_alias(int fd, int cmd, long arg)
{
	return et_fcntl(fd, cmd, arg);
}

/* ET_KERNEL: do the real call. */
static int fast_ioctl(struct et_sock *s, struct et_conn *c, unsigned long request, int *value)
{
	switch (request) {
	case FIONBIO:
	case FIOCLEX:
	case FIONCLEX:
		return ET_KERNEL;
	case FIONREAD:
		et_rx_poll();
		/* The end of the stream is the kernel's to say. */
		if (!et_conn_readable(c) && et_sock_wants_demote(s, c))
			break;
		*value = (int)et_conn_readable(c);
		return 0;
	case TIOCOUTQ:
		*value = (int)et_conn_unsent(c);
		return 0;
	}
	et_sock_demote(s, ETRAN_PATH_API);
	return ET_KERNEL;
}

static __attribute__((noinline)) int do_ioctl(struct et_sock *s, int fd, unsigned long request,
					      void *arg)
{
	struct et_conn *c = et_sock_steady(s, fd);
	int r = ET_KERNEL;

	if (c && !et_nowhere(arg))
		r = fast_ioctl(s, c, request, arg);
	if (request == FIOASYNC)
		et_sock_pin_down(s, fd, ETRAN_PATH_API);
	if (r == ET_KERNEL) {
		r = et_real.ioctl(fd, request, arg);
		if (r == 0 && request == FIONBIO)
			atomic_store(&s->nonblock, *(int *)arg != 0);
	}
	et_sock_leave(s);
	return r;
}

ET_EXPORT int et_ioctl(int fd, unsigned long request, void *arg)
{
	struct et_sock *s = et_sock_enter(fd);

	if (et_likely(!s))
		return et_real.ioctl(fd, request, arg);
	return do_ioctl(s, fd, request, arg);
}

/* ---- options ------------------------------------------------------------- */

/* Harmless on a socket that sleeps. */
static bool sleeping_option(int level, int name)
{
	if (level == SOL_SOCKET)
		return name == SO_LINGER || name == SO_RCVBUF || name == SO_SNDBUF ||
		       name == SO_RCVTIMEO || name == SO_SNDTIMEO || name == SO_PRIORITY;
	/* The fast path sends at once, corked or not: TCP promises no segment sizes. */
	return level == IPPROTO_TCP &&
	       (name == TCP_NODELAY || name == TCP_CORK || name == TCP_QUICKACK ||
		name == TCP_KEEPIDLE || name == TCP_KEEPINTVL || name == TCP_KEEPCNT ||
		name == TCP_NOTSENT_LOWAT);
}

/* They change what reading is: for how much it waits, what comes with it. */
static bool reading_option(int level, int name)
{
	if (level == SOL_SOCKET)
		return name == SO_RCVLOWAT || name == SO_PEEK_OFF || name == SO_TIMESTAMP_OLD ||
		       name == SO_TIMESTAMP_NEW || name == SO_TIMESTAMPNS_OLD ||
		       name == SO_TIMESTAMPNS_NEW || name == SO_TIMESTAMPING_OLD ||
		       name == SO_TIMESTAMPING_NEW;
	return level == IPPROTO_TCP && name == TCP_INQ;
}

/* The time-outs have changed. A negative one lets nothing wait, and getsockopt()
 * does not tell it from none. */
static void note_timeout(struct et_sock *s, int name, const struct timeval *t)
{
	int64_t known = t->tv_sec < 0 ? 1 : ET_TIMEOUT_UNKNOWN;

	if (name == SO_RCVTIMEO)
		atomic_store(&s->timeout[0], known);
	if (name == SO_SNDTIMEO)
		atomic_store(&s->timeout[1], known);
}

ET_EXPORT int setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
	struct et_sock *s = et_sock_enter(fd);
	int r;

	if (et_likely(!s))
		return et_real.setsockopt(fd, level, name, value, len);
	et_sock_steady(s, fd);
	if (reading_option(level, name))
		et_sock_pin_down(s, fd, ETRAN_PATH_OPTION);
	else if (!sleeping_option(level, name))
		et_sock_to_kernel(s, fd, ETRAN_PATH_API);
	r = et_real.setsockopt(fd, level, name, value, len);
	if (r == 0 && level == SOL_SOCKET && (name == SO_RCVTIMEO || name == SO_SNDTIMEO))
		note_timeout(s, name, value);
	et_sock_leave(s);
	return r;
}

/* While the kernel's socket sleeps these two are switched off on it. */
static int kept_option(struct et_sock *s, struct et_conn *c, int level, int name, void *value,
		       socklen_t *len)
{
	uint32_t keepalive, user_timeout, answer;

	if (level == SOL_SOCKET && name == SO_ATTACH_FILTER) {
		et_sock_demote(s, ETRAN_PATH_API);
		return ET_KERNEL;
	}
	if (et_nowhere(value) || et_nowhere(len) || (int)*len < 0)
		return ET_KERNEL;
	et_conn_kept_options(c, &keepalive, &user_timeout);
	if (level == SOL_SOCKET && name == SO_KEEPALIVE)
		answer = keepalive;
	else if (level == IPPROTO_TCP && name == TCP_USER_TIMEOUT)
		answer = user_timeout;
	else
		return ET_KERNEL;
	if (*len > sizeof(answer))
		*len = sizeof(answer);
	memcpy(value, &answer, *len);
	return 0;
}

static bool tells_state(int level, int name)
{
	return (level == SOL_SOCKET && name == SO_ERROR) ||
	       (level == IPPROTO_TCP && name == TCP_INFO);
}

ET_EXPORT int getsockopt(int fd, int level, int name, void *value, socklen_t *len)
{
	struct et_sock *s = et_sock_enter(fd);
	struct et_conn *c;
	int r = ET_KERNEL;

	if (et_likely(!s))
		return et_real.getsockopt(fd, level, name, value, len);
	if (tells_state(level, name))
		et_sock_catch_up(s, fd);
	c = et_sock_steady(s, fd);
	if (c)
		r = kept_option(s, c, level, name, value, len);
	if (r == ET_KERNEL)
		r = et_real.getsockopt(fd, level, name, value, len);
	et_sock_leave(s);
	return r;
}

ET_EXPORT int shutdown(int fd, int how)
{
	struct et_sock *s = et_sock_enter(fd);
	int r;

	if (et_likely(!s))
		return et_real.shutdown(fd, how);
	et_sock_pin_down(s, fd, ETRAN_PATH_CLOSE);
	r = et_real.shutdown(fd, how);
	et_sock_leave(s);
	return r;
}

/* libc will read, write or close it where nobody sees it: a plain socket. */
static void leave_to_libc(int fd)
{
	struct et_sock *s = et_sock_enter(fd);

	if (!s)
		return;
	et_sock_pin_down(s, fd, ETRAN_PATH_API);
	et_sock_forget(s);
	et_sock_leave(s);
}

ET_EXPORT FILE *fdopen(int fd, const char *mode)
{
	leave_to_libc(fd);
	return et_real.fdopen(fd, mode);
}

#define AIO(name, type)                                                                            \
	ET_EXPORT int name(struct type *job)                                                       \
	{                                                                                          \
		leave_to_libc(job->aio_fildes);                                                    \
		return et_real.name(job);                                                          \
	}

AIO(aio_read, aiocb)
AIO(aio_read64, aiocb64)
AIO(aio_write, aiocb)
AIO(aio_write64, aiocb64)

#define LIO(name, type)                                                                            \
	ET_EXPORT int name(int mode, struct type *const jobs[], int count, struct sigevent *event) \
	{                                                                                          \
		for (int i = 0; i < count; i++)                                                    \
			if (jobs[i])                                                               \
				leave_to_libc(jobs[i]->aio_fildes);                                \
		return et_real.name(mode, jobs, count, event);                                     \
	}

LIO(lio_listio, aiocb)
LIO(lio_listio64, aiocb64)
