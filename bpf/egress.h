/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/*
 * Egress, the part that knows no transport: who wrote this frame, may it speak
 * for that connection, and where does it go. Everything in the frame is
 * untrusted.
 */
#ifndef ETRAN_BPF_EGRESS_H
#define ETRAN_BPF_EGRESS_H

#include <linux/errno.h>

#include "count.h"
#include "maps.h"
#include "seq.h"

/* Descriptors that may have been taken without ingress knowing. */
#define CREDIT_STEP (ETRAN_RING_SIZE / 16)

/* A tap frame's request, copied out before the headers are written over it. */
struct request {
	struct etran_tx_header h;
	__u32 app;
	__u32 index; /* connection record */
};

/* The application that owns tap `ifindex`, or -1. */
static __always_inline int tap_owner(__u32 ifindex)
{
	__u32 index = ifindex % ETRAN_MAX_TAPS;
	struct etran_tap *tap = bpf_map_lookup_elem(&taps, &index);
	struct etran_app *app;

	if (!tap || tap->ifindex != ifindex)
		return -1;
	index = tap->app;
	app = bpf_map_lookup_elem(&apps, &index);
	if (!app || !app->generation || app->generation != tap->generation)
		return -1;
	return index;
}

/*
 * The library says how many descriptors it has taken from a ring: credit for
 * ingress. Only forward, and not more than was delivered; two writers at once
 * may lose the newer report, which only means less credit until the next one.
 * In steps: ingress reads the word for every frame, mostly on another CPU, and
 * must not find it changed each time.
 */
static __always_inline void report_consumed(__u32 app, const struct etran_tx_header *h)
{
	__u32 ring = h->ring, xsk = app * ETRAN_MAX_RINGS + ring;
	struct etran_pub_ring *published;
	struct etran_ring *words;
	void *map;

	if (ring >= ETRAN_MAX_RINGS)
		return;
	words = bpf_map_lookup_elem(&rings, &xsk);
	if (!words || !seq_after(h->consumed, words->consumed + CREDIT_STEP - 1))
		return;
	map = app_pubs(app);
	published = map ? bpf_map_lookup_elem(map, &ring) : NULL;
	if (published && !seq_after(h->consumed, published->delivered))
		words->consumed = h->consumed;
}

/* The device refused a frame: SND.NXT has moved, the library must repair. */
static __always_inline void tx_failed(struct etran_pub *pub, __u32 error)
{
	__sync_fetch_and_add(&pub->tx_errors, 1);
	pub->tx_errno = error;
	__sync_fetch_and_or(&pub->events, ETRAN_EVENT_TX_ERROR);
	count(ETRAN_DROP_REDIRECT_TX);
}

/* Sends the finished frame of connection `index` by device `port`. */
static __always_inline int transmit(struct etran_pub *pub, __u32 index, __u32 port)
{
	__u32 zero = 0;
	__u32 *last = bpf_map_lookup_elem(&scratch, &zero);

	if (last)
		*last = index; /* for the tracepoint, should the device refuse */
	if (bpf_redirect_map(&ports, port, XDP_DROP) == XDP_REDIRECT)
		return XDP_REDIRECT;
	tx_failed(pub, ENODEV); /* the device has gone from the map */
	return XDP_DROP;
}

#endif
