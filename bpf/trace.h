/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/*
 * Redirects fail after the program has returned, and nobody tells it. This
 * tracepoint does; it costs nothing as long as redirects succeed. It sees every
 * failed redirect of the host, so it first asks whose map it was. It may not
 * use `conns` (tracing programs and spin locks) and takes no lock.
 */
#ifndef ETRAN_BPF_TRACE_H
#define ETRAN_BPF_TRACE_H

#include "egress.h"

/* TP_PROTO of xdp_redirect_err: dev, program, target, errno, map type, map, index. */
#define REDIRECT_ERR_ERRNO 3
#define REDIRECT_ERR_MAP 5
#define REDIRECT_ERR_INDEX 6

/* The veth pair refused: the frame was not delivered after all. */
static __always_inline void trace_pair(__u32 app)
{
	__u32 ring = ETRAN_SHARED_RING;
	void *map = app_pubs(app);
	struct etran_pub_ring *published = map ? bpf_map_lookup_elem(map, &ring) : NULL;

	if (!published)
		return;
	__sync_fetch_and_add(&published->delivered, -1);
	count(ETRAN_DROP_REDIRECT_RX);
}

/* The AF_XDP socket refused: likewise. */
static __always_inline void trace_rx(__u32 xsk)
{
	__u32 ring = xsk % ETRAN_MAX_RINGS;
	void *map = app_pubs(xsk / ETRAN_MAX_RINGS);
	struct etran_pub_ring *published = map ? bpf_map_lookup_elem(map, &ring) : NULL;
	struct etran_ring *words = bpf_map_lookup_elem(&rings, &xsk);

	if (!published)
		return;
	__sync_fetch_and_add(&published->delivered, -1);
	__sync_fetch_and_add(&published->refused, 1);
	if (words && ring == ETRAN_SHARED_RING)
		__sync_fetch_and_add(&words->relayed, -1); /* both or neither */
	count(ETRAN_DROP_REDIRECT_RX);
}

/* The device refused what egress, on this CPU, has just redirected. */
static __always_inline void trace_tx(__s32 error)
{
	__u32 zero = 0;
	__u32 *last = bpf_map_lookup_elem(&scratch, &zero);
	struct etran_pub *pub = last ? conn_pub(*last) : NULL;

	if (pub)
		tx_failed(pub, error < 0 ? -error : error);
}

static __always_inline int trace_redirect_err(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 zero = 0, map = ctx->args[REDIRECT_ERR_MAP];
	struct map_ids *id = bpf_map_lookup_elem(&ids, &zero);

	if (!id || !map)
		return 0;
	if (map == id->xsks)
		trace_rx(ctx->args[REDIRECT_ERR_INDEX]);
	else if (map == id->pairs)
		trace_pair(ctx->args[REDIRECT_ERR_INDEX]);
	else if (map == id->ports)
		trace_tx(ctx->args[REDIRECT_ERR_ERRNO]);
	return 0;
}

#endif
