/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Receiving: descriptors of the AF_XDP rings, given to the connections.
 *
 *   kernel ──► fill ring ──► frame ──► RX ring ──► here ──► receive buffer
 *      ▲                                            │ (HELD, CTL: stash)
 *      └─────────── posted again, or spare ◄────────┘
 *
 * The kernel uses the frames of a fill ring in turn, so their number is the
 * working set of the receive path: few fit the caches and the TLB. A queue has
 * `target` frames posted: few at first, more when it was seen half used, at
 * most as many as there is credit for. A burst beyond it is lost like any
 * segment (the tracepoint counts it) and the peer sends again.
 */
#include <linux/if_ether.h>
#include <linux/if_xdp.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>

#include "core.h"

#define BATCH 64u

/* Frames after which a queue that was never used much gives some back. */
#define CALM_FRAMES (1u << 16)

/* Put a frame at the disposal of the kernel, as soon as that is published. */
static void post(struct et_context *x, struct et_queue *q, uint64_t addr)
{
	q->fill_addr[q->filled++ & x->fill_mask] = addr;
	q->posted++;
}

/* The frame that contains addr is free. */
static void recycle(struct et_context *x, struct et_queue *q, uint64_t addr)
{
	addr &= ~(uint64_t)(ETRAN_FRAME_SIZE - 1);
	if (q->posted < q->target)
		post(x, q, addr);
	else
		x->spare[x->spares++] = addr;
}

void et_post_frames(struct et_context *x, struct et_queue *q)
{
	while (q->posted < q->target && x->spares)
		post(x, q, x->spare[--x->spares]);
	__atomic_store_n(q->fill_producer, q->filled, __ATOMIC_RELEASE);
}

/* `backlog` frames were waiting in the ring, of which `taken` were taken. */
static void adapt(struct et_context *x, struct et_queue *q, uint32_t backlog, uint32_t taken)
{
	if (backlog > q->peak)
		q->peak = backlog;
	q->calm += taken;
	if (2 * backlog >= q->target && q->target <= x->ring_mask) {
		q->target *= 2;
		q->peak = q->calm = 0;
	} else if (q->calm >= CALM_FRAMES) {
		if (8 * q->peak < q->target && q->target > ET_POSTED_MIN)
			q->target /= 2;
		q->peak = q->calm = 0;
	}
	et_post_frames(x, q);
}

void et_stash_reclaim(void)
{
	struct et_context *x = &et_core.context;

	for (unsigned i = 0; i < ETRAN_STASH_SIZE; i++) {
		struct etran_stash *s = &et_core.stash[i];

		if (!s->addr || __atomic_load_n(&s->state, __ATOMIC_ACQUIRE))
			continue;
		x->spare[x->spares++] = s->addr & ~(uint64_t)(ETRAN_FRAME_SIZE - 1);
		s->addr = 0;
	}
}

/* An unused entry of the stash, or NULL. */
static struct etran_stash *stash_entry(void)
{
	for (int turn = 0; turn < 2; turn++) {
		for (unsigned i = 0; i < ETRAN_STASH_SIZE; i++)
			if (!et_core.stash[i].addr)
				return &et_core.stash[i];
		et_stash_reclaim();
	}
	return NULL;
}

/* Keep a frame for later. False: no room, and the peer sends it again. */
static bool stash(struct et_conn *c, const struct xdp_desc *d, uint32_t generation)
{
	struct etran_stash *s = stash_entry();

	if (!s)
		return false;
	s->addr = d->addr;
	s->length = d->len;
	s->slot = (uint16_t)c->slot;
	s->generation = generation;
	s->order = et_core.arena->stash_order++;
	__atomic_store_n(&s->state, 1, __ATOMIC_RELEASE);
	return true;
}

/* Payload of a promoted connection. */
static void take_data(struct et_conn *c, uint32_t seq, const uint8_t *data, uint32_t n)
{
	struct etran_rcvbuf *b = &c->shared->rcv;

	switch (rcv_insert(b, c->rcv_ring, et_core.arena->rcv_size, seq, data, n)) {
	case RCV_NEW:
		/* At least every second full segment is acknowledged (RFC 9293
		 * 3.8.6.3); otherwise the answer shall carry it. */
		if (b->nxt - c->acked >= 2 * c->shared->mss || b->ranges)
			c->ack_now = true;
		et_tx_queue(c);
		if (c->user)
			et_ready(c->user);
		break;
	case RCV_HOLE:
	case RCV_DUPLICATE:
	case RCV_NO_ROOM:
		/* One ACK for each: the peer counts duplicates (RFC 5681 4.2), and
		 * one that sends beyond our window must be told (RFC 9293 3.10.7.4). */
		c->recent = seq;
		if (c->committed)
			et_tx_ack(c, 0);
		/* The segment may have acknowledged only a part (RFC 6582). */
		if (__atomic_load_n(&c->pub->losses, __ATOMIC_RELAXED) != c->losses)
			et_tx_queue(c);
		break;
	}
}

/* The headers of a raw frame, copied out: frames are not aligned for them. */
struct headers {
	struct iphdr ip;
	struct tcphdr tcp;
	uint32_t payload; /* offset in the frame */
	uint32_t length;  /* of the payload */
};

static bool parse(const uint8_t *frame, uint32_t len, struct headers *h)
{
	uint32_t at = sizeof(struct ethhdr), total;

	if (len < at + sizeof(h->ip))
		return false;
	memcpy(&h->ip, frame + at, sizeof(h->ip));
	at += h->ip.ihl * 4u;
	if (len < at + sizeof(h->tcp))
		return false;
	memcpy(&h->tcp, frame + at, sizeof(h->tcp));
	h->payload = at + h->tcp.doff * 4u;
	total = sizeof(struct ethhdr) + ntohs(h->ip.tot_len);
	if (total < h->payload || total > len)
		return false;
	h->length = total - h->payload;
	return true;
}

/* What a control segment asks for. */
static enum etran_path_reason control_reason(const struct tcphdr *t)
{
	if (t->rst)
		return ETRAN_PATH_PEER_RST;
	return t->fin && !t->urg && !t->syn ? ETRAN_PATH_PEER_FIN : ETRAN_PATH_PEER_UNUSUAL;
}

/* One descriptor. Returns false if the frame went to the stash. */
static bool take_frame(const struct et_context *x, const struct xdp_desc *d)
{
	const uint8_t *frame = x->umem + d->addr;
	const struct etran_rx_meta *m = (const void *)(frame - sizeof(*m));
	struct et_conn *c;
	struct headers h;
	bool kept = false;

	if (m->slot < ETRAN_FIRST_SLOT || m->slot >= ETRAN_APP_SLOTS)
		return true;
	c = &et_core.conn[m->slot];
	if (m->generation != __atomic_load_n(&c->shared->generation, __ATOMIC_ACQUIRE))
		return true;
	switch (m->kind) {
	case ETRAN_RX_DATA:
		take_data(c, m->seq, frame + m->offset, m->length);
		break;
	case ETRAN_RX_HELD:
		kept = stash(c, d, m->generation);
		break;
	case ETRAN_RX_CTL:
		kept = stash(c, d, m->generation);
		et_want(c, parse(frame, d->len, &h) ? control_reason(&h.tcp)
						    : ETRAN_PATH_PEER_UNUSUAL);
		break;
	case ETRAN_RX_ACK:
		et_tx_queue(c);
		if (c->user)
			et_ready(c->user);
		break;
	case ETRAN_RX_PROBE:
		c->ack_now = true;
		et_tx_queue(c);
		break;
	}
	return !kept;
}

static unsigned poll_queue(struct et_context *x, struct et_queue *q)
{
	uint32_t backlog = __atomic_load_n(q->rx_producer, __ATOMIC_ACQUIRE) - q->taken;
	uint32_t n = backlog < BATCH ? backlog : BATCH;

	if (!n)
		return 0;
	for (uint32_t i = 0; i < n; i++) {
		const struct xdp_desc *d = &q->rx_desc[(q->taken + i) & x->ring_mask];
		const struct xdp_desc *next = &q->rx_desc[(q->taken + i + 1) & x->ring_mask];

		/* The payload comes while the metadata in front is waited for. */
		__builtin_prefetch(x->umem + d->addr + ETRAN_HEADER_ROOM);
		if (i + 1 < n)
			__builtin_prefetch(x->umem + next->addr - 1);
		q->posted--;
		if (take_frame(x, d))
			recycle(x, q, d->addr);
	}
	q->taken += n;
	/* First this, then the fill ring: what a ring still shows is unchanged
	 * in its frame, and what it no longer shows is in the buffers. The daemon
	 * takes over on that ground (handover's PeekRings). */
	__atomic_store_n(q->rx_consumer, q->taken, __ATOMIC_RELEASE);
	adapt(x, q, backlog, n);
	return n;
}

static unsigned poll_queues(struct et_context *x)
{
	unsigned n = 0;

	for (unsigned q = 0; q < et_queues(x); q++)
		n += poll_queue(x, &x->queue[q]);
	return n;
}

bool et_rx_pending(void)
{
	struct et_context *x = &et_core.context;

	if (!et_rings_up())
		return false;
	for (unsigned q = 0; q < et_queues(x); q++)
		if (__atomic_load_n(x->queue[q].rx_producer, __ATOMIC_RELAXED) !=
		    __atomic_load_n(x->queue[q].rx_consumer, __ATOMIC_RELAXED))
			return true;
	return false;
}

/* Frames were taken that other threads may be waiting for. */
static void took(void)
{
	et_tx_credit();
	et_wake_others();
}

unsigned et_rx_poll(void)
{
	struct et_context *x = &et_core.context;
	unsigned n;

	if (!et_rx_pending() || !et_trylock(&x->lock))
		return 0;
	n = poll_queues(x);
	et_unlock(&x->lock);
	if (n)
		took();
	return n;
}

/* Until consumed = delivered: the proof. */
static void take_delivered(struct et_context *x)
{
	const struct etran_pub_ring *ring = (const void *)et_core.pub;

	for (unsigned q = 0; q < et_queues(x); q++)
		while (x->queue[q].taken !=
		       __atomic_load_n(&ring[x->queue[q].ring].delivered, __ATOMIC_ACQUIRE))
			if (!poll_queue(x, &x->queue[q]))
				et_pause();
}

void et_rx_drain(void)
{
	struct et_context *x = &et_core.context;

	if (!et_rings_up() || !et_lock(&x->lock))
		return;
	take_delivered(x);
	et_unlock(&x->lock);
	/* There may be nobody else to do either for some time. */
	took();
	et_flush();
}

/*
 * The segment in a held frame, as if it had come now. True if it acknowledges
 * something: XDP has not seen that, and we cannot tell it.
 */
static bool replay_frame(struct et_conn *c, const uint8_t *frame, uint32_t len)
{
	struct headers h;

	if (!parse(frame, len, &h))
		return false;
	if (h.tcp.fin || h.tcp.rst || h.tcp.syn || h.tcp.urg)
		et_want(c, control_reason(&h.tcp));
	if (h.length && !h.tcp.syn && !h.tcp.rst)
		take_data(c, ntohl(h.tcp.seq), frame + h.payload, h.length);
	return h.tcp.ack && seq_after(ntohl(h.tcp.ack_seq), c->shared->snd.una);
}

/* The stashed entry of the slot with the lowest order not below `from`. */
static struct etran_stash *stash_next(struct et_conn *c, uint32_t from)
{
	struct etran_stash *best = NULL;

	for (unsigned i = 0; i < ETRAN_STASH_SIZE; i++) {
		struct etran_stash *s = &et_core.stash[i];

		if (!s->addr || !s->state || s->slot != c->slot || s->generation != c->generation ||
		    seq_before(s->order, from))
			continue;
		if (!best || seq_before(s->order, best->order))
			best = s;
	}
	return best;
}

bool et_rx_held(struct et_conn *c)
{
	return stash_next(c, et_core.arena->stash_order - INT32_MAX) != NULL;
}

static bool replay(struct et_conn *c)
{
	const struct et_context *x = &et_core.context;
	uint32_t from = et_core.arena->stash_order - INT32_MAX;
	struct etran_stash *s;
	bool acked = false;

	while ((s = stash_next(c, from))) {
		from = s->order + 1;
		acked |= replay_frame(c, x->umem + s->addr, s->length);
		/* From a FIN or the like on, the frames stay for the kernel. */
		if (atomic_load(&c->want) == ETRAN_PATH_OK)
			__atomic_store_n(&s->state, 0, __ATOMIC_RELEASE);
	}
	et_stash_reclaim();
	return acked;
}

bool et_rx_commit(struct et_conn *c)
{
	struct et_context *x = &et_core.context;
	bool acked;

	if (!et_lock(&x->lock))
		return false;
	take_delivered(x);
	c->acked = c->edge = __atomic_load_n(&c->pub->rcv_nxt, __ATOMIC_RELAXED);
	c->committed = true;
	acked = replay(c);
	et_unlock(&x->lock);
	/* Data may have come, and been taken, before anybody could answer it. */
	et_tx_queue(c);
	took();
	return acked;
}
