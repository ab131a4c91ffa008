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
	if (et_likely(cmd != F_SETFL))
		return real(fd, cmd, arg);
	s = et_sock_enter(fd);
	if (!s)
		return real(fd, cmd, arg);
	r = set_flags(s, fd, arg);
	et_sock_leave(s);
	return (int)et_return(r);
}

ET_EXPORT int fcntl(int fd, int cmd, ...)
{
	va_list ap;
	long arg;

	va_start(ap, cmd);
	arg = va_arg(ap, long);
	va_end(ap);
	return do_fcntl(fd, cmd, arg, et_real.fcntl);
}

ET_EXPORT int fcntl64(int fd, int cmd, ...)
{
	va_list ap;
	long arg;

	va_start(ap, cmd);
	arg = va_arg(ap, long);
	va_end(ap);
	return do_fcntl(fd, cmd, arg, et_real.fcntl64);
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

ET_EXPORT int ioctl(int fd, unsigned long request, ...)
{
	struct et_sock *s;
	struct et_conn *c;
	va_list ap;
	void *arg;
	int r = ET_KERNEL;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	s = et_sock_enter(fd);
	if (et_likely(!s))
		return et_real.ioctl(fd, request, arg);
	c = et_sock_steady(s, fd);
	if (c && arg)
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

ET_EXPORT int setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
	struct et_sock *s = et_sock_enter(fd);
	int r;

	if (et_likely(!s))
		return et_real.setsockopt(fd, level, name, value, len);
	et_sock_steady(s, fd);
	/* Reads wait for an amount of data: the fast path does not. */
	if (level == SOL_SOCKET && name == SO_RCVLOWAT)
		et_sock_pin_down(s, fd, ETRAN_PATH_OPTION);
	else if (!sleeping_option(level, name))
		et_sock_to_kernel(s, fd, ETRAN_PATH_API);
	r = et_real.setsockopt(fd, level, name, value, len);
	if (level == SOL_SOCKET && name == SO_RCVTIMEO)
		atomic_store(&s->timeout[0], ET_TIMEOUT_UNKNOWN);
	if (level == SOL_SOCKET && name == SO_SNDTIMEO)
		atomic_store(&s->timeout[1], ET_TIMEOUT_UNKNOWN);
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
	if (!value || !len || *len < sizeof(int))
		return ET_KERNEL;
	et_conn_kept_options(c, &keepalive, &user_timeout);
	if (level == SOL_SOCKET && name == SO_KEEPALIVE)
		answer = keepalive;
	else if (level == IPPROTO_TCP && name == TCP_USER_TIMEOUT)
		answer = user_timeout;
	else
		return ET_KERNEL;
	*(uint32_t *)value = answer;
	*len = sizeof(answer);
	return 0;
}

ET_EXPORT int getsockopt(int fd, int level, int name, void *value, socklen_t *len)
{
	struct et_sock *s = et_sock_enter(fd);
	struct et_conn *c;
	int r = ET_KERNEL;

	if (et_likely(!s))
		return et_real.getsockopt(fd, level, name, value, len);
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

/* libc's streams read, write and close where nobody sees it. */
ET_EXPORT FILE *fdopen(int fd, const char *mode)
{
	struct et_sock *s = et_sock_enter(fd);

	if (s) {
		et_sock_pin_down(s, fd, ETRAN_PATH_API);
		et_sock_forget(s);
		et_sock_leave(s);
	}
	return et_real.fdopen(fd, mode);
}
