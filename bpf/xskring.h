/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/*
 * Is an AF_XDP socket's fill ring fit to receive into? The application writes it,
 * and the kernel's receive path (xp_alloc, Linux 4.18 to 6.18 at least) steps over
 * descriptors that make no sense without a bound: a producer index that ran
 * backwards makes it walk 2^32 of them, in a softirq, for seconds.
 *
 * An application that is quick can still change the index after this look, once:
 * the kernel counts what it stepped over where the application cannot write.
 */
#ifndef ETRAN_BPF_XSKRING_H
#define ETRAN_BPF_XSKRING_H

#include <linux/bpf.h>
#include <stdbool.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

/* More descriptors without sense than the library has frames: it makes none. */
#define MAX_INVALID 65536

/* The little of the kernel's types that is needed (net/xdp/xsk_queue.h). */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct xdp_ring {
	__u32 producer;
};

struct xsk_queue {
	__u32 nentries;
	__u32 cached_cons;
	struct xdp_ring *ring;
	__u64 invalid_descs;
};

struct xsk_buff_pool {
	struct xsk_queue *fq;
};

struct xdp_sock {
	struct xsk_buff_pool *pool;
};
#pragma clang attribute pop

/* Since Linux 6.2; before, there is no guard. */
extern void *bpf_rdonly_cast(const void *object, __u32 btf_id) __ksym __weak;

/* `found` is what a look-up in an XSKMAP gives. */
static __always_inline bool fill_ring_sane(const void *found)
{
	const struct xdp_sock *xs;
	const struct xsk_queue *fq;

	if (!bpf_rdonly_cast)
		return true;
	xs = bpf_rdonly_cast(found, bpf_core_type_id_kernel(struct xdp_sock));
	fq = xs->pool->fq;
	return fq->ring->producer - fq->cached_cons <= fq->nentries &&
	       fq->invalid_descs <= MAX_INVALID;
}

#endif
