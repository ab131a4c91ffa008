/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The receive context over rings in plain memory: what is delivered reaches the
 * connection, what is held reaches the stash, and no frame is ever lost or
 * handed out twice.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_xdp.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "core.h"
#include "session.h"
#include "unit.h"

#define FRAMES (ETRAN_RING_SIZE + ETRAN_STASH_SIZE)
#define SLOT (ETRAN_FIRST_SLOT + 3)
#define GENERATION 77u
#define ISN 0xfffff000u

/* What the kernel has of the queues; `kernel` is the one that a frame comes by. */
static struct kernel_queue {
	uint32_t number; /* of the ring */
	uint32_t rx_producer, rx_consumer, fill_producer, fill_consumer;
	struct xdp_desc rx_desc[ETRAN_RING_SIZE];
	uint64_t fill_addr[ETRAN_RING_SIZE];
} kernel_queues[2], *kernel = kernel_queues;
static struct etran_pub pub[ETRAN_APP_SLOTS];
static uint8_t umem[FRAMES * ETRAN_FRAME_SIZE];
static unsigned ready_calls;
static int wire = -1; /* what was written to the tap */

void et_ready(void *user)
{
	(void)user;
	ready_calls++;
}

void et_please(void *user, bool promote, enum etran_path_reason why)
{
	(void)user, (void)promote, (void)why;
}

/* Queue `i` gets a ring and frames, as the session does it. */
static void add_queue(unsigned i, uint32_t ring)
{
	struct et_context *x = &et_core.context;
	struct kernel_queue *k = &kernel_queues[i];

	k->number = ring;
	k->rx_producer = k->rx_consumer = k->fill_producer = k->fill_consumer = 0;
	x->queue[i] = (struct et_queue){.fd = -1,
					.ring = ring,
					.rx_producer = &k->rx_producer,
					.rx_consumer = &k->rx_consumer,
					.rx_desc = k->rx_desc,
					.fill_producer = &k->fill_producer,
					.fill_addr = k->fill_addr,
					.target = ET_POSTED_MIN};
	et_post_frames(x, &x->queue[i]);
	x->queues = i + 1;
}

static struct et_conn *setup(void)
{
	struct et_context *x = &et_core.context;
	static struct etran_arena arena = {.snd_size = ETRAN_SND_BUF, .rcv_size = ETRAN_RCV_BUF};
	static struct etran_aconn shared;
	static struct etran_stash stash[ETRAN_STASH_SIZE];
	static uint8_t rcv[ETRAN_RCV_BUF], snd[ETRAN_SND_BUF];
	struct et_conn *c = &et_core.conn[SLOT];

	kernel = kernel_queues;
	memset(pub, 0, sizeof(pub));
	memset(stash, 0, sizeof(stash));
	memset(x, 0, sizeof(*x));
	x->umem = umem;
	x->ring_mask = x->fill_mask = ETRAN_RING_SIZE - 1;
	for (uint64_t i = 0; i < FRAMES; i++)
		x->spare[x->spares++] = i * ETRAN_FRAME_SIZE;
	add_queue(0, 0);
	et_core.tap = open("/dev/null", O_WRONLY);
	et_core.arena = &arena;
	et_core.stash = stash;
	et_core.pub = pub;
	memset(&shared, 0, sizeof(shared));
	shared.generation = GENERATION;
	shared.phase = ETRAN_PHASE_FAST;
	shared.mss = 1448;
	shared.rcv_window = 65536;
	rcv_init(&shared.rcv, ISN);
	memset(c, 0, sizeof(*c));
	c->slot = SLOT;
	c->generation = GENERATION;
	c->shared = &shared;
	c->pub = &pub[SLOT];
	c->rcv_ring = rcv;
	c->snd_ring = snd;
	c->user = c;
	c->committed = true;
	c->acked = ISN;
	atomic_store(&et_core.up, true);
	atomic_store(&et_core.rings_up, true);
	return c;
}

/* As setup, with a tap that can be read: one packet per write. */
static struct et_conn *setup_wire(void)
{
	struct et_conn *c = setup();
	int pair[2];

	if (wire >= 0)
		et_sys_close(wire);
	REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair) == 0);
	et_sys_close(et_core.tap);
	et_core.tap = pair[0];
	wire = pair[1];
	return c;
}

/* The kernel's part: take a frame from the fill ring, put it in the RX ring. */
static void deliver(uint16_t kind, uint32_t seq, const char *text, uint8_t tcp_flags)
{
	struct et_context *x = &et_core.context;
	uint64_t addr;
	uint8_t *f;
	struct etran_rx_meta *m;
	struct iphdr ip = {.ihl = 5};
	struct tcphdr t = {.doff = 5, .seq = htonl(seq)};
	size_t n = strlen(text);

	REQUIRE(kernel->fill_consumer != kernel->fill_producer);
	addr = kernel->fill_addr[kernel->fill_consumer++ & (ETRAN_RING_SIZE - 1)] +
	       ETRAN_FRAME_HEADROOM;
	f = x->umem + addr;
	m = (struct etran_rx_meta *)(f - sizeof(*m));
	*m = (struct etran_rx_meta){.slot = SLOT,
				    .kind = kind,
				    .generation = GENERATION,
				    .offset = 54,
				    .length = (uint16_t)n,
				    .seq = seq};
	ip.tot_len = htons((uint16_t)(40 + n));
	((uint8_t *)&t)[13] = tcp_flags;
	memcpy(f + ETH_HLEN, &ip, sizeof(ip));
	memcpy(f + ETH_HLEN + sizeof(ip), &t, sizeof(t));
	memcpy(f + 54, text, n);
	kernel->rx_desc[kernel->rx_producer & (ETRAN_RING_SIZE - 1)] =
		(struct xdp_desc){.addr = addr, .len = (uint32_t)(54 + n)};
	kernel->rx_producer++;
	((struct etran_pub_ring *)pub)[kernel->number].delivered++;
}

/* Frames in either ring of a queue. */
static uint32_t count_posted(const struct kernel_queue *k, uint8_t *seen, const struct et_queue *q)
{
	for (uint32_t i = k->fill_consumer; i != k->fill_producer; i++)
		seen[k->fill_addr[i & (ETRAN_RING_SIZE - 1)] / ETRAN_FRAME_SIZE]++;
	for (uint32_t i = k->rx_consumer; i != k->rx_producer; i++)
		seen[k->rx_desc[i & (ETRAN_RING_SIZE - 1)].addr / ETRAN_FRAME_SIZE]++;
	CHECK_EQ(k->fill_producer - k->fill_consumer + k->rx_producer - k->rx_consumer, q->posted);
	return q->posted;
}

static void frames_add_up(void)
{
	struct et_context *x = &et_core.context;
	static uint8_t seen[FRAMES];
	unsigned stashed = 0, posted = 0;

	memset(seen, 0, sizeof(seen));
	for (unsigned q = 0; q < x->queues; q++)
		posted += count_posted(&kernel_queues[q], seen, &x->queue[q]);
	for (uint32_t i = 0; i < x->spares; i++)
		seen[x->spare[i] / ETRAN_FRAME_SIZE]++;
	for (unsigned i = 0; i < ETRAN_STASH_SIZE; i++)
		if (et_core.stash[i].addr) {
			seen[et_core.stash[i].addr / ETRAN_FRAME_SIZE]++;
			stashed++;
		}
	for (unsigned i = 0; i < FRAMES; i++)
		CHECK_EQ(seen[i], 1);
	CHECK_EQ(posted + x->spares + stashed, FRAMES);
}

static void expect(struct et_conn *c, const char *text)
{
	char got[256];
	struct iovec iov = {got, sizeof(got)};
	ssize_t n = et_conn_recv(c, &iov, 1, false);

	CHECK_EQ(n, strlen(text));
	CHECK(n > 0 && memcmp(got, text, (size_t)n) == 0);
}

TEST(data_in_any_order)
{
	struct et_conn *c = setup();

	deliver(ETRAN_RX_DATA, ISN + 5, "world", 0);
	deliver(ETRAN_RX_DATA, ISN + 5, "world", 0);
	CHECK_EQ(et_rx_poll(), 2);
	CHECK_EQ(et_conn_readable(c), 0);
	deliver(ETRAN_RX_DATA, ISN, "hello", 0);
	ready_calls = 0;
	CHECK_EQ(et_rx_poll(), 1);
	CHECK_EQ(ready_calls, 1);
	expect(c, "helloworld");
	frames_add_up();
}

/* The next frame written to the tap. */
struct sent {
	ssize_t size; /* -EAGAIN: none */
	struct etran_tx_header h;
	struct etran_tx_sack sack; /* count 0: none */
};

static struct sent next_sent(void)
{
	struct sent s = {0};
	uint8_t f[ETRAN_FRAME_SIZE];

	s.size = et_sys_read(wire, f, sizeof(f));
	if (s.size < (ssize_t)ETRAN_HEADER_ROOM)
		return s;
	memcpy(&s.h, f, sizeof(s.h));
	if (s.h.flags & ETRAN_TX_SACK) {
		CHECK_EQ(s.size, ETRAN_HEADER_ROOM + sizeof(s.sack));
		CHECK_EQ(s.h.length, 0);
		memcpy(&s.sack, f + ETRAN_HEADER_ROOM, sizeof(s.sack));
	} else {
		CHECK_EQ(s.size, ETRAN_HEADER_ROOM + s.h.length);
	}
	return s;
}

/* One segment arrives; blocks, in octets from the ISN, are what is said of it. */
static void expect_sack(uint32_t at, const char *text, uint32_t count, const uint32_t *edges)
{
	struct sent s;

	deliver(ETRAN_RX_DATA, ISN + at, text, 0);
	CHECK_EQ(et_rx_poll(), 1);
	s = next_sent();
	REQUIRE(s.size > 0);
	CHECK_EQ(s.h.ack, ISN);
	CHECK_EQ(s.sack.count, count);
	for (uint32_t i = 0; i < count; i++) {
		CHECK_EQ(s.sack.block[i].start - ISN, edges[2 * i]);
		CHECK_EQ(s.sack.block[i].end - ISN, edges[2 * i + 1]);
	}
	CHECK_EQ(next_sent().size, -EAGAIN);
}

TEST(hole_is_answered_with_blocks)
{
	struct et_conn *c = setup_wire();

	/* Around sequence number 0, which is ISN + 4096. */
	expect_sack(4090, "0123456789", 1, (uint32_t[]){4090, 4100});
	expect_sack(2000, "ab", 2, (uint32_t[]){2000, 2002, 4090, 4100});
	/* At the end of a range, at its beginning, inside of one. */
	expect_sack(4100, "xyz", 2, (uint32_t[]){4090, 4103, 2000, 2002});
	expect_sack(1998, "yz", 2, (uint32_t[]){1998, 2002, 4090, 4103});
	expect_sack(4095, "567", 2, (uint32_t[]){4090, 4103, 1998, 2002});
	expect_sack(1000, "a", 3, (uint32_t[]){1000, 1001, 4090, 4103, 1998, 2002});
	/* More than there is room for: the lowest is left out. */
	expect_sack(3000, "a", 3, (uint32_t[]){3000, 3001, 4090, 4103, 1998, 2002});
	expect_sack(1001, "b", 3, (uint32_t[]){1000, 1002, 4090, 4103, 3000, 3001});
	CHECK_EQ(c->shared->rcv.ranges, 4);
	frames_add_up();
}

TEST(filled_hole_is_answered_without_blocks)
{
	struct et_conn *c = setup_wire();
	struct sent s;

	expect_sack(5, "world", 1, (uint32_t[]){5, 10});
	deliver(ETRAN_RX_DATA, ISN, "hello", 0);
	CHECK_EQ(et_rx_poll(), 1);
	et_flush();
	s = next_sent();
	CHECK_EQ(s.size, ETRAN_HEADER_ROOM);
	CHECK_EQ(s.h.ack, ISN + 10);
	CHECK_EQ(s.sack.count, 0);
	/* A duplicate: nothing lies beyond. */
	deliver(ETRAN_RX_DATA, ISN, "hello", 0);
	CHECK_EQ(et_rx_poll(), 1);
	CHECK_EQ(next_sent().size, ETRAN_HEADER_ROOM);
	expect(c, "helloworld");
}

TEST(ack_without_the_context_lock_has_no_blocks)
{
	struct et_conn *c = setup_wire();

	expect_sack(5, "world", 1, (uint32_t[]){5, 10});
	et_tx_ack(c, 0);
	CHECK_EQ(next_sent().size, ETRAN_HEADER_ROOM);
}

/* Segments of ten octets in flight. */
static void in_flight(struct et_conn *c, unsigned segments)
{
	struct etran_sndbuf *b = &c->shared->snd;
	struct etran_pub *p = &pub[SLOT];

	c->shared->mss = 10;
	b->base = b->una = ISN;
	b->nxt = b->end = p->snd_nxt = ISN + segments * 10;
	p->snd_una = ISN;
	p->snd_limit = ISN + 65536;
}

/* XDP: an ACK up to `una` tells of a loss there. */
static void lose(uint32_t una)
{
	pub[SLOT].snd_una = pub[SLOT].loss_seq = una;
	pub[SLOT].losses++;
}

static void expect_retransmission(uint32_t seq)
{
	struct sent s = next_sent();

	REQUIRE(s.size > 0);
	CHECK_EQ(s.h.seq - ISN, seq - ISN);
	CHECK_EQ(s.h.length, 10);
	CHECK(s.h.flags & ETRAN_TX_RETRANSMIT);
	CHECK_EQ(next_sent().size, -EAGAIN);
}

TEST(each_loss_is_repaired_once)
{
	struct et_conn *c = setup_wire();

	in_flight(c, 5);
	for (uint32_t una = ISN; una != ISN + 30; una += 10) {
		lose(una);
		deliver(ETRAN_RX_ACK, ISN, "", 0);
		CHECK_EQ(et_rx_poll(), 1);
		et_flush();
		expect_retransmission(una);
		et_tx_queue(c);
		et_flush();
		CHECK_EQ(next_sent().size, -EAGAIN);
	}
	/* By the time we look, it has been acknowledged. */
	lose(ISN + 30);
	pub[SLOT].snd_una = ISN + 50;
	et_tx_queue(c);
	et_flush();
	CHECK_EQ(next_sent().size, -EAGAIN);
}

TEST(loss_told_by_a_segment_beyond_a_hole)
{
	struct et_conn *c = setup_wire();

	in_flight(c, 2);
	lose(ISN + 10);
	expect_sack(5, "world", 1, (uint32_t[]){5, 10});
	et_flush();
	expect_retransmission(ISN + 10);
	CHECK_EQ(c->losses, 1);
}

TEST(loss_found_while_the_connection_is_busy)
{
	struct et_conn *c = setup_wire();

	in_flight(c, 2);
	et_assist_arm(c);
	lose(ISN);
	et_tx_queue(c);
	c->shared->owner = 1; /* another thread */
	et_flush();
	CHECK_EQ(next_sent().size, -EAGAIN);
	c->shared->owner = 0;
	et_assist_tick();
	expect_retransmission(ISN);
}

/* The ACK that makes room moves SND.UNA, but does not come to us. */
TEST(room_is_told_without_an_ack)
{
	struct et_conn *c = setup_wire();

	in_flight(c, ETRAN_SND_BUF / 10);
	et_conn_want_room(c);
	CHECK_EQ(next_sent().h.flags, ETRAN_TX_NOTIFY);
	ready_calls = 0;
	et_assist_tick();
	CHECK_EQ(ready_calls, 0);
	pub[SLOT].snd_una = c->shared->snd.end;
	et_assist_tick();
	CHECK_EQ(ready_calls, 1);
	et_assist_tick();
	CHECK_EQ(ready_calls, 1);
}

TEST(other_generation_is_dropped)
{
	struct et_conn *c = setup();

	c->shared->generation++;
	deliver(ETRAN_RX_DATA, ISN, "old", 0);
	CHECK_EQ(et_rx_poll(), 1);
	CHECK_EQ(et_conn_readable(c), 0);
	frames_add_up();
}

TEST(held_frames_are_replayed_in_order)
{
	struct et_conn *c = setup();

	c->committed = false;
	deliver(ETRAN_RX_HELD, ISN + 3, "def", TH_ACK);
	deliver(ETRAN_RX_HELD, ISN, "abc", TH_ACK);
	CHECK_EQ(et_rx_poll(), 2);
	CHECK_EQ(et_conn_readable(c), 0);
	frames_add_up();
	CHECK(!et_rx_commit(c));
	CHECK(c->committed);
	expect(c, "abcdef");
	CHECK_EQ(et_core.context.spares, FRAMES - ET_POSTED_MIN);
	frames_add_up();
}

/* They were delivered, but nobody has taken them before the commit. */
TEST(held_frames_in_the_ring_are_replayed)
{
	struct et_conn *c = setup();

	c->committed = false;
	pub[SLOT].rcv_nxt = ISN;
	deliver(ETRAN_RX_HELD, ISN, "abc", TH_ACK);
	deliver(ETRAN_RX_DATA, ISN + 3, "def", TH_ACK);
	CHECK(!et_rx_commit(c));
	expect(c, "abcdef");
	CHECK_EQ(et_core.context.spares, FRAMES - ET_POSTED_MIN);
	frames_add_up();
}

/* Data was taken between the switch and the commit. */
TEST(data_before_the_commit_is_acknowledged)
{
	struct et_conn *c = setup_wire();

	c->committed = false;
	pub[SLOT].rcv_nxt = ISN;
	deliver(ETRAN_RX_DATA, ISN, "abc", TH_ACK);
	CHECK_EQ(et_rx_poll(), 1);
	et_flush();
	CHECK_EQ(next_sent().size, -EAGAIN);
	et_rx_commit(c);
	et_flush();
	CHECK_EQ(next_sent().h.ack, ISN + 3);
	CHECK_EQ(next_sent().size, -EAGAIN);
}

/* The peer sends beyond the window: it is told where that ends. */
TEST(data_without_room_is_answered)
{
	struct et_conn *c = setup_wire();

	deliver(ETRAN_RX_DATA, ISN + ETRAN_RCV_BUF, "x", TH_ACK);
	CHECK_EQ(et_rx_poll(), 1);
	CHECK_EQ(next_sent().h.ack, ISN);
	CHECK_EQ(c->shared->rcv.ranges, 0);
	frames_add_up();
}

static void *drain(void *unused)
{
	et_rx_drain();
	return unused;
}

static int drain_elsewhere(void)
{
	pthread_t t;

	return pthread_create(&t, NULL, drain, NULL) || pthread_join(t, NULL);
}

/* What a demotion takes may be what another thread sleeps for. */
TEST(drain_wakes_and_acknowledges)
{
	struct et_waiter w;
	struct pollfd p = {.events = POLLIN};

	setup_wire();
	REQUIRE(et_wait_begin(&w) == 0);
	p.fd = w.fd;
	deliver(ETRAN_RX_DATA, ISN, "abc", TH_ACK);
	CHECK_EQ(drain_elsewhere(), 0);
	CHECK_EQ(poll(&p, 1, 0), 1);
	et_wait_end(&w);
	CHECK_EQ(next_sent().h.ack, ISN + 3);
}

TEST(control_frame_is_kept_and_asks_for_demotion)
{
	struct et_conn *c = setup();

	deliver(ETRAN_RX_CTL, ISN, "", TH_FIN | TH_ACK);
	et_rx_poll();
	CHECK_EQ(et_conn_wants_demote(c), ETRAN_PATH_PEER_FIN);
	CHECK_EQ(et_core.context.spares, FRAMES - ET_POSTED_MIN - 1);
	frames_add_up();
	/* The daemon has re-injected it. */
	for (unsigned i = 0; i < ETRAN_STASH_SIZE; i++)
		et_core.stash[i].state = 0;
	et_stash_reclaim();
	frames_add_up();
}

TEST(full_stash_loses_frames_but_not_memory)
{
	struct et_conn *c = setup();

	c->committed = false;
	for (unsigned i = 0; i < ETRAN_STASH_SIZE + 100; i++) {
		deliver(ETRAN_RX_HELD, ISN + i, "x", TH_ACK);
		et_rx_poll();
	}
	CHECK_EQ(et_core.context.spares + et_core.context.queue[0].posted,
		 FRAMES - ETRAN_STASH_SIZE);
	frames_add_up();
}

TEST(backlog_posts_more_frames_and_calm_fewer)
{
	struct et_conn *c = setup();
	struct et_queue *q = &et_core.context.queue[0];
	uint32_t seq = ISN;

	for (unsigned round = 0; round < 10; round++) {
		while (kernel->fill_consumer != kernel->fill_producer)
			deliver(ETRAN_RX_DATA, seq++, "x", 0);
		while (et_rx_poll())
			et_conn_discard(c, 1000);
		frames_add_up();
	}
	CHECK_EQ(q->target, ETRAN_RING_SIZE);
	CHECK_EQ(q->posted, ETRAN_RING_SIZE);
	for (unsigned i = 0; i < 1u << 20; i++) {
		deliver(ETRAN_RX_DATA, seq++, "x", 0);
		et_rx_poll();
		et_conn_discard(c, 1000);
	}
	CHECK_EQ(q->target, ET_POSTED_MIN);
	CHECK_EQ(q->posted, ET_POSTED_MIN);
	frames_add_up();
}

TEST(many_rounds_keep_all_frames)
{
	struct et_conn *c = setup();
	uint32_t seq = ISN;

	for (unsigned i = 0; i < 20000; i++) {
		deliver(ETRAN_RX_DATA, seq, "0123456789", 0);
		seq += 10;
		if (i % 7 == 0) {
			et_rx_poll();
			et_conn_discard(c, 1000);
		}
	}
	et_rx_drain();
	frames_add_up();
	CHECK_EQ(c->shared->rcv.nxt, seq);
}

/* The daemon has moved the connection from its shared ring to a queue. */
TEST(frames_of_a_connection_come_by_two_rings)
{
	struct et_conn *c = setup();

	add_queue(1, ETRAN_SHARED_RING);
	CHECK(!et_rx_pending());
	kernel = &kernel_queues[1];
	deliver(ETRAN_RX_DATA, ISN, "hello", 0);
	kernel = &kernel_queues[0];
	deliver(ETRAN_RX_DATA, ISN + 5, "world", 0);
	CHECK(et_rx_pending());
	CHECK_EQ(et_rx_poll(), 2);
	expect(c, "helloworld");
	frames_add_up();
}

TEST(drain_takes_all_rings)
{
	struct et_conn *c = setup();

	add_queue(1, ETRAN_SHARED_RING);
	deliver(ETRAN_RX_DATA, ISN, "hello", 0);
	kernel = &kernel_queues[1];
	deliver(ETRAN_RX_DATA, ISN + 5, "world", 0);
	et_rx_drain();
	CHECK_EQ(et_core.context.queue[0].taken, 1);
	CHECK_EQ(et_core.context.queue[1].taken, 1);
	CHECK_EQ(c->shared->rcv.nxt, ISN + 10);
	frames_add_up();
}

TEST(credit_names_the_ring)
{
	const uint32_t n = ETRAN_RING_SIZE / 4;
	struct sent s;

	setup_wire();
	add_queue(1, ETRAN_SHARED_RING);
	kernel = &kernel_queues[1];
	for (uint32_t i = 0; i < n; i++) {
		deliver(ETRAN_RX_ACK, ISN, "", 0);
		et_rx_poll();
	}
	s = next_sent();
	CHECK_EQ(s.h.flags, ETRAN_TX_CREDIT);
	CHECK_EQ(s.h.ring, ETRAN_SHARED_RING);
	CHECK_EQ(s.h.consumed, n);
	CHECK_EQ(next_sent().size, -EAGAIN);
	frames_add_up();
}

int main(void)
{
	RUN(data_in_any_order);
	RUN(hole_is_answered_with_blocks);
	RUN(filled_hole_is_answered_without_blocks);
	RUN(ack_without_the_context_lock_has_no_blocks);
	RUN(each_loss_is_repaired_once);
	RUN(loss_told_by_a_segment_beyond_a_hole);
	RUN(loss_found_while_the_connection_is_busy);
	RUN(room_is_told_without_an_ack);
	RUN(other_generation_is_dropped);
	RUN(held_frames_are_replayed_in_order);
	RUN(held_frames_in_the_ring_are_replayed);
	RUN(data_before_the_commit_is_acknowledged);
	RUN(data_without_room_is_answered);
	RUN(drain_wakes_and_acknowledges);
	RUN(control_frame_is_kept_and_asks_for_demotion);
	RUN(full_stash_loses_frames_but_not_memory);
	RUN(backlog_posts_more_frames_and_calm_fewer);
	RUN(many_rounds_keep_all_frames);
	RUN(frames_of_a_connection_come_by_two_rings);
	RUN(drain_takes_all_rings);
	RUN(credit_names_the_ring);
	return unit_result();
}
