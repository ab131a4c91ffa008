/* SPDX-License-Identifier: Apache-2.0 */
#include "sleep.h"

#include <fcntl.h>
#include <pthread.h>

#include "signals.h"
#include "sock.h"
#include "sys.h"

/* A gap longer than this many caps counts as this many. */
#define LONG_GAP 4
/* What being woken up may cost on both ends: a wait that slept and was shorter
 * than the cap and this might have been won by spinning. */
#define WAKE_UP_NS 200000u
/* Without a waiter a thread may miss a switch: it looks again so often. */
#define NAP_NS 1000000u

static uint32_t spin_cap(void)
{
	uint64_t cap = et_policy.spin_us * 1000ull;

	return cap < UINT32_MAX / LONG_GAP ? (uint32_t)cap : UINT32_MAX / LONG_GAP;
}

uint64_t et_spin_budget(const struct et_spin *p)
{
	uint32_t cap = spin_cap();

	return p->expect_ns <= cap ? cap : 0;
}

void et_spin_learn(struct et_spin *p, uint64_t gap_ns, bool spun)
{
	uint32_t cap = spin_cap();
	int64_t value;

	if (gap_ns <= cap)
		value = (int64_t)gap_ns;
	else if (!spun && gap_ns <= (uint64_t)cap + WAKE_UP_NS)
		value = cap / 2;
	else
		value = gap_ns < (uint64_t)cap * LONG_GAP ? (int64_t)gap_ns
							  : (int64_t)cap * LONG_GAP;
	p->expect_ns = (uint32_t)(p->expect_ns + (value - (int64_t)p->expect_ns) / 4);
}

uint64_t et_deadline(uint64_t now, int64_t timeout_ns)
{
	if (timeout_ns < 0 || (uint64_t)timeout_ns >= ET_NO_DEADLINE - now)
		return ET_NO_DEADLINE;
	return now + (uint64_t)timeout_ns;
}

struct sleeper {
	struct et_waiter *w;
	struct et_file *f;
	enum et_kind kind;
	const struct et_restart *restart;
};

static void cancelled(void *arg)
{
	struct sleeper *s = arg;

	if (s->restart)
		et_restart_end(s->restart);
	if (s->w)
		et_wait_end(s->w);
	if (s->f)
		et_file_put(s->f, s->kind, ET_PIN);
}

static __attribute__((noinline)) int sleep_for(struct pollfd *fds, nfds_t count,
					       const struct timespec *t, const sigset_t *mask)
{
	int saved_errno = errno, r = et_real.ppoll(fds, count, t, mask);

	if (r < 0) {
		r = -errno;
		errno = saved_errno;
	}
	return r;
}

int et_sleep(struct et_waiter *w, struct pollfd *fds, nfds_t count, uint64_t now, uint64_t deadline,
	     const sigset_t *mask, struct et_file *f, int kind, const struct et_restart *restart)
{
	uint64_t left = deadline > now ? deadline - now : 0;
	struct timespec t = {.tv_sec = (time_t)(left / 1000000000u),
			     .tv_nsec = (long)(left % 1000000000u)};
	struct sleeper s = {w, f, (enum et_kind)kind, restart};
	int r;

	pthread_cleanup_push(cancelled, &s);
	r = sleep_for(fds, count, deadline == ET_NO_DEADLINE ? NULL : &t, mask);
	pthread_cleanup_pop(0);
	return r;
}

static int which(short events)
{
	return events == POLLOUT;
}

void et_wait_init(struct et_wait *w, struct et_sock *s, int fd, short events)
{
	*w = (struct et_wait){
		.s = s,
		.fd = fd,
		.events = events,
		.spin = &s->spin[which(events)],
		.deadline = ET_NO_DEADLINE,
	};
}

static int64_t timeout_of(struct et_wait *w)
{
	_Atomic int64_t *known = &w->s->timeout[which(w->events)];
	struct timeval t = {0};
	socklen_t n = sizeof(t);

	if (atomic_load(known) == ET_TIMEOUT_UNKNOWN) {
		et_sys6(SYS_getsockopt, w->fd, SOL_SOCKET,
			which(w->events) ? SO_SNDTIMEO : SO_RCVTIMEO, (long)&t, (long)&n, 0);
		atomic_store(known, t.tv_sec * 1000000000 + t.tv_usec * 1000);
	}
	return atomic_load(known);
}

/* What need not be known for calls that do not wait. */
static void begin(struct et_wait *w)
{
	int64_t timeout = timeout_of(w);

	w->start = et_now_ns();
	w->spin_end = w->start;
	if (timeout > 0)
		w->deadline = et_deadline(w->start, timeout);
	if (et_sock_mode(w->s) == ET_MODE_FAST || et_spin_kernel())
		w->spin_end += et_spin_budget(w->spin);
}

/* Another process, or a raw system call, may have changed that. */
static bool nonblocking(struct et_wait *w)
{
	int flags = et_sys_fcntl(w->fd, F_GETFL, 0);

	if (flags < 0 || !(flags & O_NONBLOCK))
		return false;
	atomic_store(&w->s->nonblock, true);
	return true;
}

static bool fast_ready(struct et_wait *w)
{
	struct et_conn *c = et_sock_fast(w->s);

	et_rx_poll();
	return !c || et_sock_ready(w->s, c, w->events) || et_sock_wants_demote(w->s, c);
}

/* As recv() sleeps: calls with a time-out, or with something to return, are
 * never restarted. There is room for
 * one more in p. */
static int sleep_in(struct et_wait *w, struct et_waiter *waiter, struct pollfd *p, nfds_t n,
		    uint64_t now, uint64_t deadline)
{
	struct et_restart restart = {.fd = -1};
	bool forever = w->deadline == ET_NO_DEADLINE && !w->moved;
	const sigset_t *mask = NULL;
	int r;

	if (forever && et_restart_begin(&restart)) {
		p[n++] = (struct pollfd){.fd = restart.fd, .events = POLLIN};
		mask = &restart.mask;
	}
	r = et_sleep(waiter, p, n, now, deadline, mask, &w->s->file, ET_FD_SOCK, &restart);
	et_restart_end(&restart);
	if (r == -EINTR && forever && !mask && et_signals_restart())
		r = 0;
	return r;
}

static int sleep_once(struct et_wait *w, uint64_t now)
{
	struct pollfd p[ET_SLEEP_FDS];
	int xsk[ET_SLEEP_FDS - 2];
	struct et_waiter waiter;
	uint64_t deadline = w->deadline;
	enum et_mode mode;
	nfds_t n = 0;
	int r, err = et_wait_begin(&waiter);

	mode = et_sock_mode(w->s);
	if (mode == ET_MODE_FAST && !fast_ready(w)) {
		int count;

		et_flush();
		count = et_wait_fds(xsk, ET_SLEEP_FDS - 2);
		while ((int)n < count) {
			p[n] = (struct pollfd){.fd = xsk[n], .events = POLLIN};
			n++;
		}
	} else if (mode == ET_MODE_KERNEL) {
		p[n++] = (struct pollfd){.fd = w->fd, .events = w->events};
	} else {
		if (!err)
			et_wait_end(&waiter);
		return 0;
	}
	if (!err)
		p[n++] = (struct pollfd){.fd = waiter.fd, .events = POLLIN};
	else if (deadline - now > NAP_NS)
		deadline = now + NAP_NS;
	et_sock_step_out(w->s);
	r = sleep_in(w, err ? NULL : &waiter, p, n, now, deadline);
	et_sock_step_in(w->s);
	if (!err)
		et_wait_end(&waiter);
	return r < 0 ? r : 0;
}

int et_wait_turn(struct et_wait *w)
{
	uint64_t now;

	if (et_sock_mode(w->s) == ET_MODE_FAST)
		et_flush();
	if (!w->start) {
		begin(w);
		return 0;
	}
	now = et_now_ns();
	if (now < w->spin_end) {
		et_pause();
		return 0;
	}
	w->spun = w->spin_end > w->start;
	if (now >= w->deadline || nonblocking(w))
		return -EAGAIN;
	if (et_sock_mode(w->s) == ET_MODE_KERNEL && !et_sock_movable(w->s) && !w->moved)
		return ET_WAIT_IN_CALL;
	return sleep_once(w, now);
}

void et_wait_done(struct et_wait *w)
{
	if (w->start && et_policy.spin_us)
		et_spin_learn(w->spin, et_now_ns() - w->start, w->spun);
}
