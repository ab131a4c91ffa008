/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The receive context over rings in plain memory: what is delivered reaches the
 * connection, what is held reaches the stash, and no frame is ever lost or
 * handed out twice.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_xdp.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <stdlib.h>

#include "core.h"
#include "unit.h"

#define FRAMES (ETRAN_RING_SIZE + ETRAN_STASH_SIZE)
#define SLOT (ETRAN_FIRST_SLOT + 3)
#define GENERATION 77u
#define ISN 0xfffff000u

static uint32_t rx_producer, rx_consumer, fill_producer, fill_consumer;
static struct xdp_desc rx_desc[ETRAN_RING_SIZE];
static uint64_t fill_addr[ETRAN_RING_SIZE];
static struct etran_pub pub[ETRAN_APP_SLOTS];
static uint8_t umem[FRAMES * ETRAN_FRAME_SIZE];
static unsigned ready_calls;

void et_ready(void *user)
{
	(void)user;
	ready_calls++;
}

void et_please(void *user, bool promote, enum etran_path_reason why)
{
	(void)user, (void)promote, (void)why;
}

static struct et_conn *setup(void)
{
	struct et_context *x = &et_core.context;
	struct et_queue *q = &x->queue[0];
	static struct etran_arena arena = {.snd_size = ETRAN_SND_BUF, .rcv_size = ETRAN_RCV_BUF};
	static struct etran_aconn shared;
	static struct etran_stash stash[ETRAN_STASH_SIZE];
	static uint8_t rcv[ETRAN_RCV_BUF], snd[ETRAN_SND_BUF];
	struct et_conn *c = &et_core.conn[SLOT];

	rx_producer = rx_consumer = fill_consumer = 0;
	memset(pub, 0, sizeof(pub));
	memset(stash, 0, sizeof(stash));
	memset(x, 0, sizeof(*x));
	x->umem = umem;
	x->queues = 1;
	x->ring_mask = x->fill_mask = ETRAN_RING_SIZE - 1;
	*q = (struct et_queue){.fd = -1,
			       .rx_producer = &rx_producer,
			       .rx_consumer = &rx_consumer,
			       .rx_desc = rx_desc,
			       .fill_producer = &fill_producer,
			       .fill_addr = fill_addr};
	for (uint64_t i = 0; i < ETRAN_RING_SIZE; i++)
		fill_addr[i] = i * ETRAN_FRAME_SIZE;
	fill_producer = ETRAN_RING_SIZE;
	for (uint64_t i = ETRAN_RING_SIZE; i < FRAMES; i++)
		x->spare[x->spares++] = i * ETRAN_FRAME_SIZE;
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

	REQUIRE(fill_consumer != fill_producer);
	addr = fill_addr[fill_consumer++ & (ETRAN_RING_SIZE - 1)] + ETRAN_FRAME_HEADROOM;
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
	rx_desc[rx_producer & (ETRAN_RING_SIZE - 1)] =
		(struct xdp_desc){.addr = addr, .len = (uint32_t)(54 + n)};
	rx_producer++;
	((struct etran_pub_ring *)pub)[0].delivered++;
}

static void frames_add_up(void)
{
	struct et_context *x = &et_core.context;
	static uint8_t seen[FRAMES];
	unsigned stashed = 0;

	memset(seen, 0, sizeof(seen));
	for (uint32_t i = fill_consumer; i != fill_producer; i++)
		seen[fill_addr[i & (ETRAN_RING_SIZE - 1)] / ETRAN_FRAME_SIZE]++;
	for (uint32_t i = rx_consumer; i != rx_producer; i++)
		seen[rx_desc[i & (ETRAN_RING_SIZE - 1)].addr / ETRAN_FRAME_SIZE]++;
	for (uint32_t i = 0; i < x->spares; i++)
		seen[x->spare[i] / ETRAN_FRAME_SIZE]++;
	for (unsigned i = 0; i < ETRAN_STASH_SIZE; i++)
		if (et_core.stash[i].addr) {
			seen[et_core.stash[i].addr / ETRAN_FRAME_SIZE]++;
			stashed++;
		}
	for (unsigned i = 0; i < FRAMES; i++)
		CHECK_EQ(seen[i], 1);
	CHECK_EQ(fill_producer - fill_consumer + rx_producer - rx_consumer, ETRAN_RING_SIZE);
	CHECK_EQ(x->spares + stashed, ETRAN_STASH_SIZE);
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
	c->committed = true;
	et_stash_replay(c);
	expect(c, "abcdef");
	CHECK_EQ(et_core.context.spares, ETRAN_STASH_SIZE);
	frames_add_up();
}

TEST(control_frame_is_kept_and_asks_for_demotion)
{
	struct et_conn *c = setup();

	deliver(ETRAN_RX_CTL, ISN, "", TH_FIN | TH_ACK);
	et_rx_poll();
	CHECK_EQ(et_conn_wants_demote(c), ETRAN_PATH_PEER_FIN);
	CHECK_EQ(et_core.context.spares, ETRAN_STASH_SIZE - 1);
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
	for (unsigned i = 0; i < ETRAN_STASH_SIZE + 100; i++)
		deliver(ETRAN_RX_HELD, ISN + i, "x", TH_ACK);
	et_rx_drain();
	CHECK_EQ(et_core.context.spares, 0);
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

int main(void)
{
	RUN(data_in_any_order);
	RUN(other_generation_is_dropped);
	RUN(held_frames_are_replayed_in_order);
	RUN(control_frame_is_kept_and_asks_for_demotion);
	RUN(full_stash_loses_frames_but_not_memory);
	RUN(many_rounds_keep_all_frames);
	return unit_result();
}
