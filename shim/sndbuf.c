/* SPDX-License-Identifier: Apache-2.0 */
#include "sndbuf.h"

#include <string.h>

#include "seq.h"

size_t snd_append(struct etran_sndbuf *b, uint8_t *ring, uint32_t size, const struct iovec *iov,
		  int iovcnt)
{
	uint32_t room, done = 0;

	if (b->una == b->end)
		b->base = b->end;
	room = snd_room(b, size);
	for (int i = 0; i < iovcnt && done < room; i++) {
		const uint8_t *p = iov[i].iov_base;
		uint32_t at = (b->end + done - b->base) & (size - 1);
		uint32_t n = iov[i].iov_len < room - done ? (uint32_t)iov[i].iov_len : room - done;
		uint32_t first = size - at < n ? size - at : n;

		memcpy(ring + at, p, first);
		if (n > first)
			memcpy(ring, p + first, n - first);
		done += n;
	}
	__atomic_store_n(&b->end, b->end + done, __ATOMIC_RELEASE);
	return done;
}

void snd_acked(struct etran_sndbuf *b, uint32_t una)
{
	if (seq_after(una, b->una) && !seq_after(una, b->nxt))
		b->una = una;
}

const uint8_t *snd_view(const struct etran_sndbuf *b, const uint8_t *ring, uint32_t size,
			uint32_t seq, uint32_t n, uint8_t *scratch)
{
	uint32_t at = (seq - b->base) & (size - 1), first = size - at;

	if (n <= first)
		return ring + at;
	memcpy(scratch, ring + at, first);
	memcpy(scratch + first, ring, n - first);
	return scratch;
}
