/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/*
 * The far end of an application's veth pair: what ingress sent into the near
 * end goes into the AF_XDP socket of the shared ring. The metadata has survived
 * the hop, and nothing is left to decide.
 */
#ifndef ETRAN_BPF_RELAY_H
#define ETRAN_BPF_RELAY_H

#include "count.h"
#include "ingress.h"
#include "maps.h"

/* Ingress counted the frame as delivered; it is not. */
static __always_inline int relay_undo(__u32 app, __u32 reason)
{
	__u32 ring = ETRAN_SHARED_RING;
	void *map = app_pubs(app);
	struct etran_pub_ring *published = map ? bpf_map_lookup_elem(map, &ring) : NULL;

	if (published)
		__sync_fetch_and_add(&published->delivered, -1);
	return drop(reason);
}

/*
 * The device is its application's until it is deleted, which is before the
 * application's number is used again: no generation need be looked at, and a
 * revoked application's last frames still arrive.
 */
static __always_inline int relay_run(struct xdp_md *ctx)
{
	__u32 ifindex = ctx->ingress_ifindex, place = ifindex % ETRAN_MAX_TAPS, xsk;
	struct etran_tap *owner = bpf_map_lookup_elem(&taps, &place);
	struct etran_ring *words;
	void *socket;

	if (!owner || owner->ifindex != ifindex)
		return drop(ETRAN_DROP_INTERNAL);
	if (ctx->data - ctx->data_meta != META_SIZE)
		return drop(ETRAN_DROP_PAIR_FOREIGN);
	xsk = owner->app * ETRAN_MAX_RINGS + ETRAN_SHARED_RING;
	words = bpf_map_lookup_elem(&rings, &xsk);
	socket = bpf_map_lookup_elem(&xsks, &xsk);
	/* Ingress has looked, but frames may have queued up here since. */
	if (socket && !fill_ring_sane(socket))
		return relay_undo(owner->app, ETRAN_DROP_RING_BROKEN);
	if (!words || bpf_redirect_map(&xsks, xsk, XDP_DROP) != XDP_REDIRECT)
		return relay_undo(owner->app, ETRAN_DROP_NO_XSK);
	/* The pair has one queue: one processor at a time. */
	words->relayed++;
	return XDP_REDIRECT;
}

#endif
