/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Descriptors come and go: socket, accept, connect, close, dup.
 */
#include "fds.h"

#include "intercept.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <netinet/in.h>
#include <unistd.h>

#include "config.h"
#include "process.h"
#include "sock.h"
#include "sys.h"

int et_fd_new(int fd)
{
	uintptr_t entry = fd < 0 ? 0 : et_fd_entry(fd);

	/* What we know of the number is old. */
	if (et_unlikely(entry) && et_own_process())
		et_sock_close(fd, et_entry_kind(entry));
	return fd;
}

/* A standard stream is to be what `from` is: that stays on the kernel. */
static void becomes_standard(int from)
{
	struct et_sock *s = et_sock_enter(from);

	if (!s)
		return;
	et_sock_pin_down(s, from, ETRAN_PATH_API);
	et_sock_leave(s);
}

int et_fd_copied(int from, int to)
{
	uintptr_t entry = et_fd_entry(from);
	enum et_kind kind = et_entry_kind(entry);
	struct et_file *f;

	et_fd_new(to);
	if (to < 0 || et_likely(!entry) || kind == ET_FD_HIDDEN || !et_own_process())
		return to;
	if (kind == ET_FD_SOCK && et_is_standard(to)) {
		becomes_standard(from);
		return to;
	}
	f = et_fd_pin(from, kind, ET_PIN);
	if (f) {
		et_fd_set(to, f, kind);
		et_file_put(f, kind, ET_PIN);
	}
	return to;
}

ET_EXPORT int socket(int domain, int type, int protocol)
{
	int fd = et_real.socket(domain, type, protocol);

	if (fd < 0)
		return fd;
	et_fd_new(fd);
	if (domain == AF_INET && (type & ~(SOCK_NONBLOCK | SOCK_CLOEXEC)) == SOCK_STREAM &&
	    (protocol == 0 || protocol == IPPROTO_TCP))
		et_sock_create(fd, type & SOCK_NONBLOCK);
	return fd;
}

ET_EXPORT int listen(int fd, int backlog)
{
	int r = et_real.listen(fd, backlog);
	struct et_sock *s = r == 0 ? et_sock_enter(fd) : NULL;

	if (!s)
		return r;
	/* Its calls go straight through from now on. */
	et_sock_pin_down(s, fd, ETRAN_PATH_NOT_ESTABLISHED);
	et_sock_drop_regs(s);
	et_fd_turn(fd, &s->file, ET_FD_SOCK, ET_FD_LISTENER);
	et_sock_leave(s);
	return r;
}

static int option(int fd, int name)
{
	int value = -1;
	socklen_t len = sizeof(value);

	et_sys6(SYS_getsockopt, fd, SOL_SOCKET, name, (long)&value, (long)&len, 0);
	return value;
}

/* A connection has come out of a listening socket. */
static int accepted(int listener, int fd, int flags)
{
	if (fd < 0)
		return fd;
	et_fd_new(fd);
	if (!et_config.active)
		return fd;
	if (!et_fd_is(listener, ET_FD_LISTENER)) {
		/* Listening since before exec, or made by other means. */
		if (option(fd, SO_DOMAIN) != AF_INET || option(fd, SO_PROTOCOL) != IPPROTO_TCP)
			return fd;
	}
	et_sock_create(fd, flags & SOCK_NONBLOCK);
	return fd;
}

ET_EXPORT int accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
	if (et_fd_is(fd, ET_FD_LISTENER) && et_process_denies())
		return (int)et_return(-ENETDOWN);
	return accepted(fd, et_real.accept4(fd, addr, len, flags), flags);
}

ET_EXPORT int accept(int fd, struct sockaddr *addr, socklen_t *len)
{
	if (et_fd_is(fd, ET_FD_LISTENER) && et_process_denies())
		return (int)et_return(-ENETDOWN);
	return accepted(fd, et_real.accept(fd, addr, len), 0);
}

ET_EXPORT int connect(int fd, const struct sockaddr *addr, socklen_t len)
{
	struct et_sock *s = et_sock_enter(fd);
	int r;

	if (et_likely(!s))
		return et_real.connect(fd, addr, len);
	et_process_use();
	if (et_process_denies()) {
		et_sock_leave(s);
		return (int)et_return(-ENETDOWN);
	}
	/* It may be a disconnect. */
	et_sock_to_kernel(s, fd, ETRAN_PATH_API);
	r = et_real.connect(fd, addr, len);
	et_sock_leave(s);
	return r;
}

/*
 * While a switch rebuilds the socket it has no peer and no name for a moment, so
 * these are asked with its lock held. A signal handler that interrupted a switch
 * must do without.
 */
#define STANDING_STILL(fd, call)                                                                   \
	do {                                                                                       \
		struct et_sock *s = et_sock_enter(fd);                                             \
		bool locked;                                                                       \
		int r;                                                                             \
                                                                                                   \
		if (et_likely(!s))                                                                 \
			return call;                                                               \
		if (et_sock_mode(s) != ET_MODE_FOREIGN)                                            \
			et_sock_steady(s, fd);                                                     \
		et_sock_step_out(s);                                                               \
		locked = et_lock(&s->lock);                                                        \
		r = call;                                                                          \
		if (locked)                                                                        \
			et_unlock(&s->lock);                                                       \
		et_sock_step_in(s);                                                                \
		et_sock_leave(s);                                                                  \
		return r;                                                                          \
	} while (0)

ET_EXPORT int bind(int fd, const struct sockaddr *addr, socklen_t len)
{
	STANDING_STILL(fd, et_real.bind(fd, addr, len));
}

ET_EXPORT int getsockname(int fd, struct sockaddr *addr, socklen_t *len)
{
	STANDING_STILL(fd, et_real.getsockname(fd, addr, len));
}

ET_EXPORT int getpeername(int fd, struct sockaddr *addr, socklen_t *len)
{
	struct et_sock *s = et_sock_enter(fd);

	if (s) {
		et_sock_catch_up(s, fd); /* after a reset there is no peer */
		et_sock_leave(s);
	}
	STANDING_STILL(fd, et_real.getpeername(fd, addr, len));
}

/* ---- close --------------------------------------------------------------- */

ET_EXPORT int close(int fd)
{
	uintptr_t entry = et_fd_entry(fd);

	if (et_unlikely(entry) && et_own_process()) {
		if (et_entry_kind(entry) == ET_FD_HIDDEN)
			return (int)et_return(-EBADF);
		et_sock_close(fd, et_entry_kind(entry));
	}
	return et_real.close(fd);
}

/* Forget all in the range; the kernel closes them, but not our own. */
static int close_all(unsigned int first, unsigned int last, int flags)
{
	unsigned int from = first;
	int fd = et_fd_next(first, last), r;

	for (; fd >= 0; fd = et_fd_next((unsigned int)fd + 1, last)) {
		uintptr_t entry = et_fd_entry(fd);

		if (et_entry_object(entry)) {
			et_sock_close(fd, et_entry_kind(entry));
			continue;
		}
		if (entry && (unsigned int)fd > from) {
			r = et_real.close_range(from, (unsigned int)fd - 1, flags);
			if (r)
				return r;
		}
		if (entry)
			from = (unsigned int)fd + 1;
	}
	return from <= last ? et_real.close_range(from, last, flags) : 0;
}

ET_EXPORT int close_range(unsigned int first, unsigned int last, int flags)
{
	if (!et_fd_limit || first > last || flags & ~CLOSE_RANGE_UNSHARE || !et_own_process())
		return et_real.close_range(first, last, flags);
	return close_all(first, last, flags);
}

ET_EXPORT void closefrom(int first)
{
	int saved_errno = errno;

	if (!et_fd_limit || !et_own_process() ||
	    close_all(first < 0 ? 0 : (unsigned int)first, ~0u, 0) != 0)
		et_real.closefrom(first);
	errno = saved_errno;
}

/* ---- dup ----------------------------------------------------------------- */

ET_EXPORT int dup(int fd)
{
	return et_fd_copied(fd, et_real.dup(fd));
}

/* True if dup2() and dup3() are plain calls. */
static bool plain(int from, int to)
{
	if (et_likely(!et_fd_entry(from) && !et_fd_entry(to)))
		return true;
	if (et_own_process())
		return from == to || et_sys_fcntl(from, F_GETFD, 0) < 0;
	/* A vfork child hands its parent's socket to a new program. */
	if (et_fd_is(from, ET_FD_SOCK))
		et_process_lends(from);
	return true;
}

ET_EXPORT int dup2(int from, int to)
{
	if (plain(from, to))
		return et_real.dup2(from, to);
	if (et_fd_is(to, ET_FD_HIDDEN))
		return (int)et_return(-EBUSY);
	et_fd_new(to);
	return et_fd_copied(from, et_real.dup2(from, to));
}

ET_EXPORT int dup3(int from, int to, int flags)
{
	if (from == to || flags & ~O_CLOEXEC || plain(from, to))
		return et_real.dup3(from, to, flags);
	if (et_fd_is(to, ET_FD_HIDDEN))
		return (int)et_return(-EBUSY);
	et_fd_new(to);
	return et_fd_copied(from, et_real.dup3(from, to, flags));
}

/* ---- new descriptors of other kinds -------------------------------------- */

#define ETRAN_INTERPOSE(ret, name, params, args, early, value)
#define ETRAN_CREATOR(ret, name, params, args, early, value)                                       \
	ET_EXPORT ret name params                                                                  \
	{                                                                                          \
		return et_fd_new(et_real.name args);                                               \
	}
#include "interpose.def"

static int new_pair(int r, const int fds[2])
{
	if (r == 0) {
		et_fd_new(fds[0]);
		et_fd_new(fds[1]);
	}
	return r;
}

ET_EXPORT int socketpair(int domain, int type, int protocol, int fds[2])
{
	return new_pair(et_real.socketpair(domain, type, protocol, fds), fds);
}

ET_EXPORT int pipe(int fds[2])
{
	return new_pair(et_real.pipe(fds), fds);
}

ET_EXPORT int pipe2(int fds[2], int flags)
{
	return new_pair(et_real.pipe2(fds, flags), fds);
}

/* The mode is there only if the flags ask for it, and is read only then. */
#define OPEN(name, params, ...)                                                                    \
	ET_EXPORT int name params                                                                  \
	{                                                                                          \
		va_list ap;                                                                        \
		mode_t mode;                                                                       \
                                                                                                   \
		va_start(ap, flags);                                                               \
		mode = va_arg(ap, mode_t);                                                         \
		va_end(ap);                                                                        \
		return et_fd_new(et_real.name(__VA_ARGS__, flags, mode));                          \
	}

OPEN(open, (const char *path, int flags, ...), path)
OPEN(open64, (const char *path, int flags, ...), path)
OPEN(openat, (int dir, const char *path, int flags, ...), dir, path)
OPEN(openat64, (int dir, const char *path, int flags, ...), dir, path)

int __open(const char *path, int flags, ...)
	__attribute__((alias("open"), copy(open), visibility("default")));
int __open64(const char *path, int flags, ...)
	__attribute__((alias("open64"), copy(open64), visibility("default")));

static FILE *new_stream(FILE *stream)
{
	if (stream)
		et_fd_new(fileno(stream));
	return stream;
}

ET_EXPORT FILE *fopen(const char *path, const char *mode)
{
	return new_stream(et_real.fopen(path, mode));
}

ET_EXPORT FILE *fopen64(const char *path, const char *mode)
{
	return new_stream(et_real.fopen64(path, mode));
}
