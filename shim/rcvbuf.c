/* SPDX-License-Identifier: Apache-2.0 */
#include "rcvbuf.h"

#include <string.h>

#include "seq.h"

void rcv_init(struct etran_rcvbuf *b, uint32_t seq)
{
	b->base = b->read = b->nxt = seq;
	b->ranges = 0;
}

static void ring_store(uint8_t *ring, uint32_t size, uint32_t at, const uint8_t *data, uint32_t n)
{
	uint32_t first;

	at &= size - 1;
	first = size - at < n ? size - at : n;
	memcpy(ring + at, data, first);
	if (n > first)
		memcpy(ring, data + first, n - first);
}

static void ring_load(const uint8_t *ring, uint32_t size, uint32_t at, uint8_t *data, uint32_t n)
{
	uint32_t first;

	at &= size - 1;
	first = size - at < n ? size - at : n;
	memcpy(data, ring + at, first);
	if (n > first)
		memcpy(data + first, ring, n - first);
}

/*
 * The program may be stopped or killed between any two stores, and then the
 * daemon takes what the words say: at every moment they must name all octets
 * that are kept, and none else. A range named twice, or one that lies before
 * nxt, does no harm. So each range is one store, and what takes another's place
 * is stored before that goes.
 */
_Static_assert(offsetof(struct etran_aconn, rcv) % 8 == 0 &&
		       offsetof(struct etran_rcvbuf, range) % 8 == 0,
	       "a range is one aligned word");

static void set_range(struct etran_rcvbuf *b, uint32_t i, struct etran_range r)
{
	uint64_t word;

	memcpy(&word, &r, sizeof(word));
	__atomic_store_n((uint64_t *)(void *)&b->range[i], word, __ATOMIC_RELEASE);
}

static void set_ranges(struct etran_rcvbuf *b, uint32_t count)
{
	__atomic_store_n(&b->ranges, count, __ATOMIC_RELEASE);
}

/* Forget range[from .. from + n). */
static void remove_ranges(struct etran_rcvbuf *b, uint32_t from, uint32_t n)
{
	uint32_t left = b->ranges - n;

	for (uint32_t i = from; i < left; i++)
		set_range(b, i, b->range[i + n]);
	set_ranges(b, left);
}

static void insert_range(struct etran_rcvbuf *b, uint32_t at, struct etran_range r)
{
	uint32_t n = b->ranges;

	set_range(b, n, n > at ? b->range[n - 1] : r);
	set_ranges(b, n + 1);
	for (uint32_t i = n; i > at; i--)
		set_range(b, i - 1, i - 1 > at ? b->range[i - 2] : r);
}

/* Advance nxt to `end` and over the ranges that then touch it. */
static void advance(struct etran_rcvbuf *b, uint32_t end)
{
	uint32_t used = 0;

	while (used < b->ranges && !seq_after(b->range[used].start, end))
		end = seq_max(end, b->range[used++].end);
	__atomic_store_n(&b->nxt, end, __ATOMIC_RELEASE);
	if (used)
		remove_ranges(b, 0, used);
}

/* Remember [start, end) beyond a hole. False: no room for one more range. */
static bool add_range(struct etran_rcvbuf *b, uint32_t start, uint32_t end)
{
	uint32_t first = 0, last;

	while (first < b->ranges && seq_before(b->range[first].end, start))
		first++;
	last = first;
	while (last < b->ranges && !seq_after(b->range[last].start, end)) {
		start = seq_min(start, b->range[last].start);
		end = seq_max(end, b->range[last].end);
		last++;
	}
	if (first != last) {
		set_range(b, first, (struct etran_range){start, end});
		remove_ranges(b, first + 1, last - first - 1);
		return true;
	}
	if (b->ranges == ETRAN_OOO_RANGES)
		return false;
	insert_range(b, first, (struct etran_range){start, end});
	return true;
}

enum rcv_result rcv_insert(struct etran_rcvbuf *b, uint8_t *ring, uint32_t size, uint32_t seq,
			   const uint8_t *data, uint32_t n)
{
	uint32_t read = __atomic_load_n(&b->read, __ATOMIC_ACQUIRE);
	uint32_t end = seq + n, skip;

	if (!seq_after(end, b->nxt))
		return RCV_DUPLICATE;
	if (seq_before(seq, b->nxt)) {
		skip = b->nxt - seq;
		seq += skip;
		data += skip;
		n -= skip;
	}
	if (end - read > size)
		return RCV_NO_ROOM;
	if (read == b->nxt && !b->ranges)
		b->base = read;
	/* The octets first: the words may be read by the daemon at any moment. */
	ring_store(ring, size, seq - b->base, data, n);
	if (seq != b->nxt)
		return add_range(b, seq, end) ? RCV_HOLE : RCV_NO_ROOM;
	advance(b, end);
	return RCV_NEW;
}

size_t rcv_read(struct etran_rcvbuf *b, const uint8_t *ring, uint32_t size, const struct iovec *iov,
		int iovcnt, bool peek)
{
	uint32_t unread = rcv_unread(b), at = b->read - b->base, done = 0;

	for (int i = 0; i < iovcnt && done < unread; i++) {
		size_t n = iov[i].iov_len;

		if (n > unread - done)
			n = unread - done;
		ring_load(ring, size, at + done, iov[i].iov_base, (uint32_t)n);
		done += (uint32_t)n;
	}
	if (!peek)
		__atomic_store_n(&b->read, b->read + done, __ATOMIC_RELEASE);
	return done;
}

size_t rcv_discard(struct etran_rcvbuf *b, size_t n)
{
	uint32_t unread = rcv_unread(b);

	if (n > unread)
		n = unread;
	__atomic_store_n(&b->read, b->read + (uint32_t)n, __ATOMIC_RELEASE);
	return n;
}
