/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Receive buffer and reassembly (RFC 9293 3.10.7.4, seventh step) in the arena.
 *
 * Segments are written straight to their place in the ring, in any order; the
 * ranges beyond the first hole are remembered. One writer (context lock), one
 * reader (connection lock):
 *
 *        base        read            nxt   range[0]      read + size
 *         |  free     | unread octets | hole |######| hole |
 *
 * `nxt` is published with release after the octets, `read` with release after
 * they were copied out. The writer moves `base` to `nxt` when nothing is unread:
 * a reader that could use the old base would still have read != nxt.
 */
#ifndef ET_RCVBUF_H
#define ET_RCVBUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include <etran/arena.h>

enum rcv_result {
	RCV_NEW,       /* nxt advanced */
	RCV_HOLE,      /* kept beyond a hole: answer with a duplicate ACK */
	RCV_DUPLICATE, /* nothing new: answer with an ACK */
	RCV_NO_ROOM,   /* beyond the buffer or too many holes: dropped */
};

void rcv_init(struct etran_rcvbuf *b, uint32_t seq);
/* Store `n` octets of sequence `seq`; the words change after the octets. Context lock. */
enum rcv_result rcv_insert(struct etran_rcvbuf *b, uint8_t *ring, uint32_t size, uint32_t seq,
			   const uint8_t *data, uint32_t n);
/* Copy out up to iov's length; returns octets. Connection lock. */
size_t rcv_read(struct etran_rcvbuf *b, const uint8_t *ring, uint32_t size, const struct iovec *iov,
		int iovcnt, bool peek);
size_t rcv_discard(struct etran_rcvbuf *b, size_t n);

static inline uint32_t rcv_unread(const struct etran_rcvbuf *b)
{
	return __atomic_load_n(&b->nxt, __ATOMIC_ACQUIRE) -
	       __atomic_load_n(&b->read, __ATOMIC_ACQUIRE);
}

#endif
