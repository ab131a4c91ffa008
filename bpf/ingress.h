/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/*
 * Ingress, the part that knows no transport: whose frame is it, can it be
 * delivered, and the delivery itself.
 *
 * Everything that can fail is tried before the transport moves any state; the
 * transport learns of it as the sink's obstacle.
 */
#ifndef ETRAN_BPF_INGRESS_H
#define ETRAN_BPF_INGRESS_H

#include "count.h"
#include "maps.h"
#include "parse.h"
#include "xskring.h"

#define META_SIZE ((int)sizeof(struct etran_rx_meta))
#define MAX_FRAME (ETRAN_FRAME_SIZE - ETRAN_FRAME_HEADROOM)

/* Where the frames of a connection go. */
struct sink {
	struct etran_pub *pub;
	struct etran_pub_ring *ring;
	__u32 app;
	__u32 xsk;      /* index in `xsks` */
	__u32 obstacle; /* enum etran_drop_reason: why nothing can go there now */
	bool meta;      /* room for the metadata has been made */
	bool shared;    /* by way of the application's veth pair */
};

/* What a transport decides about a frame. */
struct outcome {
	bool pass;    /* to the kernel */
	__u16 kind;   /* enum etran_rx_kind: deliver; 0 = do not */
	__u16 offset; /* of the payload in the frame */
	__u16 length;
	__u32 seq;
	__u32 reason; /* enum etran_drop_reason to count, NONE = nothing to count */
	__u32 generation;
};

/* Why nothing can be put into AF_XDP socket `xsk` now, or NONE. */
static __always_inline __u32 sink_check(struct sink *sink, struct etran_ring *ring, __u32 length)
{
	void *socket;

	if (length > MAX_FRAME)
		return ETRAN_DROP_TOO_LONG;
	socket = bpf_map_lookup_elem(&xsks, &sink->xsk);
	if (!socket)
		return ETRAN_DROP_NO_XSK;
	if (!fill_ring_sane(socket))
		return ETRAN_DROP_RING_BROKEN;
	/* Bytes of window do not bound descriptors: count descriptors. */
	if (sink->ring->delivered - ring->consumed >= ETRAN_RING_SIZE)
		return ETRAN_DROP_NO_CREDIT;
	if (sink->shared && sink->ring->delivered - ring->relayed >= ETRAN_PAIR_FRAMES)
		return ETRAN_DROP_PAIR_FULL;
	return ETRAN_DROP_NONE;
}

/*
 * Fills `sink` for connection `index`. Packet pointers taken before are invalid
 * afterwards. Returns false if the application is gone.
 */
static __always_inline bool sink_open(struct xdp_md *ctx, struct etran_conn *conn, __u32 index,
				      __u32 length, struct sink *sink)
{
	__u32 app = index / ETRAN_APP_SLOTS, slot = index % ETRAN_APP_SLOTS;
	__u32 queue = ctx->rx_queue_index, ring = conn->ring;
	void *published = app_pubs(app);
	struct etran_ring *words;

	if (!published)
		return false;
	sink->obstacle = ETRAN_DROP_NONE;
	sink->shared = ring == ETRAN_SHARED_RING;
	if (!sink->shared)
		ring += queue;
	if (queue >= ETRAN_MAX_QUEUES || ring >= ETRAN_MAX_RINGS) {
		sink->obstacle = ETRAN_DROP_NO_XSK;
		ring = 0;
	}
	sink->app = app;
	sink->xsk = app * ETRAN_MAX_RINGS + ring;
	sink->pub = bpf_map_lookup_elem(published, &slot);
	sink->ring = bpf_map_lookup_elem(published, &ring);
	words = bpf_map_lookup_elem(&rings, &sink->xsk);
	if (!sink->pub || !sink->ring || !words)
		return false;
	if (!sink->obstacle)
		sink->obstacle = sink_check(sink, words, length);
	sink->meta = !sink->obstacle && !bpf_xdp_adjust_meta(ctx, -META_SIZE);
	if (!sink->obstacle && !sink->meta)
		sink->obstacle = ETRAN_DROP_NO_META;
	return true;
}

/* To the kernel, which must not see our metadata (it keeps GRO from merging). */
static __always_inline int sink_pass(struct xdp_md *ctx, struct sink *sink)
{
	if (sink->meta)
		bpf_xdp_adjust_meta(ctx, META_SIZE);
	return XDP_PASS;
}

/* A frame was counted as delivered (under the lock), but will not arrive. */
static __always_inline int sink_undo(struct sink *sink, __u32 reason)
{
	__sync_fetch_and_add(&sink->ring->delivered, -1);
	return drop(reason);
}

static __always_inline long sink_redirect(const struct sink *sink)
{
	if (sink->shared)
		return bpf_redirect_map(&pairs, sink->app, XDP_DROP);
	return bpf_redirect_map(&xsks, sink->xsk, XDP_DROP);
}

static __always_inline int sink_deliver(struct xdp_md *ctx, struct sink *sink, __u32 slot,
					struct outcome *out)
{
	struct etran_rx_meta *meta = (void *)(long)ctx->data_meta;

	if ((void *)(meta + 1) > (void *)(long)ctx->data)
		return sink_undo(sink, ETRAN_DROP_INTERNAL);
	meta->slot = slot;
	meta->kind = out->kind;
	meta->generation = out->generation;
	meta->offset = out->offset;
	meta->length = out->length;
	meta->seq = out->seq;
	/* The socket may have gone since sink_open. */
	if (sink_redirect(sink) != XDP_REDIRECT)
		return sink_undo(sink, ETRAN_DROP_NO_XSK);
	return XDP_REDIRECT;
}

static __always_inline int sink_finish(struct xdp_md *ctx, struct sink *sink, __u32 slot,
				       struct outcome *out)
{
	if (out->pass)
		return sink_pass(ctx, sink);
	if (out->reason)
		count(out->reason);
	if (!out->kind)
		return XDP_DROP;
	return sink_deliver(ctx, sink, slot, out);
}

#endif
