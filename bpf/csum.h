/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* The Internet checksum (RFC 1071): folding, and summing parts of a frame. */
#ifndef ETRAN_BPF_CSUM_H
#define ETRAN_BPF_CSUM_H

#include <linux/in.h>

#include <bpf/bpf_endian.h>

#include "parse.h"

/*
 * Changes nothing about a length in [1, limit], limit a power of two, but says
 * so in a way that the verifier of 6.1 understands and clang does not see
 * through.
 */
#define BOUNDED(length, limit)                                                                     \
	({                                                                                         \
		__u32 less = (length) - 1;                                                         \
		barrier_var(less);                                                                 \
		(less & ((limit) - 1)) + 1;                                                        \
	})

/* Octets to be summed; the program has no variable access to the packet. */
#define CSUM_BUFFER 2048u
/* Kernels before 6.13 sum at most this much in one call. */
#define CSUM_CHUNK 512u

struct csum_buffer {
	__u8 octet[CSUM_BUFFER + CSUM_CHUNK];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct csum_buffer);
} csum_buffers SEC(".maps");

static __always_inline __u16 csum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* Sum of the pseudo header (RFC 9293 3.1), addresses in network order. */
static __always_inline __u64 csum_pseudo(__be32 a, __be32 b, __u32 length)
{
	return (__u64)a + b + bpf_htonl((IPPROTO_TCP << 16) | length);
}

/* True if `length` octets of the frame from `offset`, and `pseudo`, sum up to zero. */
__noinline int checksum_ok(struct xdp_md *ctx, __u32 offset, __u32 length, __u64 pseudo)
{
	__u32 zero = 0, sum = csum_fold(pseudo);
	struct csum_buffer *buffer = bpf_map_lookup_elem(&csum_buffers, &zero);

	if (!buffer || length == 0 || length > CSUM_BUFFER)
		return 0;
	length = BOUNDED(length, CSUM_BUFFER);
	if (bpf_xdp_load_bytes(ctx, offset, buffer->octet, length))
		return 0;
	/* The last word is padded with zero (RFC 9293 3.1). */
	__builtin_memset(&buffer->octet[length], 0, 4);
#pragma unroll
	for (__u32 at = 0; at < CSUM_BUFFER; at += CSUM_CHUNK) {
		__u32 chunk = (length - at + 3) & ~3u;

		if (at >= length)
			break;
		if (chunk > CSUM_CHUNK)
			chunk = CSUM_CHUNK;
		sum = bpf_csum_diff(NULL, 0, (__be32 *)&buffer->octet[at], chunk, sum);
	}
	return csum_fold(sum) == 0xffff;
}

/*
 * The IPv4 header is as it was sent. No device vouches for that, and what TCP's
 * checksum leaves out (length of the header, fragment, addresses that lead to
 * another flow) must not be believed.
 */
static __always_inline bool ipv4_checksum_ok(struct xdp_md *ctx, const struct frame *f)
{
	if (f->options)
		return checksum_ok(ctx, f->l3, f->l4 - f->l3, 0);
	return csum_fold(f->ip_sum) == 0xffff;
}

#endif
