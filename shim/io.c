/* SPDX-License-Identifier: Apache-2.0 */
/*
 * read() and write() and all their relatives.
 *
 * One attempt never blocks: on the kernel path it is a system call with
 * MSG_DONTWAIT, on the fast path a call of the transport. A blocking call is a
 * loop of attempts and waits (sleep.h).
 */
#include "sock.h"

#include <limits.h>
#include <pthread.h>

#include "epoll.h"
#include "fds.h"
#include "process.h"
#include "sys.h"

/* What the fast path does; anything else demotes first. */
#define RECV_FLAGS                                                                                 \
	(MSG_DONTWAIT | MSG_PEEK | MSG_WAITALL | MSG_TRUNC | MSG_NOSIGNAL | MSG_CMSG_CLOEXEC)
#define SEND_FLAGS (MSG_DONTWAIT | MSG_NOSIGNAL | MSG_MORE | MSG_EOR)
#define WHOLE_PEEK (MSG_PEEK | MSG_WAITALL)
/* How long a call that must not block waits for a switch under way. */
#define SETTLE_US 100u
/* Octets read without a flush between: acknowledgements must not wait for a
 * program that only reads. */
#define OCTETS_PER_FLUSH 16384u
#define UIO_MAX 1024
/* Pieces of a vector that an attempt gets when it begins inside a piece. */
#define WINDOW 16
/*
 * Not an errno: the descriptor is no socket. It was closed behind our back, by
 * libc itself or a raw system call, and the number is something else now. The
 * entry is gone; do the real call.
 */
#define ET_STALE (-100001)

/* How far a call has come in the program's vector. */
struct cursor {
	const struct iovec *iov;
	int count;
	size_t skip; /* octets of iov[0] that are done */
};

struct call {
	struct et_sock *s;
	int fd;
	int flags;
	bool blocking;
	bool moved;  /* octets of the kernel path, for the accounting */
	size_t done; /* octets so far */
	size_t total;
	struct cursor at;
	struct msghdr *msg; /* the program's, for recvmsg and sendmsg */
};

/* ---- vectors ------------------------------------------------------------- */

static int cursor_window(const struct cursor *c, struct iovec *window)
{
	int n = c->count < WINDOW ? c->count : WINDOW;

	if (n <= 0)
		return 0;
	for (int i = 0; i < n; i++)
		window[i] = c->iov[i];
	window[0].iov_base = (char *)window[0].iov_base + c->skip;
	window[0].iov_len -= c->skip;
	return n;
}

static void cursor_advance(struct cursor *c, size_t n)
{
	while (c->count && n >= c->iov[0].iov_len - c->skip) {
		n -= c->iov[0].iov_len - c->skip;
		c->skip = 0;
		c->iov++;
		c->count--;
	}
	c->skip += n;
}

static ssize_t iov_total(const struct iovec *iov, int count)
{
	size_t total = 0;

	if (count < 0 || count > UIO_MAX)
		return -EINVAL;
	if (et_unlikely(et_nowhere(iov)) && count)
		return -EFAULT;
	for (int i = 0; i < count; i++) {
		if (iov[i].iov_len > SSIZE_MAX - total)
			return -EINVAL;
		total += iov[i].iov_len;
	}
	return (ssize_t)total;
}

static ssize_t message_total(const struct msghdr *msg)
{
	if (et_unlikely(et_nowhere(msg)) || msg->msg_iovlen > UIO_MAX)
		return -EINVAL;
	return iov_total(msg->msg_iov, (int)msg->msg_iovlen);
}

static void advance(struct call *k, size_t n)
{
	k->done += n;
	cursor_advance(&k->at, n);
}

/* Is a part of the rest no memory at all? */
static bool misplaced(const struct iovec *iov, int n)
{
	for (int i = 0; i < n; i++)
		if (et_unlikely(et_nowhere(iov[i].iov_base)) && iov[i].iov_len)
			return true;
	return false;
}

/* The whole rest, unless it begins inside a piece: then a copy of some. */
static int window(const struct call *k, const struct iovec **iov, struct iovec *copy)
{
	if (et_likely(!k->at.skip)) {
		*iov = k->at.iov;
		return k->at.count;
	}
	*iov = copy;
	return cursor_window(&k->at, copy);
}

/* ---- one attempt on the kernel path -------------------------------------- */

static ssize_t stale(struct call *k, ssize_t r)
{
	if (r == -ENOTSOCK || r == -EBADF) {
		et_sock_close(k->fd, ET_FD_SOCK);
		return r == -ENOTSOCK ? ET_STALE : r;
	}
	return r;
}

/* After a demotion that failed the kernel's socket is a closed one. */
static ssize_t broken_recv(struct et_sock *s)
{
	return -atomic_exchange(&s->error, 0);
}

static ssize_t broken_send(struct call *k)
{
	int err = atomic_exchange(&k->s->error, 0);

	if (err)
		return -err;
	if (!(k->flags & MSG_NOSIGNAL))
		et_sys3(SYS_tgkill, et_pid, (long)et_tid(), SIGPIPE);
	return -EPIPE;
}

/*
 * The kernel's socket has an error, and this call has moved octets: then it
 * returns those, and the error is the next call's.
 */
static bool next_calls_error(const struct call *k)
{
	static const struct timespec now;
	struct pollfd p = {.fd = k->fd};

	return k->done && et_sys_ppoll(&p, 1, &now) == 1 && p.revents & POLLERR;
}

static ssize_t kernel_recv(struct call *k, int flags)
{
	struct iovec copy[WINDOW];
	const struct iovec *iov;
	struct msghdr m = {0};
	int n;

	if (et_unlikely(next_calls_error(k)))
		return 0;
	if (et_unlikely(k->s->broken))
		return broken_recv(k->s);
	if (k->msg && !k->done)
		return stale(k, et_sys_recvmsg(k->fd, k->msg, flags));
	n = window(k, &iov, copy);
	if (n == 1)
		return stale(k, et_sys_recv(k->fd, iov->iov_base, iov->iov_len, flags));
	m.msg_iov = (struct iovec *)iov;
	m.msg_iovlen = (size_t)n;
	return stale(k, et_sys_recvmsg(k->fd, &m, flags));
}

static ssize_t kernel_send(struct call *k, int flags)
{
	struct iovec copy[WINDOW];
	const struct iovec *iov;
	struct msghdr m = {0};
	int n;

	if (et_unlikely(next_calls_error(k)))
		return 0;
	if (k->done) /* as for the error: no signal yet */
		flags |= MSG_NOSIGNAL;
	if (et_unlikely(k->s->broken))
		return broken_send(k);
	if (k->msg && !k->done)
		return stale(k, et_sys_sendmsg(k->fd, k->msg, flags));
	n = window(k, &iov, copy);
	if (n == 1)
		return stale(k, et_sys6(SYS_sendto, k->fd, (long)iov->iov_base, (long)iov->iov_len,
					flags, 0, 0));
	m.msg_iov = (struct iovec *)iov;
	m.msg_iovlen = (size_t)n;
	return stale(k, et_sys_sendmsg(k->fd, &m, flags));
}

static void cancelled(void *s)
{
	et_sock_leave(s);
}

static __attribute__((noinline)) ssize_t real_call(struct call *k, struct msghdr *m, bool write)
{
	const struct iovec *iov = m->msg_iov;
	int flags = k->flags | (write && k->done ? MSG_NOSIGNAL : 0);

	if (m != k->msg && m->msg_iovlen == 1)
		return write ? et_real.send(k->fd, iov->iov_base, iov->iov_len, flags)
			     : et_real.recv(k->fd, iov->iov_base, iov->iov_len, flags);
	return write ? et_real.sendmsg(k->fd, m, flags) : et_real.recvmsg(k->fd, m, flags);
}

/* Sleep in the call itself: a cancellation point, restarted by the kernel. */
static ssize_t kernel_sleep(struct call *k, bool write)
{
	struct iovec copy[WINDOW];
	const struct iovec *iov;
	int n = window(k, &iov, copy), saved_errno = errno;
	struct msghdr m = {.msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)n};
	ssize_t r;

	if (et_unlikely(k->s->broken))
		return write ? broken_send(k) : broken_recv(k->s);
	if (et_unlikely(next_calls_error(k)))
		return 0;
	pthread_cleanup_push(cancelled, k->s);
	r = real_call(k, k->msg && !k->done ? k->msg : &m, write);
	pthread_cleanup_pop(0);
	if (r < 0) {
		r = -errno;
		errno = saved_errno;
	}
	return stale(k, r);
}

/* ---- one attempt on the fast path ---------------------------------------- */

static ssize_t conn_recv(struct call *k, struct et_conn *c)
{
	struct iovec copy[WINDOW];
	const struct iovec *iov;
	size_t left = k->total - k->done, unread;
	int n;

	if (et_unlikely(!left || k->flags & MSG_TRUNC)) {
		unread = et_conn_readable(c);
		if (!unread)
			return et_conn_progress(c) == ET_FAST ? -EAGAIN : ET_KERNEL;
		if (!left || k->flags & MSG_PEEK)
			return (ssize_t)(unread < left ? unread : left);
		return et_conn_discard(c, left);
	}
	n = window(k, &iov, copy);
	if (et_unlikely(misplaced(iov, n)))
		return ET_KERNEL;
	return et_conn_recv(c, iov, n, k->flags & MSG_PEEK);
}

/* The reason of a connection that is to leave; if it has none, it was the call. */
static enum etran_path_reason why_kernel(struct et_conn *c)
{
	enum etran_path_reason why = et_conn_reason(c);

	return why != ETRAN_PATH_OK ? why : ETRAN_PATH_API;
}

/* ET_KERNEL: the socket has been demoted, or must settle. */
static ssize_t fast_recv(struct call *k)
{
	struct et_sock *s = k->s;
	struct et_conn *c = et_sock_fast(s);
	enum etran_path_reason why = atomic_load_explicit(&s->please, memory_order_relaxed);
	ssize_t r = ET_KERNEL;

	if (et_unlikely(!c))
		return ET_KERNEL;
	if (et_unlikely(k->flags & ~RECV_FLAGS))
		why = ETRAN_PATH_API;
	if (et_likely(why == ETRAN_PATH_OK)) {
		r = conn_recv(k, c);
		if (r == -EAGAIN) {
			et_rx_poll();
			r = conn_recv(k, c);
		}
		if (et_likely(r >= 0)) {
			s->unflushed += (uint32_t)r;
			if (s->unflushed >= OCTETS_PER_FLUSH) {
				s->unflushed = 0;
				et_flush();
			}
			return r;
		}
		why = et_conn_wants_demote(c);
		if (r != ET_KERNEL && why == ETRAN_PATH_OK)
			return r;
		if (why == ETRAN_PATH_OK)
			why = why_kernel(c);
	}
	return et_sock_demote(s, why) ? -EAGAIN : ET_KERNEL;
}

static ssize_t fast_send(struct call *k)
{
	struct et_sock *s = k->s;
	struct et_conn *c = et_sock_fast(s);
	enum etran_path_reason why;
	struct iovec copy[WINDOW];
	const struct iovec *iov;
	ssize_t r;
	int n;

	if (et_unlikely(!c))
		return ET_KERNEL;
	et_rx_poll(); /* a reset that has come is what this call has to say */
	why = et_sock_wants_demote(s, c);
	if (et_unlikely(k->flags & ~SEND_FLAGS || (k->msg && k->msg->msg_controllen)))
		why = ETRAN_PATH_API;
	if (et_likely(why == ETRAN_PATH_OK)) {
		if (!(k->total - k->done))
			return 0;
		n = window(k, &iov, copy);
		r = misplaced(iov, n) ? ET_KERNEL : et_conn_send(c, iov, n);
		if (r == -EAGAIN) {
			et_rx_poll();
			r = et_conn_send(c, iov, n);
		}
		if (r == -EAGAIN)
			et_sock_ask_room(s, c);
		else
			s->unflushed = 0;
		if (et_likely(r != ET_KERNEL))
			return r;
		why = why_kernel(c);
	}
	return et_sock_demote(s, why) ? -EAGAIN : ET_KERNEL;
}

/* ---- calls --------------------------------------------------------------- */

/* Neither a switch nor spinning is to be had: one system call, as it is. */
static bool plain(struct call *k)
{
	return et_sock_mode(k->s) == ET_MODE_KERNEL && !et_sock_movable(k->s) && !et_spin_kernel();
}

static ssize_t attempt(struct call *k, bool write)
{
	ssize_t r;

	for (;;) {
		switch (et_sock_mode(k->s)) {
		case ET_MODE_FAST:
			r = write ? fast_send(k) : fast_recv(k);
			if (r != ET_KERNEL)
				return r;
			break;
		case ET_MODE_KERNEL:
			r = write ? kernel_send(k, k->flags | MSG_DONTWAIT)
				  : kernel_recv(k, k->flags | MSG_DONTWAIT);
			k->moved |= r > 0;
			return r;
		default:
			r = et_sock_settle(k->s, k->fd, k->blocking ? UINT32_MAX : SETTLE_US);
			if (r)
				return r;
		}
	}
}

/* The loop of a call that may wait; `r` is what the first attempt said. */
static ssize_t attempts(struct call *k, bool write, bool all, ssize_t r)
{
	struct et_wait w;
	int turn = 0;

	et_wait_init(&w, k->s, k->fd, write ? POLLOUT : POLLIN);
	for (;;) {
		if (r > 0) {
			advance(k, (size_t)r);
			if (!all || k->done == k->total)
				break;
		} else if (r != -EAGAIN) {
			break;
		} else {
			w.moved = k->done != 0;
			turn = et_wait_turn(&w);
			/* Another thread has closed it: the number may be anything now. */
			if (turn >= 0 && k->s->closing)
				turn = -EBADF;
			if (turn < 0) {
				r = turn;
				break;
			}
		}
		if (turn == ET_WAIT_IN_CALL && et_sock_mode(k->s) == ET_MODE_KERNEL) {
			r = kernel_sleep(k, write);
			k->moved |= r > 0;
			turn = 0;
			if (r == -EAGAIN) /* SO_RCVTIMEO, SO_SNDTIMEO */
				break;
			continue;
		}
		r = attempt(k, write);
	}
	et_wait_done(&w);
	return k->done ? (ssize_t)k->done : r;
}

/* Leaves the socket. */
static ssize_t do_recv(struct call *k)
{
	struct et_sock *s = k->s;
	bool all, simple;
	ssize_t r;

	/* Urgent data and the error queue are never waited for. */
	k->blocking = !(k->flags & (MSG_DONTWAIT | MSG_OOB | MSG_ERRQUEUE)) &&
		      !atomic_load_explicit(&s->nonblock, memory_order_relaxed);
	all = k->flags & MSG_WAITALL && !(k->flags & MSG_PEEK);
	/* To see so much without taking it, only the kernel can wait. */
	if (et_unlikely((k->flags & WHOLE_PEEK) == WHOLE_PEEK && k->blocking))
		et_sock_pin_down(s, k->fd, ETRAN_PATH_API);
	simple = plain(k);
	if (simple) {
		r = kernel_sleep(k, false);
		k->moved = r > 0;
	} else {
		r = attempt(k, false);
	}
	if (et_unlikely(k->blocking && !simple &&
			(r == -EAGAIN || (all && r > 0 && (size_t)r < k->total))))
		r = attempts(k, false, all, r);
	if (r > 0 && k->moved && !(k->flags & MSG_PEEK))
		/* Less than there was room for: the queue is empty. */
		et_sock_received(s, (size_t)r, (size_t)r < k->total);
	else if (r == -EAGAIN && et_sock_mode(s) == ET_MODE_KERNEL)
		et_sock_leave_quiet(s, true);
	else
		et_sock_leave(s);
	return r;
}

static ssize_t do_send(struct call *k)
{
	struct et_sock *s = k->s;
	bool simple;
	ssize_t r;

	k->blocking = !(k->flags & MSG_DONTWAIT) &&
		      !atomic_load_explicit(&s->nonblock, memory_order_relaxed);
	simple = plain(k);
	if (simple) {
		r = kernel_sleep(k, true);
		k->moved = r > 0;
	} else {
		r = attempt(k, true);
	}
	if (et_unlikely(k->blocking && !simple &&
			(r == -EAGAIN || (r > 0 && (size_t)r < k->total))))
		r = attempts(k, true, true, r);
	if (r > 0 && k->moved)
		et_sock_sent(s, (size_t)r);
	else
		et_sock_leave(s);
	return r;
}

static ssize_t recv_one(struct et_sock *s, int fd, void *buf, size_t n, int flags)
{
	struct iovec iov = {buf, n < SSIZE_MAX ? n : SSIZE_MAX};
	struct call k = {
		.s = s, .fd = fd, .flags = flags, .total = iov.iov_len, .at = {&iov, 1, 0}};

	return do_recv(&k);
}

static ssize_t send_one(struct et_sock *s, int fd, const void *buf, size_t n, int flags)
{
	struct iovec iov = {(void *)buf, n < SSIZE_MAX ? n : SSIZE_MAX};
	struct call k = {
		.s = s, .fd = fd, .flags = flags, .total = iov.iov_len, .at = {&iov, 1, 0}};

	return do_send(&k);
}

/* All of these are cancellation points, also when they need not wait. */
static inline struct et_sock *enter(int fd)
{
	if (et_likely(!et_fd_entry(fd)))
		return NULL;
	pthread_testcancel();
	return et_sock_enter(fd);
}

ET_EXPORT ssize_t read(int fd, void *buf, size_t n)
{
	struct et_sock *s = enter(fd);
	ssize_t r;

	if (et_likely(!s))
		return et_real.read(fd, buf, n);
	if (!n) { /* unlike recv(), read() of nothing does not look at the queue */
		et_sock_leave(s);
		return et_real.read(fd, buf, n);
	}
	r = recv_one(s, fd, buf, n, 0);
	return r == ET_STALE ? et_real.read(fd, buf, n) : et_return(r);
}

ET_EXPORT ssize_t recv(int fd, void *buf, size_t n, int flags)
{
	struct et_sock *s = enter(fd);
	ssize_t r;

	if (et_likely(!s))
		return et_real.recv(fd, buf, n, flags);
	r = recv_one(s, fd, buf, n, flags);
	return r == ET_STALE ? et_real.recv(fd, buf, n, flags) : et_return(r);
}

ET_EXPORT ssize_t recvfrom(int fd, void *buf, size_t n, int flags, struct sockaddr *addr,
			   socklen_t *len)
{
	struct et_sock *s = enter(fd);
	ssize_t r;

	if (et_likely(!s))
		return et_real.recvfrom(fd, buf, n, flags, addr, len);
	r = recv_one(s, fd, buf, n, flags);
	if (r == ET_STALE)
		return et_real.recvfrom(fd, buf, n, flags, addr, len);
	if (r >= 0 && addr && len) /* TCP gives no addresses */
		*len = 0;
	return et_return(r);
}

/* A buffer that is too small is libc's to deal with. */
ET_EXPORT ssize_t __read_chk(int fd, void *buf, size_t n, size_t room)
{
	return et_unlikely(n > room) ? et_real.__read_chk(fd, buf, n, room) : read(fd, buf, n);
}

ET_EXPORT ssize_t __recv_chk(int fd, void *buf, size_t n, size_t room, int flags)
{
	return et_unlikely(n > room) ? et_real.__recv_chk(fd, buf, n, room, flags)
				     : recv(fd, buf, n, flags);
}

ET_EXPORT ssize_t __recvfrom_chk(int fd, void *buf, size_t n, size_t room, int flags,
				 struct sockaddr *addr, socklen_t *len)
{
	return et_unlikely(n > room) ? et_real.__recvfrom_chk(fd, buf, n, room, flags, addr, len)
				     : recvfrom(fd, buf, n, flags, addr, len);
}

/* Give the connection back and do the real call, counted as in flight. */
#define ON_KERNEL(s, fd, call)                                                                     \
	do {                                                                                       \
		et_sock_to_kernel(s, fd, ETRAN_PATH_API);                                          \
		r = call;                                                                          \
		et_sock_leave(s);                                                                  \
		return r;                                                                          \
	} while (0)

/* Leaves the socket. ET_STALE also for vectors that are the kernel's to judge. */
static ssize_t vector(struct et_sock *s, int fd, const struct iovec *iov, int count, int flags,
		      bool write)
{
	ssize_t total = iov_total(iov, count);
	struct call k = {.s = s, .fd = fd, .flags = flags, .at = {iov, count, 0}};

	if (total <= 0) {
		et_sock_leave(s);
		return ET_STALE;
	}
	k.total = (size_t)total;
	return write ? do_send(&k) : do_recv(&k);
}

ET_EXPORT ssize_t readv(int fd, const struct iovec *iov, int count)
{
	struct et_sock *s = enter(fd);
	ssize_t r;

	if (et_likely(!s))
		return et_real.readv(fd, iov, count);
	r = vector(s, fd, iov, count, 0, false);
	return r == ET_STALE ? et_real.readv(fd, iov, count) : et_return(r);
}

/* Call f for every descriptor in a message. */
static void each_right(const struct msghdr *msg, void (*f)(int))
{
	const struct cmsghdr *c;

	if (et_likely(!msg || msg->msg_controllen < sizeof(*c) || !msg->msg_control))
		return;
	for (c = CMSG_FIRSTHDR(msg); c;
	     c = CMSG_NXTHDR((struct msghdr *)msg, (struct cmsghdr *)c)) {
		const int *fds = (const int *)CMSG_DATA(c);
		size_t n =
			c->cmsg_len > CMSG_LEN(0) ? (c->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t i = 0; i < n && i < UIO_MAX; i++)
			f(fds[i]);
	}
}

/* It goes to another process: give the connection back. */
static void give_right(int fd)
{
	struct et_sock *s = et_sock_enter(fd);

	if (s) {
		et_sock_pin_down(s, fd, ETRAN_PATH_FORK);
		et_sock_leave(s);
	} else if (et_fd_is(fd, ET_FD_EPOLL)) {
		et_epoll_isolate(fd);
	}
}

static void take_right(int fd)
{
	et_fd_new(fd);
}

ET_EXPORT ssize_t recvmsg(int fd, struct msghdr *msg, int flags)
{
	struct et_sock *s = enter(fd);
	ssize_t total, r;

	if (et_likely(!s)) {
		r = et_real.recvmsg(fd, msg, flags);
		if (r >= 0)
			each_right(msg, take_right);
		return r;
	}
	total = message_total(msg);
	if (total >= 0) {
		struct call k = {.s = s,
				 .fd = fd,
				 .flags = flags,
				 .total = (size_t)total,
				 .at = {msg->msg_iov, (int)msg->msg_iovlen, 0},
				 .msg = msg};

		r = do_recv(&k);
		if (r >= 0 && !k.moved) {
			if (msg->msg_name)
				msg->msg_namelen = 0;
			msg->msg_controllen = 0;
			msg->msg_flags = flags & MSG_CMSG_CLOEXEC;
		}
		return r == ET_STALE ? et_real.recvmsg(fd, msg, flags) : et_return(r);
	}
	et_sock_leave(s);
	return et_real.recvmsg(fd, msg, flags);
}

ET_EXPORT ssize_t write(int fd, const void *buf, size_t n)
{
	struct et_sock *s = enter(fd);
	ssize_t r;

	if (et_likely(!s))
		return et_real.write(fd, buf, n);
	r = send_one(s, fd, buf, n, 0);
	return r == ET_STALE ? et_real.write(fd, buf, n) : et_return(r);
}

ET_EXPORT ssize_t send(int fd, const void *buf, size_t n, int flags)
{
	struct et_sock *s = enter(fd);
	ssize_t r;

	if (et_likely(!s))
		return et_real.send(fd, buf, n, flags);
	r = send_one(s, fd, buf, n, flags);
	return r == ET_STALE ? et_real.send(fd, buf, n, flags) : et_return(r);
}

ET_EXPORT ssize_t sendto(int fd, const void *buf, size_t n, int flags, const struct sockaddr *addr,
			 socklen_t len)
{
	struct et_sock *s = enter(fd);
	ssize_t r;

	if (et_likely(!s))
		return et_real.sendto(fd, buf, n, flags, addr, len);
	/* With an address it may be TCP fast open, or an error. */
	if (addr)
		ON_KERNEL(s, fd, et_real.sendto(fd, buf, n, flags, addr, len));
	r = send_one(s, fd, buf, n, flags);
	return r == ET_STALE ? et_real.sendto(fd, buf, n, flags, addr, len) : et_return(r);
}

ET_EXPORT ssize_t writev(int fd, const struct iovec *iov, int count)
{
	struct et_sock *s = enter(fd);
	ssize_t r;

	if (et_likely(!s))
		return et_real.writev(fd, iov, count);
	r = vector(s, fd, iov, count, 0, true);
	return r == ET_STALE ? et_real.writev(fd, iov, count) : et_return(r);
}

/*
 * With the offset -1 these are readv() and writev() with flags, of which the
 * fast path knows one; all others are refused by the kernel or mean nothing to a
 * socket. Any other offset is an error.
 */
#define AT(name, type, real, write)                                                                \
	ET_EXPORT ssize_t name(int fd, const struct iovec *iov, int count, type offset, int flags) \
	{                                                                                          \
		struct et_sock *s = enter(fd);                                                     \
		ssize_t r;                                                                         \
                                                                                                   \
		if (et_likely(!s))                                                                 \
			return et_real.real(fd, iov, count, offset, flags);                        \
		if (offset != -1 || flags & ~RWF_NOWAIT)                                           \
			ON_KERNEL(s, fd, et_real.real(fd, iov, count, offset, flags));             \
		r = vector(s, fd, iov, count, flags & RWF_NOWAIT ? MSG_DONTWAIT : 0, write);       \
		return r == ET_STALE ? et_real.real(fd, iov, count, offset, flags) : et_return(r); \
	}

AT(preadv2, off_t, preadv2, false)
AT(preadv64v2, off64_t, preadv64v2, false)
AT(pwritev2, off_t, pwritev2, true)
AT(pwritev64v2, off64_t, pwritev64v2, true)

ET_EXPORT ssize_t sendmsg(int fd, const struct msghdr *msg, int flags)
{
	struct et_sock *s = enter(fd);
	ssize_t total, r;

	if (et_likely(!s)) {
		each_right(msg, give_right);
		return et_real.sendmsg(fd, msg, flags);
	}
	total = message_total(msg);
	if (total >= 0 && !msg->msg_name) {
		struct call k = {.s = s,
				 .fd = fd,
				 .flags = flags,
				 .total = (size_t)total,
				 .at = {msg->msg_iov, (int)msg->msg_iovlen, 0},
				 .msg = (struct msghdr *)msg};

		r = do_send(&k);
		return r == ET_STALE ? et_real.sendmsg(fd, msg, flags) : et_return(r);
	}
	ON_KERNEL(s, fd, et_real.sendmsg(fd, msg, flags));
}

/* ---- calls that the fast path does not do -------------------------------- */

ET_EXPORT int recvmmsg(int fd, struct mmsghdr *msgs, unsigned int count, int flags,
		       struct timespec *timeout)
{
	struct et_sock *s = enter(fd);
	int r;

	if (et_unlikely(s))
		ON_KERNEL(s, fd, et_real.recvmmsg(fd, msgs, count, flags, timeout));
	r = et_real.recvmmsg(fd, msgs, count, flags, timeout);
	for (int i = 0; i < r; i++)
		each_right(&msgs[i].msg_hdr, take_right);
	return r;
}

ET_EXPORT int sendmmsg(int fd, struct mmsghdr *msgs, unsigned int count, int flags)
{
	struct et_sock *s = enter(fd);
	int r;

	if (et_unlikely(s))
		ON_KERNEL(s, fd, et_real.sendmmsg(fd, msgs, count, flags));
	for (unsigned int i = 0; msgs && i < count; i++)
		each_right(&msgs[i].msg_hdr, give_right);
	return et_real.sendmmsg(fd, msgs, count, flags);
}

ET_EXPORT ssize_t splice(int in, off64_t *in_offset, int out, off64_t *out_offset, size_t n,
			 unsigned int flags)
{
	struct et_sock *s = et_sock_enter(in);
	int fd = in;
	ssize_t r;

	/* One end is a pipe. */
	if (!s) {
		s = et_sock_enter(out);
		fd = out;
	}
	if (et_likely(!s))
		return et_real.splice(in, in_offset, out, out_offset, n, flags);
	ON_KERNEL(s, fd, et_real.splice(in, in_offset, out, out_offset, n, flags));
}

/* libc formats into a buffer and writes that itself. */
ET_EXPORT int vdprintf(int fd, const char *format, va_list args)
{
	struct et_sock *s = enter(fd);
	int r;

	if (et_likely(!s))
		return et_real.vdprintf(fd, format, args);
	ON_KERNEL(s, fd, et_real.vdprintf(fd, format, args));
}

ET_EXPORT int __vdprintf_chk(int fd, int flag, const char *format, va_list args)
{
	struct et_sock *s = enter(fd);
	int r;

	if (et_likely(!s))
		return et_real.__vdprintf_chk(fd, flag, format, args);
	ON_KERNEL(s, fd, et_real.__vdprintf_chk(fd, flag, format, args));
}

ET_EXPORT int dprintf(int fd, const char *format, ...)
{
	va_list args;
	int r;

	va_start(args, format);
	r = vdprintf(fd, format, args);
	va_end(args);
	return r;
}

ET_EXPORT int __dprintf_chk(int fd, int flag, const char *format, ...)
{
	va_list args;
	int r;

	va_start(args, format);
	r = __vdprintf_chk(fd, flag, format, args);
	va_end(args);
	return r;
}
