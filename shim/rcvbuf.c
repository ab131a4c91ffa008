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

/* Let the ranges that now touch [.., nxt) join it. Returns the new nxt. */
static uint32_t join_ranges(struct etran_rcvbuf *b, uint32_t nxt)
{
	uint32_t used = 0;

	while (used < b->ranges && !seq_after(b->range[used].start, nxt)) {
		nxt = seq_max(nxt, b->range[used].end);
		used++;
	}
	if (used) {
		b->ranges -= used;
		memmove(&b->range[0], &b->range[used], b->ranges * sizeof(b->range[0]));
	}
	return nxt;
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
	if (first == last) {
		if (b->ranges == ETRAN_OOO_RANGES)
			return false;
		memmove(&b->range[first + 1], &b->range[first],
			(b->ranges - first) * sizeof(b->range[0]));
		b->ranges++;
	} else {
		memmove(&b->range[first + 1], &b->range[last],
			(b->ranges - last) * sizeof(b->range[0]));
		b->ranges -= last - first - 1;
	}
	b->range[first] = (struct etran_range){start, end};
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
	if (seq != b->nxt) {
		__atomic_thread_fence(__ATOMIC_RELEASE);
		return add_range(b, seq, end) ? RCV_HOLE : RCV_NO_ROOM;
	}
	__atomic_store_n(&b->nxt, b->ranges ? join_ranges(b, end) : end, __ATOMIC_RELEASE);
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
