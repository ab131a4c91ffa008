/* SPDX-License-Identifier: Apache-2.0 */
/*
 * poll(), ppoll(), select(), pselect().
 *
 * A set without sockets that are or may become fast goes straight to the
 * kernel. Otherwise the kernel gets a copy without the fast ones, and a thread
 * that sleeps takes its waiter and the AF_XDP sockets along.
 */
#include "intercept.h"

#include <string.h>
#include <sys/mman.h>

#include "epoll.h"
#include "sock.h"
#include "sys.h"

/* Descriptors that fit on the stack; more are put into a mapping. */
#define STACK_FDS 256
#define KERNEL_SPIN_NS 10000u
#define NAP_NS 1000000u
#define NS_PER_S 1000000000ll
#define WORD_BITS (8 * sizeof(unsigned long))

static __thread struct et_spin spin_state;

/* Room for `count` entries and what a sleeper adds. */
struct scratch {
	struct pollfd stack[STACK_FDS + ET_SLEEP_FDS];
	struct pollfd *fds;
	size_t mapped;
};

static bool scratch_get(struct scratch *s, nfds_t count)
{
	s->fds = s->stack;
	s->mapped = 0;
	if (count <= STACK_FDS)
		return true;
	if (count > ET_FD_MAX)
		return false;
	s->mapped = (count + ET_SLEEP_FDS) * sizeof(*s->fds);
	s->fds = et_sys_mmap(s->mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return !et_sys_error(s->fds);
}

static void scratch_put(struct scratch *s)
{
	if (s->mapped)
		et_sys3(SYS_munmap, (long)s->fds, (long)s->mapped, 0);
}

struct polling {
	struct pollfd *fds; /* the program's */
	nfds_t count;
	struct pollfd *copy;
	nfds_t others; /* in the copy for the kernel */
	const sigset_t *mask;
	uint64_t start, deadline;
};

/* What a descriptor in a set means for us. */
enum need { PLAIN, SPINS, LIVE };

static enum need need_of(int fd)
{
	enum need need = PLAIN;
	struct et_sock *s;

	if (et_likely(!et_fd_entry(fd)))
		return PLAIN;
	/* The kernel does not know what is ready in such a set. */
	if (et_fd_is(fd, ET_FD_EPOLL))
		et_epoll_isolate(fd);
	s = et_sock_enter(fd);
	if (!s)
		return PLAIN;
	if (et_sock_mode(s) == ET_MODE_FOREIGN)
		et_sock_to_kernel(s, fd, ETRAN_PATH_FORK);
	if (et_sock_mode(s) != ET_MODE_KERNEL || et_sock_movable(s))
		need = LIVE;
	else if (et_spin_kernel())
		need = SPINS;
	et_sock_leave(s);
	return need;
}

static enum need need_of_all(const struct pollfd *fds, nfds_t count)
{
	enum need need = PLAIN;

	for (nfds_t i = 0; i < count && need != LIVE; i++) {
		enum need one = need_of(fds[i].fd);

		if (one > need)
			need = one;
	}
	return need;
}

/*
 * One descriptor: its revents if it is fast, and what the copy shall have.
 */
static short look_at(const struct pollfd *p, int *kernel_fd)
{
	struct et_sock *s = et_sock_enter(p->fd);
	enum etran_path_reason why;
	struct et_conn *c;
	short ready = 0;

	*kernel_fd = p->fd;
	if (!s)
		return 0;
	c = et_sock_fast(s);
	if (c) {
		why = et_sock_wants_demote(s, c);
		if (et_unlikely(why != ETRAN_PATH_OK || et_conn_progress(c) != ET_FAST))
			et_sock_demote(s, why != ETRAN_PATH_OK ? why : et_conn_reason(c));
		else
			ready = et_sock_ready(s, c, p->events);
	}
	/* In between it is not ready; the end of a switch wakes us. */
	if (et_sock_mode(s) != ET_MODE_KERNEL)
		*kernel_fd = -1;
	et_sock_leave(s);
	return ready;
}

/* Fill in the revents there are now. `kernel`: ask for the others, too. */
static int look(struct polling *p, bool kernel, const sigset_t *mask)
{
	static const struct timespec now;
	int n = 0, r = 0;

	if (atomic_load_explicit(&et_fast_count, memory_order_relaxed))
		et_rx_poll();
	et_moving_poll();
	p->others = 0;
	for (nfds_t i = 0; i < p->count; i++) {
		struct pollfd *copy = &p->copy[i];

		*copy = p->fds[i];
		copy->revents = 0;
		p->fds[i].revents = look_at(&p->fds[i], &copy->fd);
		n += p->fds[i].revents != 0;
		p->others += copy->fd >= 0;
	}
	if (p->others && (kernel || n || mask))
		r = (int)et_sys6(SYS_ppoll, (long)p->copy, (long)p->count, (long)&now, (long)mask,
				 _NSIG / 8, 0);
	if (r <= 0)
		return n ? n : r;
	for (nfds_t i = 0; i < p->count; i++)
		if (p->copy[i].fd >= 0)
			p->fds[i].revents = p->copy[i].revents;
	return n + r;
}

static int spin(struct polling *p, uint64_t end)
{
	uint64_t now, kernel_at = p->start;
	int n;

	if (end > p->deadline)
		end = p->deadline;
	while ((now = et_now_ns()) < end) {
		bool kernel = p->others == p->count || now >= kernel_at;

		if (kernel)
			kernel_at = now + KERNEL_SPIN_NS;
		et_flush();
		n = look(p, kernel, NULL);
		if (n)
			return n;
		et_pause();
	}
	return 0;
}

static int sleep_once(struct polling *p)
{
	struct et_waiter waiter;
	struct pollfd *extra;
	uint64_t now, deadline = p->deadline;
	int fds[ET_SLEEP_FDS - 1], count = 0, n, r, err = et_wait_begin(&waiter);

	n = look(p, true, NULL);
	if (n) {
		if (!err)
			et_wait_end(&waiter);
		return n;
	}
	et_flush();
	now = et_now_ns();
	extra = p->copy + p->count;
	if (!err)
		*extra++ = (struct pollfd){.fd = waiter.fd, .events = POLLIN};
	else if (deadline - now > NAP_NS)
		deadline = now + NAP_NS;
	if (atomic_load(&et_fast_count) || atomic_load(&et_moving_count))
		count = et_wait_fds(fds, ET_SLEEP_FDS - 1);
	for (int i = 0; i < count; i++)
		*extra++ = (struct pollfd){.fd = fds[i], .events = POLLIN};
	r = et_sleep(err ? NULL : &waiter, p->copy, (nfds_t)(extra - p->copy), now, deadline,
		     p->mask, NULL, 0, NULL);
	if (!err)
		et_wait_end(&waiter);
	return r < 0 ? r : 0;
}

/* timeout_ns < 0: none. */
static int poll_set(struct polling *p, enum need need, int64_t timeout_ns)
{
	uint64_t budget;
	int n = look(p, true, timeout_ns == 0 ? p->mask : NULL);

	if (n || timeout_ns == 0)
		return n;
	p->start = et_now_ns();
	p->deadline = et_deadline(p->start, timeout_ns);
	et_flush();
	budget = p->others < p->count || need == SPINS ? et_spin_budget(&spin_state) : 0;
	n = budget ? spin(p, p->start + budget) : 0;
	while (!n) {
		n = sleep_once(p);
		if (!n && et_now_ns() >= p->deadline) {
			n = look(p, true, NULL);
			break;
		}
	}
	if (et_policy.spin_us)
		et_spin_learn(&spin_state, et_now_ns() - p->start, budget != 0);
	return n;
}

/* ET_KERNEL: not ours. */
static int do_poll(struct pollfd *fds, nfds_t count, int64_t timeout_ns, const sigset_t *mask)
{
	struct polling p = {.fds = fds, .count = count, .mask = mask};
	struct scratch s;
	enum need need;
	int r;

	if (!et_fd_limit || et_nowhere(fds))
		return ET_KERNEL;
	need = need_of_all(fds, count);
	if (need == PLAIN || !scratch_get(&s, count))
		return ET_KERNEL;
	p.copy = s.fds;
	r = poll_set(&p, need, timeout_ns);
	scratch_put(&s);
	return r;
}

static bool proper(const struct timespec *t)
{
	return t->tv_sec >= 0 && t->tv_sec < INT64_MAX / NS_PER_S - 1 && t->tv_nsec >= 0 &&
	       t->tv_nsec < NS_PER_S;
}

ET_EXPORT int poll(struct pollfd *fds, nfds_t count, int timeout)
{
	int r = do_poll(fds, count, timeout * 1000000ll, NULL);

	return r == ET_KERNEL ? et_real.poll(fds, count, timeout) : (int)et_return(r);
}

ET_EXPORT int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout,
		    const sigset_t *mask)
{
	int r = ET_KERNEL;

	if (!timeout || proper(timeout))
		r = do_poll(fds, count,
			    timeout ? timeout->tv_sec * NS_PER_S + timeout->tv_nsec : -1, mask);
	return r == ET_KERNEL ? et_real.ppoll(fds, count, timeout, mask) : (int)et_return(r);
}

ET_EXPORT int __poll_chk(struct pollfd *fds, nfds_t count, int timeout, size_t room)
{
	return room / sizeof(*fds) < count ? et_real.__poll_chk(fds, count, timeout, room)
					   : poll(fds, count, timeout);
}

ET_EXPORT int __ppoll_chk(struct pollfd *fds, nfds_t count, const struct timespec *timeout,
			  const sigset_t *mask, size_t room)
{
	return room / sizeof(*fds) < count ? et_real.__ppoll_chk(fds, count, timeout, mask, room)
					   : ppoll(fds, count, timeout, mask);
}

/* ---- select -------------------------------------------------------------- */

static bool bit(const fd_set *set, int fd)
{
	const unsigned long *words = (const unsigned long *)set;

	return set && words[(size_t)fd / WORD_BITS] >> ((size_t)fd % WORD_BITS) & 1;
}

static void set_bit(fd_set *set, int fd)
{
	unsigned long *words = (unsigned long *)set;

	words[(size_t)fd / WORD_BITS] |= 1ul << ((size_t)fd % WORD_BITS);
}

static void clear_set(fd_set *set, int count)
{
	if (set)
		memset(set, 0, ((size_t)count + WORD_BITS - 1) / WORD_BITS * sizeof(long));
}

struct selecting {
	int count;
	fd_set *in, *out, *except;
};

#define IN_EVENTS (POLLIN | POLLRDNORM | POLLRDBAND)
#define OUT_EVENTS (POLLOUT | POLLWRNORM | POLLWRBAND)

static short events_of(const struct selecting *s, int fd)
{
	return (short)((bit(s->in, fd) ? IN_EVENTS : 0) | (bit(s->out, fd) ? OUT_EVENTS : 0) |
		       (bit(s->except, fd) ? POLLPRI : 0));
}

static nfds_t to_poll(const struct selecting *s, struct pollfd *fds)
{
	nfds_t n = 0;

	for (int fd = 0; fd < s->count; fd++) {
		short events = events_of(s, fd);

		if (!events)
			continue;
		if (fds)
			fds[n] = (struct pollfd){.fd = fd, .events = events};
		n++;
	}
	return n;
}

/* As fs/select.c has it: what of revents counts for which set. */
static short counts(const struct pollfd *p)
{
	short r = 0;

	if (p->events & POLLIN && p->revents & (IN_EVENTS | POLLHUP | POLLERR))
		r |= POLLIN;
	if (p->events & POLLOUT && p->revents & (OUT_EVENTS | POLLERR))
		r |= POLLOUT;
	if (p->events & POLLPRI && p->revents & POLLPRI)
		r |= POLLPRI;
	return r;
}

/* -EBADF, or the bits that would be set. What counts for none is dropped. */
static int count_bits(struct pollfd *fds, nfds_t count)
{
	int bits = 0;

	for (nfds_t i = 0; i < count; i++) {
		if (!fds[i].revents)
			continue;
		if (fds[i].revents & POLLNVAL)
			return -EBADF;
		bits += __builtin_popcount((unsigned)counts(&fds[i]));
		if (!counts(&fds[i]))
			fds[i].fd = -1;
	}
	return bits;
}

static void from_poll(const struct selecting *s, const struct pollfd *fds, nfds_t count)
{
	clear_set(s->in, s->count);
	clear_set(s->out, s->count);
	clear_set(s->except, s->count);
	for (nfds_t i = 0; i < count; i++) {
		short r = fds[i].fd >= 0 ? counts(&fds[i]) : 0;

		if (r & POLLIN)
			set_bit(s->in, fds[i].fd);
		if (r & POLLOUT)
			set_bit(s->out, fds[i].fd);
		if (r & POLLPRI)
			set_bit(s->except, fds[i].fd);
	}
}

static int64_t left_ns(uint64_t deadline)
{
	uint64_t now = et_now_ns();

	if (deadline == ET_NO_DEADLINE)
		return -1;
	return deadline > now ? (int64_t)(deadline - now) : 0;
}

static bool misplaced(const struct selecting *s)
{
	return (s->in && et_nowhere(s->in)) || (s->out && et_nowhere(s->out)) ||
	       (s->except && et_nowhere(s->except));
}

static bool select_live(const struct selecting *s)
{
	for (int fd = 0; fd < s->count; fd++)
		if (events_of(s, fd) && need_of(fd) != PLAIN)
			return true;
	return false;
}

/* ET_KERNEL: not ours. */
static int do_select(const struct selecting *s, uint64_t deadline, const sigset_t *mask)
{
	struct scratch fds;
	nfds_t count;
	int r;

	if (!et_fd_limit || s->count < 0 || (uint32_t)s->count > ET_FD_MAX || misplaced(s) ||
	    !select_live(s))
		return ET_KERNEL;
	count = to_poll(s, NULL);
	if (!scratch_get(&fds, count))
		return ET_KERNEL;
	to_poll(s, fds.fds);
	do {
		r = do_poll(fds.fds, count, left_ns(deadline), mask);
		if (r > 0)
			r = count_bits(fds.fds, count);
	} while (r == 0 && left_ns(deadline) != 0);
	if (r >= 0)
		from_poll(s, fds.fds, count);
	scratch_put(&fds);
	return r;
}

ET_EXPORT int select(int count, fd_set *in, fd_set *out, fd_set *except, struct timeval *timeout)
{
	const struct selecting s = {count, in, out, except};
	uint64_t deadline = ET_NO_DEADLINE;
	int64_t left;
	int r;

	if (timeout && (timeout->tv_sec < 0 || timeout->tv_usec < 0))
		return et_real.select(count, in, out, except, timeout);
	if (timeout && timeout->tv_sec < INT64_MAX / NS_PER_S / 2)
		deadline = et_deadline(et_now_ns(),
				       timeout->tv_sec * NS_PER_S + timeout->tv_usec * 1000);
	r = do_select(&s, deadline, NULL);
	if (r == ET_KERNEL)
		return et_real.select(count, in, out, except, timeout);
	if (timeout && deadline != ET_NO_DEADLINE) {
		left = left_ns(deadline);
		timeout->tv_sec = left / NS_PER_S;
		timeout->tv_usec = left % NS_PER_S / 1000;
	}
	return (int)et_return(r);
}

ET_EXPORT int pselect(int count, fd_set *in, fd_set *out, fd_set *except,
		      const struct timespec *timeout, const sigset_t *mask)
{
	const struct selecting s = {count, in, out, except};
	uint64_t deadline = ET_NO_DEADLINE;
	int r = ET_KERNEL;

	if (timeout && proper(timeout))
		deadline = et_deadline(et_now_ns(), timeout->tv_sec * NS_PER_S + timeout->tv_nsec);
	if (!timeout || proper(timeout))
		r = do_select(&s, deadline, mask);
	return r == ET_KERNEL ? et_real.pselect(count, in, out, except, timeout, mask)
			      : (int)et_return(r);
}
