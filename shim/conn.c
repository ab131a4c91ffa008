/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Life of a connection as the library sees it: the L side of the phase machine
 * in <etran/arena.h>, and the program's reads and writes on the fast path.
 */
#include <errno.h>

#include "control.h"
#include "core.h"

struct et_core et_core = {.control = -1, .tap = -1, .wake = -1};
struct et_policy et_policy;

/* How long a switch may take before the daemon is given up on. */
#define SWITCH_LIMIT_NS 5000000000ull
/* … and from the loss of a daemon on, until another one has taken its place. */
#define DEMOTE_LIMIT_NS 10000000000ull
/* How often, and how long at a time, to wait for a daemon that reads slowly. */
#define TELL_TRIES 20
#define TELL_NAP_NS 100000000
#define SPIN_NS 50000ull
#define DEMOTE_SPIN_NS 300000ull

bool et_up(void)
{
	return atomic_load_explicit(&et_core.up, memory_order_acquire);
}

bool et_rings_up(void)
{
	return atomic_load_explicit(&et_core.rings_up, memory_order_acquire);
}

/* The one setter of the phase on the library's side. */
static void set_phase(struct et_conn *c, enum etran_phase to)
{
	__atomic_store_n(&c->shared->phase, to, __ATOMIC_RELEASE);
	et_futex_wake(&c->shared->phase, INT32_MAX);
}

static bool change_phase(struct et_conn *c, enum etran_phase from, enum etran_phase to)
{
	uint32_t expected = from;

	if (!__atomic_compare_exchange_n(&c->shared->phase, &expected, to, false, __ATOMIC_ACQ_REL,
					 __ATOMIC_ACQUIRE))
		return false;
	et_futex_wake(&c->shared->phase, INT32_MAX);
	return true;
}

static int try_tell(struct et_conn *c, enum etran_msg_type type, enum etran_path_reason why, int fd)
{
	struct etran_msg_slot m = {
		.h = {ETRAN_ABI_MAGIC, ETRAN_ABI_VERSION, (uint16_t)type},
		.slot = c->slot,
		.generation = c->generation,
		.reason = why,
		.number = fd < 0 ? 0 : (uint32_t)fd,
	};

	int sock, err;

	/* Who closes `control` waits for us. */
	atomic_fetch_add(&et_core.telling, 1);
	sock = atomic_load(&et_core.control);
	err = sock < 0 ? -ENOTCONN : et_control_send(sock, &m, sizeof(m), fd);
	atomic_fetch_sub(&et_core.telling, 1);
	return err;
}

/*
 * For requests that are not taken back: without a session they are sent when
 * there is one. Whoever brings the session up does that and then looks at
 * `unsaid`; we mark there and then look for a session.
 */
static void tell(struct et_conn *c, enum etran_msg_type type, enum etran_path_reason why)
{
	int err = try_tell(c, type, why, -1);

	for (int i = 0; err == -EAGAIN && i < TELL_TRIES; i++) {
		struct pollfd p = {.fd = atomic_load(&et_core.control), .events = POLLOUT};
		const struct timespec nap = {.tv_nsec = TELL_NAP_NS};

		et_sys_ppoll(&p, 1, &nap);
		err = try_tell(c, type, why, -1);
	}
	if (!err)
		return;
	atomic_store(&et_core.unsaid[c->slot], (uint8_t)type);
	if (et_up() && atomic_exchange(&et_core.unsaid[c->slot], 0))
		try_tell(c, type, why, -1);
}

void et_conn_resay(void)
{
	for (uint32_t i = ETRAN_FIRST_SLOT; i < ETRAN_APP_SLOTS; i++) {
		struct et_conn *c = &et_core.conn[i];
		uint8_t type = atomic_exchange(&et_core.unsaid[i], 0);

		if (type)
			try_tell(c, type, __atomic_load_n(&c->shared->reason, __ATOMIC_RELAXED),
				 -1);
	}
}

/*
 * A request that needs a session begins: true if there is one. It lasts until
 * its message is out, and no session ends meanwhile: what a phase asks for when
 * a session is resumed was asked for of a daemon that is gone.
 */
static bool begin_request(void)
{
	atomic_fetch_add(&et_core.telling, 1);
	if (et_up())
		return true;
	atomic_fetch_sub(&et_core.telling, 1);
	return false;
}

static void end_request(void)
{
	atomic_fetch_sub(&et_core.telling, 1);
}

/*
 * What becomes of a switch that nobody answers: as long as the flow was not held
 * the kernel has the connection.
 */
static enum etran_phase unanswered(const struct et_conn *c)
{
	uint32_t state = __atomic_load_n(&c->pub->state, __ATOMIC_RELAXED);

	return state == ETRAN_FLOW_NONE || state == ETRAN_FLOW_OBSERVE ? ETRAN_PHASE_REFUSED
								       : ETRAN_PHASE_DEMOTE_FAILED;
}

void et_conn_fail_switches(bool gone)
{
	for (uint32_t i = ETRAN_FIRST_SLOT; i < ETRAN_APP_SLOTS; i++) {
		struct et_conn *c = &et_core.conn[i];

		if (et_phase(c) == ETRAN_PHASE_SWITCH_REQ &&
		    (gone || __atomic_load_n(&c->pub->state, __ATOMIC_RELAXED) == ETRAN_FLOW_NONE))
			change_phase(c, ETRAN_PHASE_SWITCH_REQ, unanswered(c));
	}
	et_wake_all();
}

/* What becomes of a slot whose daemon is gone for good. */
static enum etran_phase hopeless(const struct et_conn *c, uint32_t phase)
{
	switch (phase) {
	case ETRAN_PHASE_OBSERVE_REQ:
	case ETRAN_PHASE_OBSERVING:
		return ETRAN_PHASE_REFUSED;
	case ETRAN_PHASE_SWITCH_REQ:
		return unanswered(c);
	case ETRAN_PHASE_FAST:
	case ETRAN_PHASE_DEMOTE_REQ:
	case ETRAN_PHASE_FROZEN:
	case ETRAN_PHASE_DRAINED:
		return ETRAN_PHASE_DEMOTE_FAILED;
	default:
		return (enum etran_phase)phase;
	}
}

void et_conn_fail_all(void)
{
	for (uint32_t i = ETRAN_FIRST_SLOT; i < ETRAN_APP_SLOTS; i++) {
		struct et_conn *c = &et_core.conn[i];
		uint32_t phase;

		do
			phase = et_phase(c);
		while (hopeless(c, phase) != phase && !change_phase(c, phase, hopeless(c, phase)));
	}
	et_please(NULL, false, ETRAN_PATH_RESTART);
	et_wake_all();
}

void et_count_kernel(struct et_conn *c, size_t in, size_t out)
{
	struct etran_arena *a = et_core.arena;

	if (!a)
		return;
	if (c) {
		__atomic_fetch_add(&c->shared->kernel_bytes_in, in, __ATOMIC_RELAXED);
		__atomic_fetch_add(&c->shared->kernel_bytes_out, out, __ATOMIC_RELAXED);
	}
	__atomic_fetch_add(&a->kernel_bytes_in, in, __ATOMIC_RELAXED);
	__atomic_fetch_add(&a->kernel_bytes_out, out, __ATOMIC_RELAXED);
	__atomic_fetch_add(&a->kernel_calls, 1, __ATOMIC_RELAXED);
}

static void reset(struct et_conn *c, void *user)
{
	c->generation = 0;
	c->committed = c->ack_now = c->want_room = false;
	c->losses = 0;
	c->timer_ns = 0;
	c->timeouts = 0;
	atomic_store(&c->want, ETRAN_PATH_OK);
	c->shared->reason = ETRAN_PATH_OK;
	c->shared->kernel_bytes_in = c->shared->kernel_bytes_out = 0;
	c->user = user;
}

/* A slot in phase FREE, now in OBSERVE_REQ; NULL if there is none. */
static struct et_conn *take_slot(void)
{
	static _Atomic uint32_t hint;
	const uint32_t n = et_core.slots - ETRAN_FIRST_SLOT;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t slot = ETRAN_FIRST_SLOT + atomic_fetch_add(&hint, 1) % n;
		struct et_conn *c = &et_core.conn[slot];

		if (et_phase(c) == ETRAN_PHASE_FREE &&
		    change_phase(c, ETRAN_PHASE_FREE, ETRAN_PHASE_OBSERVE_REQ))
			return c;
	}
	return NULL;
}

struct et_conn *et_conn_open(int fd, void *user, bool inherited)
{
	struct et_conn *c;

	if (!begin_request())
		return NULL;
	c = take_slot();
	if (c) {
		reset(c, user);
		if (try_tell(c, ETRAN_MSG_OBSERVE, inherited ? ETRAN_PATH_FORK : ETRAN_PATH_OK,
			     fd)) {
			c->user = NULL;
			set_phase(c, ETRAN_PHASE_FREE);
			c = NULL;
		}
	}
	end_request();
	return c;
}

/* On the way back to the kernel. */
static bool demoting(uint32_t phase)
{
	return phase == ETRAN_PHASE_DEMOTE_REQ || phase == ETRAN_PHASE_FROZEN ||
	       phase == ETRAN_PHASE_DRAINED;
}

enum et_progress et_conn_progress(struct et_conn *c)
{
	uint32_t phase = et_phase(c);

	switch (phase) {
	case ETRAN_PHASE_OBSERVE_REQ:
	case ETRAN_PHASE_SWITCH_REQ:
		return ET_WAIT;
	case ETRAN_PHASE_OBSERVING:
		return et_rings_up() && c->pub->generation == c->shared->generation &&
				       __atomic_load_n(&c->pub->obs_segs, __ATOMIC_RELAXED)
			       ? ET_CAN_SWITCH
			       : ET_WAIT;
	case ETRAN_PHASE_FAST:
		return c->committed ? ET_FAST : ET_COMMIT;
	default:
		return demoting(phase) ? ET_WAIT : ET_GONE;
	}
}

bool et_conn_lost(const struct et_conn *c)
{
	return et_phase(c) == ETRAN_PHASE_DEMOTE_FAILED;
}

enum etran_path_reason et_conn_reason(struct et_conn *c)
{
	return __atomic_load_n(&c->shared->reason, __ATOMIC_RELAXED);
}

int et_conn_switch(struct et_conn *c)
{
	int err;

	if (!begin_request())
		return -ENOTCONN;
	c->generation = c->shared->generation;
	if (!change_phase(c, ETRAN_PHASE_OBSERVING, ETRAN_PHASE_SWITCH_REQ)) {
		end_request();
		return -EAGAIN;
	}
	err = try_tell(c, ETRAN_MSG_SWITCH, ETRAN_PATH_OK, -1);
	if (err)
		change_phase(c, ETRAN_PHASE_SWITCH_REQ, ETRAN_PHASE_OBSERVING);
	end_request();
	return err;
}

/* Wait until the phase is not `phase` any more; returns the phase seen last. */
static uint32_t await_phase(struct et_conn *c, uint32_t phase, uint64_t limit_ns, uint64_t spin_ns)
{
	uint64_t start = et_now_ns(), now = start;
	uint32_t seen;

	while ((seen = et_phase(c)) == phase) {
		if (now - start >= limit_ns)
			break;
		if (now - start < spin_ns) {
			et_pause();
		} else {
			uint64_t left = limit_ns - (now - start);
			const struct timespec t = {(time_t)(left / 1000000000),
						   (long)(left % 1000000000)};

			et_futex_wait(&c->shared->phase, phase, &t);
		}
		now = et_now_ns();
	}
	return seen;
}

/* Wait until a demotion under way is over; returns the phase seen last. */
static uint32_t await_demoted(struct et_conn *c)
{
	uint32_t phase, seen = et_phase(c);

	do {
		phase = seen;
		if (demoting(phase))
			seen = await_phase(c, phase, SWITCH_LIMIT_NS, 0);
	} while (seen != phase);
	return phase;
}

enum et_progress et_conn_await(struct et_conn *c, uint32_t timeout_us)
{
	uint64_t limit = timeout_us == UINT32_MAX ? SWITCH_LIMIT_NS : timeout_us * 1000ull;
	uint64_t spin = limit <= SPIN_NS * 4 ? SPIN_NS : 0;
	uint32_t phase = await_phase(c, ETRAN_PHASE_SWITCH_REQ, limit, spin);

	if (demoting(phase)) /* taken away before this process noticed that it was fast */
		await_phase(c, phase, limit, spin);
	return et_conn_progress(c);
}

void et_conn_commit(struct et_conn *c)
{
	if (!et_lock(et_conn_lock(c)))
		return;
	if (et_phase(c) != ETRAN_PHASE_FAST || c->committed) {
		et_conn_unlock(c);
		return;
	}
	/* The acknowledgement in a held frame is lost to XDP. A segment that the
	 * peer has makes it say so again. */
	if (et_rx_commit(c) && c->shared->snd.nxt != c->shared->snd.una)
		et_tx_retransmit(c);
	et_tx_push(c);
	et_conn_unlock(c);
}

/* Ask for re-injection of the held frames and let the slot go. */
static void reinject(struct et_conn *c)
{
	if (!atomic_exchange(&c->leaving, false))
		return;
	et_rx_drain();
	set_phase(c, ETRAN_PHASE_REINJECT_REQ);
	tell(c, ETRAN_MSG_REINJECT, ETRAN_PATH_OK);
}

/* The last one out does it: the releaser, or the thread that lost the lock. */
static void leave(struct et_conn *c)
{
	c->user = NULL;
	atomic_store(&c->leaving, true);
	if (!__atomic_load_n(&c->shared->displaced, __ATOMIC_SEQ_CST))
		reinject(c);
}

void et_conn_step_aside(struct et_conn *c)
{
	__atomic_store_n(&c->shared->displaced, 0, __ATOMIC_SEQ_CST);
	reinject(c);
}

void et_conn_release(struct et_conn *c)
{
	for (;;) {
		uint32_t phase = et_phase(c);

		switch (phase) {
		case ETRAN_PHASE_OBSERVE_REQ:
		case ETRAN_PHASE_OBSERVING:
			c->generation = c->shared->generation;
			if (!change_phase(c, phase, ETRAN_PHASE_CANCEL_REQ))
				continue;
			c->user = NULL;
			tell(c, ETRAN_MSG_CANCEL, ETRAN_PATH_CLOSE);
			return;
		case ETRAN_PHASE_SWITCH_REQ:
			await_phase(c, phase, SWITCH_LIMIT_NS, 0);
			continue;
		case ETRAN_PHASE_DEMOTE_REQ:
		case ETRAN_PHASE_FROZEN:
		case ETRAN_PHASE_DRAINED:
			if (demoting(await_demoted(c)))
				return; /* nobody ends it */
			continue;
		case ETRAN_PHASE_REFUSED:
			c->user = NULL;
			set_phase(c, ETRAN_PHASE_FREE);
			return;
		case ETRAN_PHASE_ABORTED:
		case ETRAN_PHASE_DEMOTED:
		case ETRAN_PHASE_DEMOTE_FAILED:
			leave(c);
			return;
		default:
			return;
		}
	}
}

/*
 * To DEMOTED with the connection's lock held. The daemon may be doing it by
 * itself already; then taking the rings is no harm. One that dies meanwhile is
 * replaced by one that goes on where it was, and perhaps says FROZEN again.
 */
static int demote_locked(struct et_conn *c, enum etran_path_reason why)
{
	uint64_t lost = atomic_load(&et_core.lost_ns), start = lost ? lost : et_now_ns();
	uint64_t passed = et_now_ns() - start;
	uint32_t phase;

	/* The kernel will take its first round-trip time from the segment that
	 * the peer received last in order: let that be a new one. */
	if (et_phase(c) == ETRAN_PHASE_FAST)
		et_tx_retransmit(c);
	if (change_phase(c, ETRAN_PHASE_FAST, ETRAN_PHASE_DEMOTE_REQ))
		tell(c, ETRAN_MSG_DEMOTE, why);
	for (phase = et_phase(c); demoting(phase) && passed < DEMOTE_LIMIT_NS;
	     passed = et_now_ns() - start) {
		if (phase == ETRAN_PHASE_FROZEN) {
			et_rx_drain();
			change_phase(c, phase, ETRAN_PHASE_DRAINED);
			phase = ETRAN_PHASE_DRAINED;
		}
		phase = await_phase(c, phase, DEMOTE_LIMIT_NS - passed, DEMOTE_SPIN_NS);
	}
	if (phase != ETRAN_PHASE_DEMOTE_FAILED && !demoting(phase))
		return 0;
	/* A daemon that comes too late shall not keep the socket. */
	if (change_phase(c, ETRAN_PHASE_DEMOTE_REQ, ETRAN_PHASE_REINJECT_REQ))
		tell(c, ETRAN_MSG_REINJECT, why);
	return -ECONNRESET;
}

int et_conn_demote(struct et_conn *c, enum etran_path_reason why)
{
	int err;

	if (!et_lock(et_conn_lock(c)))
		return -EAGAIN;
	err = demote_locked(c, why);
	et_conn_unlock(c);
	return err;
}

void et_want(struct et_conn *c, enum etran_path_reason why)
{
	uint32_t none = ETRAN_PATH_OK;

	atomic_compare_exchange_strong(&c->want, &none, why);
	if (c->user)
		et_ready(c->user);
}

void et_conns_look(void)
{
	for (uint32_t i = ETRAN_FIRST_SLOT; i < et_core.slots; i++) {
		struct et_conn *c = &et_core.conn[i];

		if (c->user && c->committed && et_conn_progress(c) == ET_GONE)
			et_want(c, et_conn_reason(c));
	}
}

enum etran_path_reason et_conn_wants_demote(struct et_conn *c)
{
	uint32_t want = atomic_load_explicit(&c->want, memory_order_relaxed);

	if (want == ETRAN_PATH_OK && __atomic_load_n(&c->pub->tx_errors, __ATOMIC_RELAXED))
		return ETRAN_PATH_TX_ERROR;
	/* Somebody else does it, or the daemon has done it. */
	if (want == ETRAN_PATH_OK && et_phase(c) != ETRAN_PHASE_FAST)
		return et_conn_reason(c) ? et_conn_reason(c) : ETRAN_PATH_REQUEST;
	return want;
}

/* The connection's lock, if the fast path has it. */
static int enter(struct et_conn *c)
{
	if (!et_lock(et_conn_lock(c)))
		return -EAGAIN;
	if (et_phase(c) == ETRAN_PHASE_FAST && c->committed)
		return 0;
	et_conn_unlock(c);
	return ET_KERNEL;
}

/*
 * The lock was seized while this thread had it, having moved `n` octets from
 * sequence `from` on: how many of them count, because the daemon saw them moved
 * (see ETRAN_LOCK_SEIZED). ET_KERNEL if none do.
 */
static ssize_t seized(struct et_conn *c, const uint32_t *taken, uint32_t from, size_t n)
{
	bool ended = !demoting(await_demoted(c));
	uint32_t done = __atomic_load_n(taken, __ATOMIC_RELAXED) - from;

	et_conn_step_aside(c);
	if (!ended)
		return -ECONNRESET;
	if (!n || (int32_t)done <= 0)
		return ET_KERNEL;
	return done < n ? (ssize_t)done : (ssize_t)n;
}

/* The program made room: tell a peer that has little of it left (RFC 9293 3.8.6.2.2). */
static void window_update(struct et_conn *c)
{
	uint32_t nxt = c->shared->rcv.nxt, left = c->edge - nxt, most = c->shared->rcv_window;
	uint32_t room = c->shared->rcv.read + et_core.arena->rcv_size - nxt;

	if (room > most)
		room = most;
	if (left < most / 2 && room - left >= most / 4)
		et_tx_ack(c, 0);
}

ssize_t et_conn_recv(struct et_conn *c, const struct iovec *iov, int iovcnt, bool peek)
{
	uint32_t from;
	size_t n;
	int err = enter(c);

	if (err)
		return err;
	from = c->shared->rcv.read;
	n = rcv_read(&c->shared->rcv, c->rcv_ring, et_core.arena->rcv_size, iov, iovcnt, peek);
	if (n && !peek)
		window_update(c);
	if (!et_unlock_shared(et_conn_lock(c)))
		return seized(c, &c->shared->taken_read, from, peek ? 0 : n);
	return n ? (ssize_t)n : -EAGAIN;
}

ssize_t et_conn_discard(struct et_conn *c, size_t n)
{
	uint32_t from;
	int err = enter(c);

	if (err)
		return err;
	from = c->shared->rcv.read;
	n = rcv_discard(&c->shared->rcv, n);
	if (n)
		window_update(c);
	if (!et_unlock_shared(et_conn_lock(c)))
		return seized(c, &c->shared->taken_read, from, n);
	return n ? (ssize_t)n : -EAGAIN;
}

ssize_t et_conn_send(struct et_conn *c, const struct iovec *iov, int iovcnt)
{
	struct etran_sndbuf *b = &c->shared->snd;
	uint32_t from;
	size_t n;
	int err = enter(c);

	if (err)
		return err;
	from = b->end;
	snd_acked(b, __atomic_load_n(&c->pub->snd_una, __ATOMIC_ACQUIRE));
	n = snd_append(b, c->snd_ring, et_core.arena->snd_size, iov, iovcnt);
	if (n)
		et_tx_push(c);
	if (!et_unlock_shared(et_conn_lock(c)))
		return seized(c, &c->shared->taken_end, from, n);
	return n ? (ssize_t)n : -EAGAIN;
}

size_t et_conn_readable(const struct et_conn *c)
{
	return rcv_unread(&c->shared->rcv);
}

size_t et_conn_unsent(const struct et_conn *c)
{
	return c->shared->snd.end - __atomic_load_n(&c->pub->snd_una, __ATOMIC_RELAXED);
}

/* As Linux: writable when a third of the buffer is free (sk_stream_is_writeable). */
size_t et_conn_writable(const struct et_conn *c)
{
	uint32_t size = et_core.arena->snd_size;
	size_t used = et_conn_unsent(c);

	return used <= size - size / 3 ? size - used : 0;
}

/* The next ACK shall be delivered to us, not swallowed by XDP. */
void et_conn_want_room(struct et_conn *c)
{
	if (enter(c))
		return;
	et_tx_push(c);
	et_tx_ack(c, ETRAN_TX_NOTIFY);
	c->want_room = true;
	et_assist_arm(c);
	et_conn_unlock(c);
}

void et_conn_kept_options(const struct et_conn *c, uint32_t *keepalive, uint32_t *user_timeout)
{
	*keepalive = c->shared->keepalive;
	*user_timeout = c->shared->user_timeout;
}
