/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The assist: looks after connections whose program does not call in. It runs
 * on a thread of the Go side, in ticks while there is something in flight, and
 * sleeps on the rings otherwise.
 */
#include "fdtable.h"

#include <errno.h>
#include <sys/eventfd.h>

#include "core.h"
#include "session.h"

#define TICK_MS 10
/* Ticks go on for so long after the last frame. */
#define QUIET_NS 200000000ull
#define MIN_RTO_NS 200000000ull
/* The first time-out: nobody waits for long to find out that a path is dead. */
#define MAX_RTO_NS 1000000000ull
#define MAX_TIMEOUTS 2u
/* A window that stays shut so long is the kernel's business (persist timer). */
#define PERSIST_NS 2000000000ull

static _Atomic uint64_t active[ETRAN_APP_SLOTS / 64];
static _Atomic bool parked;
static _Atomic int kick = -1;
static uint32_t rings_came; /* futex */
static uint32_t taken_before;
static uint64_t moved_ns;

void et_assist_arm(struct et_conn *c)
{
	const uint64_t one = 1;

	if (atomic_load_explicit(&c->active, memory_order_relaxed))
		return;
	atomic_store(&c->active, true);
	atomic_fetch_or(&active[c->slot / 64], 1ull << (c->slot % 64));
	if (atomic_exchange(&parked, false))
		et_sys_write(atomic_load(&kick), &one, sizeof(one));
}

/* RFC 6298 2.4 with Linux' lower bound, doubled per time-out (5.5). */
static uint64_t rto_ns(const struct et_conn *c)
{
	uint64_t rto = (c->pub->srtt_us + 4ull * c->pub->rttvar_us) * 1000;

	rto = rto < MIN_RTO_NS ? MIN_RTO_NS : rto;
	return (rto < MAX_RTO_NS ? rto : MAX_RTO_NS) << c->timeouts;
}

/* Data in flight: RFC 6298 5.1-5.6. Conn lock. */
static void retransmission_timer(struct et_conn *c, uint64_t now)
{
	uint32_t una = c->pub->snd_una;

	if (!c->timer_ns || c->timer_una != una) {
		c->timer_ns = now;
		c->timer_una = una;
		c->timeouts = 0;
		return;
	}
	if (now - c->timer_ns < rto_ns(c))
		return;
	/* Without a daemon the kernel cannot have it: go on as well as we can. */
	if (c->timeouts == MAX_TIMEOUTS && et_up()) {
		et_want(c, ETRAN_PATH_RTO);
		if (c->user)
			et_please(c->user, false, ETRAN_PATH_RTO);
		return;
	}
	if (c->timeouts < MAX_TIMEOUTS)
		c->timeouts++;
	c->timer_ns = now;
	et_tx_retransmit(c);
}

/* Nothing in flight but something to send: the window is shut. Conn lock. */
static void persist_timer(struct et_conn *c, uint64_t now)
{
	if (!c->timer_ns) {
		c->timer_ns = now;
		return;
	}
	if (now - c->timer_ns < PERSIST_NS || !et_up()) {
		et_tx_ack(c, ETRAN_TX_PROBE);
		return;
	}
	et_want(c, ETRAN_PATH_RTO);
	if (c->user)
		et_please(c->user, false, ETRAN_PATH_RTO);
}

/*
 * The program waits for room, and the ACK that made it found the ring full: XDP
 * has moved SND.UNA, but could not say so. Conn lock.
 */
static void tell_room(struct et_conn *c)
{
	if (!c->want_room || !et_conn_writable(c))
		return;
	c->want_room = false;
	if (c->user)
		et_ready(c->user);
	et_wake_all();
}

/* True while the connection needs the assist. */
static bool tick_conn(struct et_conn *c, uint64_t now)
{
	struct etran_sndbuf *b = &c->shared->snd;
	bool busy = true;

	if (!et_trylock(et_conn_lock(c)))
		return true;
	if (et_phase(c) != ETRAN_PHASE_FAST || !c->committed) {
		busy = false;
	} else {
		et_tx_recover(c);
		et_tx_push(c);
		if (c->ack_now)
			et_tx_ack(c, 0);
		tell_room(c);
		if (b->nxt != b->una)
			retransmission_timer(c, now);
		else if (b->end != b->nxt)
			persist_timer(c, now);
		else
			busy = c->ack_now;
	}
	if (!busy) {
		c->timer_ns = 0;
		c->timeouts = 0;
		atomic_store(&c->active, false);
		/* Since we looked? Whoever is refused an ACK holds no lock. */
		if (c->ack_now && c->committed)
			et_assist_arm(c);
	}
	et_conn_unlock(c);
	return busy;
}

static bool tick_conns(uint64_t now)
{
	bool any = false;

	for (unsigned i = 0; i < ETRAN_APP_SLOTS / 64; i++) {
		uint64_t bits = atomic_exchange(&active[i], 0), still = 0;

		while (bits) {
			unsigned bit = (unsigned)__builtin_ctzll(bits);

			bits &= bits - 1;
			if (tick_conn(&et_core.conn[i * 64 + bit], now))
				still |= 1ull << bit;
		}
		if (still) {
			atomic_fetch_or(&active[i], still);
			any = true;
		}
	}
	return any;
}

/* Frames that lie there since the last tick: nobody else takes them. */
static void tick_rings(uint64_t now)
{
	uint32_t taken = 0;

	for (unsigned q = 0; q < et_queues(&et_core.context); q++)
		taken += et_core.context.queue[q].taken;
	if (taken != taken_before)
		moved_ns = now;
	else if (et_rx_pending())
		et_rx_poll();
	taken_before = taken;
}

/*
 * One turn. Returns the milliseconds until the next, or -1: only when park()
 * returns.
 */
int et_assist_tick(void)
{
	uint64_t now;
	bool busy;

	if (!et_rings_up())
		return -1;
	now = et_now_ns();
	tick_rings(now);
	et_flush();
	busy = tick_conns(now);
	return busy || now - moved_ns < QUIET_NS ? TICK_MS : -1;
}

static void open_kick(void)
{
	int fd;

	if (atomic_load(&kick) >= 0)
		return;
	fd = (int)et_sys3(SYS_eventfd2, 0, EFD_CLOEXEC | EFD_NONBLOCK, 0);
	if (fd >= 0)
		atomic_store(&kick, et_fd_hide(fd));
}

/* Sleep until a segment arrives that no thread waits for, or data is in flight. */
static void park(void)
{
	struct pollfd p[ET_QUEUES + 1];
	unsigned long n = 0;
	uint64_t count;

	open_kick();
	p[n++] = (struct pollfd){.fd = atomic_load(&kick), .events = POLLIN};
	for (unsigned q = 0; q < et_queues(&et_core.context); q++)
		p[n++] = (struct pollfd){.fd = et_core.context.queue[q].fd, .events = POLLIN};
	atomic_store(&parked, true);
	for (unsigned i = 0; i < ETRAN_APP_SLOTS / 64; i++)
		if (atomic_load(&active[i]))
			atomic_store(&parked, false);
	if (atomic_load(&parked))
		et_sys_ppoll(p, n, NULL);
	atomic_store(&parked, false);
	et_sys_read(atomic_load(&kick), &count, sizeof(count));
	moved_ns = et_now_ns();
}

void et_assist_kick(void)
{
	const uint64_t one = 1;

	if (atomic_load(&kick) >= 0)
		et_sys_write(atomic_load(&kick), &one, sizeof(one));
}

void et_assist_start(void)
{
	__atomic_store_n(&rings_came, 1, __ATOMIC_RELEASE);
	et_futex_wake(&rings_came, 1);
	et_assist_kick(); /* if it sleeps, it does so without the new ones */
}

void et_assist_run(void)
{
	/* Until there are rings there is nothing to do, nor a descriptor to have. */
	while (!__atomic_load_n(&rings_came, __ATOMIC_ACQUIRE))
		et_futex_wait(&rings_came, 0, NULL);
	for (;;) {
		int ms = et_assist_tick();
		const struct timespec t = {.tv_nsec = ms * 1000000L};

		if (ms < 0)
			park();
		else
			et_sys_ppoll(NULL, 0, &t);
	}
}
