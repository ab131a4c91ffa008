/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Send buffer in the arena: octets given by the program, kept until they are
 * acknowledged. All under the connection's lock.
 *
 *        base      una           nxt            end       una + size
 *         |  free   | in flight   | not yet sent |   free   |
 */
#ifndef ET_SNDBUF_H
#define ET_SNDBUF_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include <etran/arena.h>

static inline uint32_t snd_room(const struct etran_sndbuf *b, uint32_t size)
{
	return size - (b->end - b->una);
}

/* Append from iov what fits; returns octets taken. `end` is published last. */
size_t snd_append(struct etran_sndbuf *b, uint8_t *ring, uint32_t size, const struct iovec *iov,
		  int iovcnt);
/* SND.UNA advanced (or not): free what is acknowledged. */
void snd_acked(struct etran_sndbuf *b, uint32_t una);
/*
 * `n` octets from sequence `seq`, contiguous: in the ring, or copied to
 * `scratch` if they wrap around.
 */
const uint8_t *snd_view(const struct etran_sndbuf *b, const uint8_t *ring, uint32_t size,
			uint32_t seq, uint32_t n, uint8_t *scratch);

#endif
