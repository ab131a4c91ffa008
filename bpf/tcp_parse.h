/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* A TCP segment's numbers, its timestamp and its checksum. */
#ifndef ETRAN_BPF_TCP_PARSE_H
#define ETRAN_BPF_TCP_PARSE_H

#include "count.h"
#include "csum.h"
#include "parse.h"
#include "tcp.h"

#define TCP_HEADER_SIZE 20u
#define TCP_MAX_OPTIONS 40u
/* Power of two above it, so that a mask bounds every index. */
#define TCP_OPTION_BUFFER 64u

/* A segment and what is known about it before the lock is taken. */
struct segment {
	__u32 seq;
	__u32 ack;
	__u32 window; /* as in the header, not scaled */
	__u32 length; /* payload octets */
	__u32 offset; /* of the payload in the frame */
	__u32 end;    /* seq + length */
	__u32 tsval;
	bool has_ts;
	bool odd; /* IPv4 options or reserved bits: for the kernel */
	bool fragment;
	__u8 flags;
	__u32 frame; /* octets of the frame */
	__u32 fault; /* enum etran_drop_reason: not to be processed */
};

struct option_walk {
	__u8 opt[TCP_OPTION_BUFFER];
	__u32 at;
	__u32 length;
	__u64 found; /* TSval with bit 32 set */
};

#define OPTION_OCTET(walk, i) ((walk)->opt[((walk)->at + (i)) % TCP_OPTION_BUFFER])

/* One option; returns 1 to end the walk. */
static long tcp_walk_option(__u32 i, struct option_walk *walk)
{
	__u8 kind = OPTION_OCTET(walk, 0), size = OPTION_OCTET(walk, 1);

	if (walk->at >= walk->length || kind == TCP_OPT_EOL)
		return 1;
	if (kind == TCP_OPT_NOP) {
		walk->at++;
		return 0;
	}
	if (size < 2 || walk->at + size > walk->length)
		return 1;
	if (kind == TCP_OPT_TIMESTAMP && size == TCP_OPTLEN_TIMESTAMP) {
		walk->found = 1ull << 32 | (__u32)OPTION_OCTET(walk, 2) << 24 |
			      OPTION_OCTET(walk, 3) << 16 | OPTION_OCTET(walk, 4) << 8 |
			      OPTION_OCTET(walk, 5);
		return 1;
	}
	walk->at += size;
	return 0;
}

/*
 * Looks for a timestamp that is not in the usual place. Returns TSval with bit
 * 32 set, or 0. A loop helper, since the verifier would follow every path
 * through an ordinary loop.
 */
__noinline __u64 tcp_find_timestamp(struct xdp_md *ctx, __u32 offset, __u32 length)
{
	struct option_walk walk = {};

	if (length == 0 || length > TCP_MAX_OPTIONS)
		return 0;
	length = BOUNDED(length, TCP_OPTION_BUFFER);
	if (bpf_xdp_load_bytes(ctx, offset, walk.opt, length))
		return 0;
	walk.length = length;
	bpf_loop(TCP_MAX_OPTIONS, tcp_walk_option, &walk, 0);
	return walk.found;
}

static __always_inline void tcp_parse_timestamp(struct xdp_md *ctx, const struct frame *f,
						bool wanted, struct segment *seg)
{
	/* The mask changes nothing; it reminds the verifier of the bound. */
	__u32 at = (f->l4 & L4_OFFSET_MASK) + TCP_HEADER_SIZE;
	__u32 length = f->tcp.doff * 4 - TCP_HEADER_SIZE;
	__be32 *word = (void *)(long)ctx->data + at;
	__u64 found;

	if (length < ETRAN_TCP_OPTIONS || (void *)(word + 2) > (void *)(long)ctx->data_end)
		return;
	if (word[0] == bpf_htonl(TCP_TIMESTAMP_WORD)) {
		seg->has_ts = true;
		seg->tsval = bpf_ntohl(word[1]);
		return;
	}
	if (!wanted)
		return;
	found = tcp_find_timestamp(ctx, at, length);
	seg->has_ts = found >> 32;
	seg->tsval = found;
}

/* Fills `seg`. A segment whose lengths contradict the frame has a fault. */
static __always_inline void tcp_parse(struct xdp_md *ctx, const struct frame *f,
				      const struct etran_conn *conn, struct segment *seg)
{
	__u32 header = f->tcp.doff * 4, payload = f->l4 + header;
	bool wanted = conn->flags & ETRAN_CONN_TIMESTAMPS || conn->state == ETRAN_FLOW_OBSERVE;

	seg->seq = bpf_ntohl(f->tcp.seq);
	seg->ack = bpf_ntohl(f->tcp.ack_seq);
	seg->window = bpf_ntohs(f->tcp.window);
	seg->flags = ((const __u8 *)&f->tcp)[13];
	seg->odd = f->options || ((const __u8 *)&f->tcp)[12] & 0x0f;
	seg->fragment = f->fragment;
	seg->frame = f->length;
	seg->has_ts = false;
	seg->tsval = 0;
	seg->fault = ETRAN_DROP_NONE;
	seg->offset = payload;
	seg->length = f->l4_end - payload;
	seg->end = seg->seq + seg->length;
	if (header < TCP_HEADER_SIZE || payload > f->l4_end || f->l4_end > f->length) {
		seg->fault = ETRAN_DROP_MALFORMED;
		return;
	}
	tcp_parse_timestamp(ctx, f, wanted, seg);
	if (conn->flags & ETRAN_CONN_VERIFY_CSUM && !f->fragment) {
		__u32 length = f->l4_end - f->l4;

		if (!checksum_ok(ctx, f->l4, length,
				 csum_pseudo(f->key.raddr, f->key.laddr, length)))
			seg->fault = ETRAN_DROP_CHECKSUM;
	}
}

#endif
