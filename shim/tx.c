/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sending: frames for the tap. The egress program runs inside write(), in this
 * thread, so its verdict can be read from the published words when write()
 * returns; write() itself never tells.
 */
#include <sys/uio.h>

#include "core.h"

/* Payload up to here is copied next to the header: one write() is cheaper
 * than a writev() of two pieces. */
#define COPY_MAX 512u

struct frame {
	struct etran_tx_header h;
	uint8_t room[ETRAN_HEADER_ROOM - sizeof(struct etran_tx_header)];
	uint8_t payload[ETRAN_FRAME_SIZE];
} __attribute__((aligned(8)));
_Static_assert(offsetof(struct frame, payload) == ETRAN_HEADER_ROOM, "payload follows the headers");

/* Octets the program's buffer can still take, from `ack` on. */
static uint32_t offered_window(const struct et_conn *c, uint32_t ack)
{
	uint32_t edge =
		__atomic_load_n(&c->shared->rcv.read, __ATOMIC_RELAXED) + et_core.arena->rcv_size;
	uint32_t wnd = seq_before(ack, edge) ? edge - ack : 0;

	return wnd < c->shared->rcv_window ? wnd : c->shared->rcv_window;
}

static void fill_header(struct et_conn *c, struct etran_tx_header *h, uint32_t flags)
{
	struct et_context *x = &et_core.context;
	/* One ring's credit per frame, in turn. */
	static _Atomic unsigned turn;
	unsigned q = x->queues > 1 ? atomic_fetch_add(&turn, 1) % x->queues : 0;
	uint32_t ack = __atomic_load_n(&c->shared->rcv.nxt, __ATOMIC_ACQUIRE);

	h->magic = ETRAN_ABI_MAGIC ^ ETRAN_ABI_VERSION;
	h->slot = c->slot;
	h->generation = c->generation;
	h->flags = flags;
	h->ack = ack;
	h->wnd = offered_window(c, ack);
	h->ring = x->first_ring + q;
	h->consumed = x->queue[q].taken;
	x->queue[q].reported = h->consumed;
	c->acked = ack;
	c->edge = ack + h->wnd;
	c->ack_now = false;
}

/*
 * Write a frame of connection `c` to the tap; c->acked and c->edge say what it
 * says. If the egress program refuses it, the peer has heard nothing of that:
 * the assist tells it. False: the tap is broken.
 */
static bool write_frame(struct et_conn *c, const struct iovec *iov, int iovcnt)
{
	uint32_t refused = __atomic_load_n(&c->pub->tx_refused, __ATOMIC_RELAXED);
	ssize_t done = iovcnt == 1 ? et_sys_write(et_core.tap, iov->iov_base, iov->iov_len)
				   : et_sys_writev(et_core.tap, iov, iovcnt);

	if (__atomic_load_n(&c->pub->tx_refused, __ATOMIC_RELAXED) != refused) {
		c->ack_now = true;
		et_assist_arm(c);
	}
	return done >= 0;
}

static enum et_tx verdict(struct et_conn *c, uint32_t end, bool fresh)
{
	const struct etran_pub *p = c->pub;

	if (!fresh || __atomic_load_n(&p->snd_nxt, __ATOMIC_RELAXED) == end)
		return ET_TX_OK;
	switch (__atomic_load_n(&p->tx_reason, __ATOMIC_RELAXED)) {
	case ETRAN_DROP_TX_WINDOW:
		return ET_TX_WINDOW;
	case ETRAN_DROP_TX_STATE:
	case ETRAN_DROP_TX_GENERATION:
		return ET_TX_STOPPED;
	default:
		return ET_TX_ERROR;
	}
}

/* One segment [seq, seq + n), n > 0. Conn lock. */
enum et_tx et_tx_data(struct et_conn *c, uint32_t seq, uint32_t n, uint32_t flags)
{
	struct frame f;
	const uint8_t *data =
		snd_view(&c->shared->snd, c->snd_ring, et_core.arena->snd_size, seq, n, f.payload);
	struct iovec iov[2] = {{&f, ETRAN_HEADER_ROOM}, {(void *)data, n}};
	int iovcnt = 2;

	fill_header(c, &f.h, flags);
	f.h.seq = seq;
	f.h.length = (uint16_t)n;
	f.h.csum = et_csum(data, n);
	if (data == f.payload || n <= COPY_MAX) {
		if (data != f.payload)
			memcpy(f.payload, data, n);
		iov[0].iov_len += n;
		iovcnt = 1;
	}
	if (!write_frame(c, iov, iovcnt))
		return ET_TX_ERROR;
	return verdict(c, seq + n, !(flags & ETRAN_TX_RETRANSMIT));
}

/*
 * What lies beyond the first hole (RFC 2018 4): first the range with the latest
 * segment, then from the right, where segments have come last. Context lock.
 */
static void fill_sack(const struct et_conn *c, struct etran_tx_sack *s)
{
	const struct etran_rcvbuf *b = &c->shared->rcv;
	const struct etran_range *latest = NULL;

	s->count = 0;
	for (uint32_t i = 0; i < b->ranges; i++)
		if (!seq_before(c->recent, b->range[i].start) &&
		    seq_before(c->recent, b->range[i].end))
			latest = &b->range[i];
	if (latest)
		s->block[s->count++] = *latest;
	for (uint32_t i = b->ranges; i > 0 && s->count < ETRAN_SACK_BLOCKS; i--)
		if (&b->range[i - 1] != latest)
			s->block[s->count++] = b->range[i - 1];
}

void et_tx_ack(struct et_conn *c, uint32_t flags)
{
	struct frame f;
	struct iovec iov = {&f, ETRAN_HEADER_ROOM};

	if (et_lock_mine(&et_core.context.lock) && c->shared->rcv.ranges) {
		struct etran_tx_sack sack = {0};

		fill_sack(c, &sack);
		memcpy(f.payload, &sack, sizeof(sack));
		iov.iov_len += sizeof(sack);
		flags |= ETRAN_TX_SACK;
	}
	fill_header(c, &f.h, flags);
	f.h.seq = c->shared->snd.nxt;
	f.h.length = 0;
	f.h.csum = 0;
	if (!write_frame(c, &iov, 1))
		et_want(c, ETRAN_PATH_TX_ERROR);
}

/* Report consumed descriptors when no segment has done so for long. */
void et_tx_credit(void)
{
	struct et_context *x = &et_core.context;

	for (unsigned q = 0; q < x->queues; q++) {
		struct frame f = {0};

		if (x->queue[q].taken - x->queue[q].reported < ETRAN_RING_SIZE / 4)
			continue;
		x->queue[q].reported = x->queue[q].taken;
		f.h.magic = ETRAN_ABI_MAGIC ^ ETRAN_ABI_VERSION;
		f.h.flags = ETRAN_TX_CREDIT;
		f.h.slot = ETRAN_FIRST_SLOT;
		f.h.ring = x->first_ring + q;
		f.h.consumed = x->queue[q].taken;
		et_sys_write(et_core.tap, &f, ETRAN_HEADER_ROOM);
	}
}

void et_tx_push(struct et_conn *c)
{
	struct etran_sndbuf *b = &c->shared->snd;
	uint32_t mss = c->shared->mss;

	snd_acked(b, __atomic_load_n(&c->pub->snd_una, __ATOMIC_ACQUIRE));
	while (b->nxt != b->end) {
		uint32_t limit = __atomic_load_n(&c->pub->snd_limit, __ATOMIC_RELAXED);
		uint32_t n = b->end - b->nxt < mss ? b->end - b->nxt : mss;
		uint32_t flags = b->nxt + n == b->end ? ETRAN_TX_PUSH : 0;
		enum et_tx r;

		if (seq_after(b->nxt + n, limit)) {
			/* Silly window avoidance (RFC 9293 3.8.6.2.1): a short
			 * segment only if nothing is in flight. */
			if (!seq_before(b->nxt, limit) || b->nxt != b->una)
				break;
			n = limit - b->nxt;
		}
		r = et_tx_data(c, b->nxt, n, flags);
		if (r == ET_TX_ERROR)
			et_want(c, ETRAN_PATH_TX_ERROR);
		if (r != ET_TX_OK)
			break;
		b->nxt += n;
	}
	if (b->nxt != b->una || b->nxt != b->end)
		et_assist_arm(c);
}

void et_tx_retransmit(struct et_conn *c)
{
	struct etran_sndbuf *b = &c->shared->snd;
	uint32_t n;

	snd_acked(b, __atomic_load_n(&c->pub->snd_una, __ATOMIC_ACQUIRE));
	n = b->nxt - b->una < c->shared->mss ? b->nxt - b->una : c->shared->mss;
	if (n)
		et_tx_data(c, b->una, n, ETRAN_TX_RETRANSMIT | ETRAN_TX_PUSH);
}

void et_tx_queue(struct et_conn *c)
{
	uint32_t n;

	if (atomic_exchange(&c->queued, true))
		return;
	/* A handler that interrupted the list's holder leaves it to the assist. */
	if (!et_lock(&et_core.flush_lock)) {
		atomic_store(&c->queued, false);
		et_assist_arm(c);
		return;
	}
	n = atomic_load_explicit(&et_core.flush_count, memory_order_relaxed);
	et_core.flush[n] = (uint16_t)c->slot;
	atomic_store_explicit(&et_core.flush_count, n + 1, memory_order_release);
	et_unlock(&et_core.flush_lock);
}

/*
 * Three duplicate ACKs (RFC 5681 3.2) or, after a retransmission for whatever
 * reason, an ACK of a part of what was in flight then (RFC 6582 3.2): once per
 * loss that XDP counted.
 */
void et_tx_recover(struct et_conn *c)
{
	uint32_t losses = __atomic_load_n(&c->pub->losses, __ATOMIC_ACQUIRE);

	if (losses == c->losses)
		return;
	c->losses = losses;
	if (__atomic_load_n(&c->pub->loss_seq, __ATOMIC_RELAXED) ==
	    __atomic_load_n(&c->pub->snd_una, __ATOMIC_RELAXED))
		et_tx_retransmit(c);
}

static bool more_to_send(const struct et_conn *c)
{
	return c->shared->snd.nxt != c->shared->snd.end ||
	       __atomic_load_n(&c->pub->losses, __ATOMIC_RELAXED) != c->losses;
}

static void flush_one(struct et_conn *c)
{
	atomic_store(&c->queued, false);
	if (!c->committed || et_phase(c) != ETRAN_PHASE_FAST)
		return;
	/* A segment is missing, or more to send and an ACK has made room: the
	 * data carries our ACK. If the lock is taken, the assist does it. */
	if (more_to_send(c) && et_trylock(et_conn_lock(c))) {
		if (et_phase(c) == ETRAN_PHASE_FAST) {
			et_tx_recover(c);
			et_tx_push(c);
		}
		et_conn_unlock(c);
	}
	if (c->ack_now || c->acked != c->shared->rcv.nxt)
		et_tx_ack(c, 0);
}

void et_flush(void)
{
	uint16_t slot[64];

	while (atomic_load_explicit(&et_core.flush_count, memory_order_acquire)) {
		uint32_t n, left;

		if (!et_lock(&et_core.flush_lock))
			return;
		n = atomic_load_explicit(&et_core.flush_count, memory_order_relaxed);
		left = n > 64 ? n - 64 : 0;
		memcpy(slot, &et_core.flush[left], (n - left) * sizeof(slot[0]));
		atomic_store_explicit(&et_core.flush_count, left, memory_order_release);
		et_unlock(&et_core.flush_lock);
		for (uint32_t i = 0; i < n - left; i++)
			flush_one(&et_core.conn[slot[i]]);
	}
}
