/* SPDX-License-Identifier: Apache-2.0 */
#include "intercept.h"

#include <dlfcn.h>
#include <linux/close_range.h>
#include <stdarg.h>

#include "sys.h"

/*
 * Early functions: what stands behind a name before the constructor ran.
 * Constructors of other libraries and an allocator's first steps come here, so
 * these do the system call and nothing else.
 */
#define EARLY(ret, name, params, nr, a, b, c, d, e, f)                                             \
	static ret early_##name params                                                             \
	{                                                                                          \
		return (ret)et_return(et_sys6(nr, (long)(a), (long)(b), (long)(c), (long)(d),      \
					      (long)(e), (long)(f)));                              \
	}

EARLY(int, socket, (int domain, int type, int protocol), SYS_socket, domain, type, protocol, 0, 0,
      0)
EARLY(int, listen, (int fd, int backlog), SYS_listen, fd, backlog, 0, 0, 0, 0)
EARLY(int, accept, (int fd, struct sockaddr *addr, socklen_t *len), SYS_accept, fd, addr, len, 0, 0,
      0)
EARLY(int, accept4, (int fd, struct sockaddr *addr, socklen_t *len, int flags), SYS_accept4, fd,
      addr, len, flags, 0, 0)
EARLY(int, connect, (int fd, const struct sockaddr *addr, socklen_t len), SYS_connect, fd, addr,
      len, 0, 0, 0)
EARLY(int, shutdown, (int fd, int how), SYS_shutdown, fd, how, 0, 0, 0, 0)
EARLY(int, close, (int fd), SYS_close, fd, 0, 0, 0, 0, 0)
EARLY(int, close_range, (unsigned int first, unsigned int last, int flags), SYS_close_range, first,
      last, flags, 0, 0, 0)
EARLY(int, dup, (int fd), SYS_dup, fd, 0, 0, 0, 0, 0)
EARLY(int, dup2, (int from, int to), SYS_dup2, from, to, 0, 0, 0, 0)
EARLY(int, dup3, (int from, int to, int flags), SYS_dup3, from, to, flags, 0, 0, 0)
EARLY(ssize_t, read, (int fd, void *buf, size_t n), SYS_read, fd, buf, n, 0, 0, 0)
EARLY(ssize_t, readv, (int fd, const struct iovec *iov, int count), SYS_readv, fd, iov, count, 0, 0,
      0)
EARLY(ssize_t, recv, (int fd, void *buf, size_t n, int flags), SYS_recvfrom, fd, buf, n, flags, 0,
      0)
EARLY(ssize_t, recvfrom,
      (int fd, void *buf, size_t n, int flags, struct sockaddr *addr, socklen_t *len), SYS_recvfrom,
      fd, buf, n, flags, addr, len)
EARLY(ssize_t, recvmsg, (int fd, struct msghdr *msg, int flags), SYS_recvmsg, fd, msg, flags, 0, 0,
      0)
EARLY(int, recvmmsg,
      (int fd, struct mmsghdr *msgs, unsigned int count, int flags, struct timespec *timeout),
      SYS_recvmmsg, fd, msgs, count, flags, timeout, 0)
EARLY(ssize_t, write, (int fd, const void *buf, size_t n), SYS_write, fd, buf, n, 0, 0, 0)
EARLY(ssize_t, writev, (int fd, const struct iovec *iov, int count), SYS_writev, fd, iov, count, 0,
      0, 0)
EARLY(ssize_t, send, (int fd, const void *buf, size_t n, int flags), SYS_sendto, fd, buf, n, flags,
      0, 0)
EARLY(ssize_t, sendto,
      (int fd, const void *buf, size_t n, int flags, const struct sockaddr *addr, socklen_t len),
      SYS_sendto, fd, buf, n, flags, addr, len)
EARLY(ssize_t, sendmsg, (int fd, const struct msghdr *msg, int flags), SYS_sendmsg, fd, msg, flags,
      0, 0, 0)
EARLY(int, sendmmsg, (int fd, struct mmsghdr *msgs, unsigned int count, int flags), SYS_sendmmsg,
      fd, msgs, count, flags, 0, 0)
EARLY(ssize_t, sendfile, (int out, int in, off_t *offset, size_t n), SYS_sendfile, out, in, offset,
      n, 0, 0)
EARLY(ssize_t, sendfile64, (int out, int in, off64_t *offset, size_t n), SYS_sendfile, out, in,
      offset, n, 0, 0)
EARLY(ssize_t, splice,
      (int in, off64_t *in_offset, int out, off64_t *out_offset, size_t n, unsigned int flags),
      SYS_splice, in, in_offset, out, out_offset, n, flags)
EARLY(int, getsockopt, (int fd, int level, int name, void *value, socklen_t *len), SYS_getsockopt,
      fd, level, name, value, len, 0)
EARLY(int, setsockopt, (int fd, int level, int name, const void *value, socklen_t len),
      SYS_setsockopt, fd, level, name, value, len, 0)
EARLY(int, poll, (struct pollfd * fds, nfds_t count, int timeout), SYS_poll, fds, count, timeout, 0,
      0, 0)
EARLY(int, epoll_create, (int size), SYS_epoll_create, size, 0, 0, 0, 0, 0)
EARLY(int, epoll_create1, (int flags), SYS_epoll_create1, flags, 0, 0, 0, 0, 0)
EARLY(int, epoll_ctl, (int epfd, int op, int fd, struct epoll_event *event), SYS_epoll_ctl, epfd,
      op, fd, event, 0, 0)
EARLY(int, epoll_wait, (int epfd, struct epoll_event *events, int max, int timeout), SYS_epoll_wait,
      epfd, events, max, timeout, 0, 0)
EARLY(int, epoll_pwait,
      (int epfd, struct epoll_event *events, int max, int timeout, const sigset_t *mask),
      SYS_epoll_pwait, epfd, events, max, timeout, mask, _NSIG / 8)
EARLY(int, epoll_pwait2,
      (int epfd, struct epoll_event *events, int max, const struct timespec *timeout,
       const sigset_t *mask),
      SYS_epoll_pwait2, epfd, events, max, timeout, mask, _NSIG / 8)
EARLY(int, select, (int count, fd_set *in, fd_set *out, fd_set *except, struct timeval *timeout),
      SYS_select, count, in, out, except, timeout, 0)
EARLY(int, execve, (const char *path, char *const argv[], char *const envp[]), SYS_execve, path,
      argv, envp, 0, 0, 0)

/* The kernel writes the time that is left into these timeouts, libc does not. */
static int early_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout,
		       const sigset_t *mask)
{
	struct timespec copy;

	if (timeout)
		copy = *timeout;
	return (int)et_return(et_sys6(SYS_ppoll, (long)fds, (long)count, timeout ? (long)&copy : 0,
				      (long)mask, _NSIG / 8, 0));
}

static int early_pselect(int count, fd_set *in, fd_set *out, fd_set *except,
			 const struct timespec *timeout, const sigset_t *mask)
{
	const struct {
		const sigset_t *mask;
		size_t size;
	} set = {mask, _NSIG / 8};
	struct timespec copy;

	if (timeout)
		copy = *timeout;
	return (int)et_return(et_sys6(SYS_pselect6, count, (long)in, (long)out, (long)except,
				      timeout ? (long)&copy : 0, (long)&set));
}

/* As the kernel sees variadic calls: one argument, used or not. */
#define EARLY_VARIADIC(name, type, nr)                                                             \
	static int early_##name(int fd, type cmd, ...)                                             \
	{                                                                                          \
		va_list ap;                                                                        \
		long arg;                                                                          \
                                                                                                   \
		va_start(ap, cmd);                                                                 \
		arg = va_arg(ap, long);                                                            \
		va_end(ap);                                                                        \
		return (int)et_return(et_sys3(nr, fd, (long)cmd, arg));                            \
	}

EARLY_VARIADIC(fcntl, int, SYS_fcntl)
EARLY_VARIADIC(fcntl64, int, SYS_fcntl)
EARLY_VARIADIC(ioctl, unsigned long, SYS_ioctl)

static void early_closefrom(int first)
{
	et_sys3(SYS_close_range, first < 0 ? 0 : first, (long)~0u, 0);
}

/* Our exec*() with argument lists never call the real ones. */
#define EARLY_LIST(name)                                                                           \
	static int early_##name(const char *path __attribute__((unused)),                          \
				const char *arg __attribute__((unused)), ...)                      \
	{                                                                                          \
		errno = ENOSYS;                                                                    \
		return -1;                                                                         \
	}

EARLY_LIST(execl)
EARLY_LIST(execlp)
EARLY_LIST(execle)

/* No system call does these: find libc's function now. */
#define EARLY_RESOLVE(ret, name, params, args, failed)                                             \
	static ret early_##name params                                                             \
	{                                                                                          \
		et_resolve();                                                                      \
		if (et_real.name != early_##name)                                                  \
			return et_real.name args;                                                  \
		errno = ENOSYS;                                                                    \
		return failed;                                                                     \
	}

EARLY_RESOLVE(ssize_t, __read_chk, (int fd, void *buf, size_t n, size_t room), (fd, buf, n, room),
	      -1)
EARLY_RESOLVE(ssize_t, __recv_chk, (int fd, void *buf, size_t n, size_t room, int flags),
	      (fd, buf, n, room, flags), -1)
EARLY_RESOLVE(ssize_t, __recvfrom_chk,
	      (int fd, void *buf, size_t n, size_t room, int flags, struct sockaddr *addr,
	       socklen_t *len),
	      (fd, buf, n, room, flags, addr, len), -1)
EARLY_RESOLVE(int, __poll_chk, (struct pollfd * fds, nfds_t count, int timeout, size_t room),
	      (fds, count, timeout, room), -1)
EARLY_RESOLVE(int, __ppoll_chk,
	      (struct pollfd * fds, nfds_t count, const struct timespec *timeout,
	       const sigset_t *mask, size_t room),
	      (fds, count, timeout, mask, room), -1)
EARLY_RESOLVE(FILE *, fdopen, (int fd, const char *mode), (fd, mode), NULL)
EARLY_RESOLVE(pid_t, _Fork, (void), (), -1)
EARLY_RESOLVE(int, execv, (const char *path, char *const argv[]), (path, argv), -1)
EARLY_RESOLVE(int, execvp, (const char *file, char *const argv[]), (file, argv), -1)
EARLY_RESOLVE(int, execvpe, (const char *file, char *const argv[], char *const envp[]),
	      (file, argv, envp), -1)
EARLY_RESOLVE(int, fexecve, (int fd, char *const argv[], char *const envp[]), (fd, argv, envp), -1)
EARLY_RESOLVE(int, posix_spawn,
	      (pid_t * pid, const char *path, const posix_spawn_file_actions_t *actions,
	       const posix_spawnattr_t *attr, char *const argv[], char *const envp[]),
	      (pid, path, actions, attr, argv, envp), ENOSYS)
EARLY_RESOLVE(int, posix_spawnp,
	      (pid_t * pid, const char *file, const posix_spawn_file_actions_t *actions,
	       const posix_spawnattr_t *attr, char *const argv[], char *const envp[]),
	      (pid, file, actions, attr, argv, envp), ENOSYS)
EARLY_RESOLVE(int, posix_spawn_file_actions_adddup2,
	      (posix_spawn_file_actions_t * actions, int from, int to), (actions, from, to), ENOSYS)
EARLY_RESOLVE(int, system, (const char *command), (command), -1)
EARLY_RESOLVE(FILE *, popen, (const char *command, const char *type), (command, type), NULL)

struct et_real et_real = {
#define ETRAN_INTERPOSE(ret, name, params, args) .name = early_##name,
#include "interpose.def"
#undef ETRAN_INTERPOSE
};

void et_resolve(void)
{
	void *found;

#define ETRAN_INTERPOSE(ret, name, params, args)                                                   \
	found = dlsym(RTLD_NEXT, #name);                                                           \
	if (found)                                                                                 \
		__atomic_store_n((void **)&et_real.name, found, __ATOMIC_RELEASE);
#include "interpose.def"
#undef ETRAN_INTERPOSE
}
