/* SPDX-License-Identifier: Apache-2.0 */
/*
 * epoll_wait() for sets with fast sockets: what the rings bring and what the
 * real set has, in fair turns; then a bounded spin; then one real sleep on both.
 */
#include "epoll.h"

#include "config.h"
#include "sock.h"
#include "sys.h"

/*
 * The real set is looked at so often while fast sockets keep us busy or we spin:
 * a system call that mostly finds nothing. After a look that found something
 * the next is soon, after each other one it is later.
 */
#define KERNEL_TURNS 256
#define KERNEL_MIN_NS 25000u
#define KERNEL_MAX_NS 200000u
#define CLOCK_TURNS 4
/* Looks at the rings between two looks at the clock. */
#define QUIET_LOOKS 16
/* Without a waiter a thread looks again so often. */
#define NAP_NS 1000000u
#define NS_PER_MS 1000000
#define NS_PER_S 1000000000ll

static int real_wait(int epfd, struct epoll_event *events, int max, int timeout,
		     const sigset_t *mask)
{
	return (int)et_sys6(SYS_epoll_pwait, epfd, (long)events, max, timeout, (long)mask,
			    _NSIG / 8);
}

struct waiting {
	struct et_epoll *ep;
	int epfd;
	struct epoll_event *events;
	int max;
	const sigset_t *mask;
	uint64_t start, deadline;
	uint64_t now; /* as last read: the clock costs as much as a short turn */
};

/* What there is now. `kernel`: look at the real set, too, and first. */
static int look(struct waiting *w, bool kernel)
{
	struct et_epoll *ep = w->ep;
	int n = 0, room = w->max;

	if (atomic_load_explicit(&et_fast_count, memory_order_relaxed))
		et_rx_poll();
	et_moving_poll();
	if (kernel) {
		/* Leave room, so that neither side starves. */
		if (atomic_load(&ep->inbox) || atomic_load(&ep->ready_count))
			room = room > 1 ? (room + 1) / 2 : !ep->kernel_last;
		n = room ? real_wait(w->epfd, w->events, room, 0, NULL) : 0;
		if (n > 0 || ep->kernel_gap < KERNEL_MIN_NS)
			ep->kernel_gap = KERNEL_MIN_NS;
		else if (ep->kernel_gap < KERNEL_MAX_NS)
			ep->kernel_gap *= 2;
		ep->kernel_last = n > 0;
		if (n < 0 || n == w->max)
			return n;
	}
	return n + et_epoll_collect(ep, w->events + n, w->max - n);
}

/*
 * Is it the real set's turn, though fast sockets have events? The clock is not
 * read at every turn: that would cost more than the rest of a short one.
 */
static bool kernel_turn(struct et_epoll *ep)
{
	uint64_t now;

	if (atomic_load_explicit(&ep->fast, memory_order_relaxed)) {
		if (++ep->turns % CLOCK_TURNS)
			return false;
		now = et_now_ns();
		if (ep->turns < KERNEL_TURNS && now - ep->kernel_ns < ep->kernel_gap)
			return false;
		ep->kernel_ns = now;
	}
	ep->turns = 0;
	return true;
}

/* Nothing new to look at: a few loads, since what is waited for comes soon. */
static bool quiet(struct et_epoll *ep)
{
	for (int i = 0; i < QUIET_LOOKS; i++) {
		if (et_rx_pending() || atomic_load_explicit(&ep->inbox, memory_order_relaxed) ||
		    atomic_load_explicit(&ep->ready_count, memory_order_relaxed) ||
		    atomic_load_explicit(&et_moving_count, memory_order_relaxed))
			return false;
		et_pause();
	}
	return true;
}

static int spin(struct waiting *w, uint64_t end)
{
	uint64_t kernel_at = w->start + w->ep->kernel_gap;
	int n;

	if (end > w->deadline)
		end = w->deadline;
	for (w->now = w->start; w->now < end; w->now = et_now_ns()) {
		bool fast = atomic_load(&w->ep->fast), kernel = !fast || w->now >= kernel_at;

		if (fast && !kernel && quiet(w->ep))
			continue;
		if (kernel)
			kernel_at = w->now + w->ep->kernel_gap;
		n = look(w, kernel);
		if (n)
			return n;
		et_flush();
	}
	return 0;
}

/* One sleep; 0: look again. */
static int sleep_once(struct waiting *w)
{
	struct pollfd p[ET_SLEEP_FDS] = {{.fd = w->epfd, .events = POLLIN}};
	int fds[ET_SLEEP_FDS - 2], count = 0;
	struct et_waiter waiter;
	uint64_t now, deadline = w->deadline;
	int n, r, err = et_wait_begin(&waiter);

	n = look(w, true);
	if (n) {
		if (!err)
			et_wait_end(&waiter);
		return n;
	}
	et_flush();
	now = et_now_ns();
	if (!err)
		p[++count] = (struct pollfd){.fd = waiter.fd, .events = POLLIN};
	else if (deadline - now > NAP_NS)
		deadline = now + NAP_NS;
	if (atomic_load(&et_fast_count) || atomic_load(&et_moving_count)) {
		n = et_wait_fds(fds, ET_SLEEP_FDS - 2);
		for (int i = 0; i < n; i++)
			p[++count] = (struct pollfd){.fd = fds[i], .events = POLLIN};
	}
	r = et_sleep(err ? NULL : &waiter, p, (nfds_t)count + 1, now, deadline, w->mask,
		     &w->ep->file, ET_FD_EPOLL, NULL);
	if (!err)
		et_wait_end(&waiter);
	return r < 0 ? r : 0;
}

static int wait_long(struct waiting *w, uint64_t budget)
{
	int n;

	et_flush();
	if (budget) {
		n = spin(w, w->start + budget);
		if (n)
			return n;
	}
	for (;;) {
		n = sleep_once(w);
		if (!n)
			n = look(w, true);
		w->now = et_now_ns();
		if (n || w->now >= w->deadline)
			return n;
	}
}

static int wait_events(struct waiting *w, int64_t timeout_ns)
{
	struct et_epoll *ep = w->ep;
	bool spins = atomic_load(&ep->fast) || (atomic_load(&ep->socks) && et_spin_kernel());
	uint64_t budget = spins ? et_spin_budget(&ep->spin) : 0;
	bool kernel = kernel_turn(ep);
	int n = look(w, kernel);

	if (n)
		return n;
	if (timeout_ns == 0)
		return kernel && !w->mask ? 0 : real_wait(w->epfd, w->events, w->max, 0, w->mask);
	w->start = et_now_ns();
	w->deadline = et_deadline(w->start, timeout_ns);
	n = wait_long(w, budget);
	if (spins)
		et_spin_learn(&ep->spin, w->now - w->start, budget != 0);
	return n;
}

/* Is there anything that the real call would miss? */
static bool needed(struct et_epoll *ep)
{
	return atomic_load(&ep->fast) || (atomic_load(&ep->live) && et_policy.promote && et_up()) ||
	       (atomic_load(&ep->socks) && et_spin_kernel());
}

static __attribute__((noinline)) struct et_epoll *enter_known(int epfd, const void *events,
							      struct et_epoll **blind)
{
	struct et_epoll *ep = et_fd_pin(epfd, ET_FD_EPOLL, ET_PIN);

	if (!ep)
		return NULL;
	if (et_unlikely(ep->foreign)) {
		ep->foreign = false;
		et_epoll_demote_all(ep, ETRAN_PATH_FORK);
	}
	/* Whether there is an event to fail with is the real call's to find out. */
	if (et_unlikely(et_nowhere(events)))
		et_epoll_demote_all(ep, ETRAN_PATH_API);
	else if (needed(ep))
		return ep;
	/* Whoever makes it needed does that and then looks here. */
	atomic_fetch_add(&ep->blind, 1);
	if (et_unlikely(needed(ep)) && !et_nowhere(events)) {
		atomic_fetch_sub(&ep->blind, 1);
		return ep;
	}
	*blind = ep;
	return NULL;
}

/*
 * The pinned set, if this wait is ours. If not, the caller does the real call
 * and then leave_blind(): as long as it sleeps, nothing can tell it of a fast
 * socket, so the set gets none.
 */
static inline struct et_epoll *enter(int epfd, const void *events, int max, struct et_epoll **blind)
{
	*blind = NULL;
	if (et_likely(!et_fd_entry(epfd)) || max <= 0)
		return NULL;
	return enter_known(epfd, events, blind);
}

static int leave_blind(struct et_epoll *ep, int result)
{
	if (ep) {
		atomic_fetch_sub(&ep->blind, 1);
		et_file_put(&ep->file, ET_FD_EPOLL, ET_PIN);
	}
	return result;
}

static int run(struct et_epoll *ep, int epfd, struct epoll_event *events, int max,
	       int64_t timeout_ns, const sigset_t *mask)
{
	struct waiting w = {.ep = ep, .epfd = epfd, .events = events, .max = max, .mask = mask};
	int n = wait_events(&w, timeout_ns);

	et_file_put(&ep->file, ET_FD_EPOLL, ET_PIN);
	return (int)et_return(n);
}

ET_EXPORT int epoll_wait(int epfd, struct epoll_event *events, int max, int timeout)
{
	struct et_epoll *blind, *ep = enter(epfd, events, max, &blind);

	if (!ep)
		return leave_blind(blind, et_real.epoll_wait(epfd, events, max, timeout));
	return run(ep, epfd, events, max, (int64_t)timeout * NS_PER_MS, NULL);
}

ET_EXPORT int epoll_pwait(int epfd, struct epoll_event *events, int max, int timeout,
			  const sigset_t *mask)
{
	struct et_epoll *blind, *ep = enter(epfd, events, max, &blind);

	if (!ep)
		return leave_blind(blind, et_real.epoll_pwait(epfd, events, max, timeout, mask));
	return run(ep, epfd, events, max, (int64_t)timeout * NS_PER_MS, mask);
}

ET_EXPORT int epoll_pwait2(int epfd, struct epoll_event *events, int max,
			   const struct timespec *timeout, const sigset_t *mask)
{
	struct et_epoll *blind = NULL, *ep = NULL;

	/* What is no time is the kernel's to refuse. */
	if (!timeout || (timeout->tv_sec >= 0 && timeout->tv_nsec >= 0 &&
			 timeout->tv_nsec < NS_PER_S && timeout->tv_sec < INT64_MAX / NS_PER_S - 1))
		ep = enter(epfd, events, max, &blind);
	if (!ep)
		return leave_blind(blind, et_real.epoll_pwait2(epfd, events, max, timeout, mask));
	return run(ep, epfd, events, max,
		   timeout ? timeout->tv_sec * NS_PER_S + timeout->tv_nsec : -1, mask);
}
