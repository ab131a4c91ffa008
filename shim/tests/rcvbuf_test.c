/* SPDX-License-Identifier: Apache-2.0 */
/* Reassembly against a plain model, with loss, reordering and duplication. */
#include "rcvbuf.h"

#include <stdlib.h>
#include <string.h>

#include "unit.h"

#define SIZE 4096u
#define STREAM (1u << 20)

static uint8_t ring[SIZE];
static uint8_t stream[STREAM];
static uint8_t out[STREAM];

static void fill_stream(unsigned seed)
{
	srand(seed);
	for (unsigned i = 0; i < STREAM; i++)
		stream[i] = (uint8_t)rand();
}

/* Read a random amount; returns the octets that have been read in all. */
static uint32_t read_some(struct etran_rcvbuf *b, uint32_t have, bool peek)
{
	uint32_t a = (uint32_t)rand() % 700, c = (uint32_t)rand() % 700;
	struct iovec iov[2] = {{out + have, a}, {out + have + a, c}};
	size_t n;

	if (have + a + c > STREAM)
		iov[0].iov_len = iov[1].iov_len = 0;
	n = rcv_read(b, ring, SIZE, iov, 2, peek);
	CHECK(memcmp(out + have, stream + have, n) == 0);
	return have + (peek ? 0 : (uint32_t)n);
}

/* A segment somewhere around the window: old, new, beyond a hole, too far. */
static void random_segment(struct etran_rcvbuf *b, uint32_t isn)
{
	uint32_t nxt = b->nxt - isn, n = 1 + (uint32_t)rand() % 600;
	int64_t at = (int64_t)nxt + rand() % 3000 - 800;
	uint32_t before = b->nxt;
	enum rcv_result r;

	if (rand() % 3 == 0)
		at = nxt;
	if (at < 0)
		at = 0;
	if (at >= STREAM)
		return;
	if (at + n > STREAM)
		n = STREAM - (uint32_t)at;
	r = rcv_insert(b, ring, SIZE, isn + (uint32_t)at, stream + at, n);
	CHECK((r == RCV_NEW) == (b->nxt != before));
	if (at + n <= nxt)
		CHECK(r == RCV_DUPLICATE);
}

static void ranges_are_sorted(const struct etran_rcvbuf *b)
{
	uint32_t last = b->nxt;

	CHECK(b->ranges <= ETRAN_OOO_RANGES);
	for (uint32_t i = 0; i < b->ranges; i++) {
		CHECK((int32_t)(b->range[i].start - last) > 0);
		CHECK((int32_t)(b->range[i].end - b->range[i].start) > 0);
		last = b->range[i].end;
	}
}

static void one_stream(unsigned seed)
{
	struct etran_rcvbuf b;
	uint32_t isn, have = 0;

	fill_stream(seed);
	/* Close to the wrap of the sequence space in every second run. */
	isn = seed & 1 ? UINT32_MAX - 5000 : (uint32_t)rand();
	rcv_init(&b, isn);
	while (have < STREAM) {
		random_segment(&b, isn);
		ranges_are_sorted(&b);
		if (rand() % 2)
			have = read_some(&b, have, rand() % 8 == 0);
		CHECK(b.read - isn == have);
	}
	CHECK(memcmp(out, stream, STREAM) == 0);
}

static void random_streams(void)
{
	for (unsigned seed = 1; seed <= 12; seed++)
		one_stream(seed);
}

static void in_order_uses_the_start_of_the_ring(void)
{
	struct etran_rcvbuf b;
	uint8_t got[100];
	struct iovec iov = {got, sizeof(got)};

	rcv_init(&b, 12345);
	for (int i = 0; i < 1000; i++) {
		CHECK(rcv_insert(&b, ring, SIZE, b.nxt, stream, 100) == RCV_NEW);
		CHECK(b.base == b.read);
		CHECK(rcv_read(&b, ring, SIZE, &iov, 1, false) == 100);
	}
}

static void full_buffer_refuses(void)
{
	struct etran_rcvbuf b;

	rcv_init(&b, 7);
	CHECK(rcv_insert(&b, ring, SIZE, 7, stream, SIZE) == RCV_NEW);
	CHECK(rcv_insert(&b, ring, SIZE, 7 + SIZE, stream, 1) == RCV_NO_ROOM);
	CHECK(rcv_discard(&b, 10) == 10);
	CHECK(rcv_insert(&b, ring, SIZE, 7 + SIZE, stream, 10) == RCV_NEW);
	CHECK(rcv_unread(&b) == SIZE);
}

static void too_many_holes_refuse(void)
{
	struct etran_rcvbuf b;
	uint32_t i;

	rcv_init(&b, 0);
	for (i = 0; i < ETRAN_OOO_RANGES; i++)
		CHECK(rcv_insert(&b, ring, SIZE, 10 + i * 10, stream, 5) == RCV_HOLE);
	CHECK(rcv_insert(&b, ring, SIZE, 10 + i * 10, stream, 5) == RCV_NO_ROOM);
	/* One that joins two still fits. */
	CHECK(rcv_insert(&b, ring, SIZE, 15, stream, 5) == RCV_HOLE);
	CHECK(b.ranges == ETRAN_OOO_RANGES - 1);
}

int main(void)
{
	RUN(in_order_uses_the_start_of_the_ring);
	RUN(full_buffer_refuses);
	RUN(too_many_holes_refuse);
	RUN(random_streams);
	return unit_result();
}
