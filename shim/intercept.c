/* SPDX-License-Identifier: Apache-2.0 */
#include "intercept.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

#include "sys.h"

/*
 * Early functions: what stands behind a name before the constructor ran.
 * Constructors of other libraries and an allocator's first steps come here, so
 * these do the system call and nothing else, if there is one.
 */
#define WORDS(...) SIX_WORDS(__VA_ARGS__, 0, 0, 0, 0, 0, 0)
#define SIX_WORDS(a, b, c, d, e, f, ...)                                                           \
	(long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f)

#define EARLY_SYSCALL(ret, name, params, args, nr)                                                 \
	static ret early_##name params                                                             \
	{                                                                                          \
		return (ret)et_return(et_sys6(nr, WORDS args));                                    \
	}

/* No system call does these: find libc's function now. */
#define EARLY_LIBC(ret, name, params, args, failed)                                                \
	static ret early_##name params                                                             \
	{                                                                                          \
		et_resolve();                                                                      \
		if (et_real.name != early_##name)                                                  \
			return et_real.name args;                                                  \
		errno = ENOSYS;                                                                    \
		return failed;                                                                     \
	}

#define EARLY_OWN(ret, name, params, args, none)

#define ETRAN_INTERPOSE(ret, name, params, args, early, value)                                     \
	EARLY_##early(ret, name, params, args, value)
#include "interpose.def"

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

static int early_epoll_pwait(int epfd, struct epoll_event *events, int max, int timeout,
			     const sigset_t *mask)
{
	return (int)et_return(
		et_sys6(SYS_epoll_pwait, epfd, (long)events, max, timeout, (long)mask, _NSIG / 8));
}

static int early_epoll_pwait2(int epfd, struct epoll_event *events, int max,
			      const struct timespec *timeout, const sigset_t *mask)
{
	return (int)et_return(et_sys6(SYS_epoll_pwait2, epfd, (long)events, max, (long)timeout,
				      (long)mask, _NSIG / 8));
}

/* The kernel takes the offset in two words. */
#define EARLY_AT(name, ptr, type, nr)                                                              \
	static ssize_t early_##name(int fd, ptr iov, int count, type offset, int flags)            \
	{                                                                                          \
		return et_return(et_sys6(nr, fd, (long)iov, count, (long)offset, 0, flags));       \
	}

EARLY_AT(preadv2, const struct iovec *, off_t, SYS_preadv2)
EARLY_AT(preadv64v2, const struct iovec *, off64_t, SYS_preadv2)
EARLY_AT(pwritev2, const struct iovec *, off_t, SYS_pwritev2)
EARLY_AT(pwritev64v2, const struct iovec *, off64_t, SYS_pwritev2)

/* As the kernel sees variadic calls: one argument more, used or not. */
#define EARLY_VARIADIC(name, params, last, ...)                                                    \
	static int early_##name params                                                             \
	{                                                                                          \
		va_list ap;                                                                        \
		long arg;                                                                          \
                                                                                                   \
		va_start(ap, last);                                                                \
		arg = va_arg(ap, long);                                                            \
		va_end(ap);                                                                        \
		return (int)et_return(et_sys6(__VA_ARGS__, arg, 0, 0));                            \
	}

EARLY_VARIADIC(fcntl, (int fd, int cmd, ...), cmd, SYS_fcntl, fd, cmd, arg)
EARLY_VARIADIC(fcntl64, (int fd, int cmd, ...), cmd, SYS_fcntl, fd, cmd, arg)
EARLY_VARIADIC(ioctl, (int fd, unsigned long request, ...), request, SYS_ioctl, fd, (long)request,
	       arg)
EARLY_VARIADIC(open, (const char *path, int flags, ...), flags, SYS_openat, AT_FDCWD, (long)path,
	       flags)
EARLY_VARIADIC(open64, (const char *path, int flags, ...), flags, SYS_openat, AT_FDCWD, (long)path,
	       flags)
EARLY_VARIADIC(openat, (int dir, const char *path, int flags, ...), flags, SYS_openat, dir,
	       (long)path, flags)
EARLY_VARIADIC(openat64, (int dir, const char *path, int flags, ...), flags, SYS_openat, dir,
	       (long)path, flags)

static void early_closefrom(int first)
{
	et_sys3(SYS_close_range, first < 0 ? 0 : first, (long)~0u, 0);
}

static long early_syscall(long nr, ...)
{
	va_list ap;
	long a[6];

	va_start(ap, nr);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(ap, long);
	va_end(ap);
	return et_return(et_sys6(nr, a[0], a[1], a[2], a[3], a[4], a[5]));
}

struct et_page et_page __attribute__((aligned(2048))) = {.real = {
#define ETRAN_INTERPOSE(ret, name, params, args, early, value) .name = early_##name,
#include "interpose.def"
							 }};
_Static_assert(sizeof(et_page) <= 2048, "et_page lies in one page");

void et_resolve(void)
{
	void *found;

#define ETRAN_INTERPOSE(ret, name, params, args, early, value)                                     \
	found = dlsym(RTLD_NEXT, #name);                                                           \
	if (found)                                                                                 \
		__atomic_store_n((void **)&et_real.name, found, __ATOMIC_RELEASE);
#include "interpose.def"
}

/* Other names of libc's for the same functions. */
#define ETRAN_INTERPOSE(ret, name, params, args, early, value)
#define ETRAN_ALIAS(ret, name, params, args, of)                                                   \
	ET_EXPORT ret name params;                                                                 \
	ET_EXPORT ret name params                                                                  \
	{                                                                                          \
		return of args;                                                                    \
	}
#include "interpose.def"
