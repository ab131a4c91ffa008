//go:build ignore

// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)
/*
 * The programs of the data path. Each does what no transport knows and then
 * dispatches on the connection's transport.
 */
#include "control.h"
#include "csum.h"
#include "egress.h"
#include "egress_tcp.h"
#include "ingress.h"
#include "ingress_tcp.h"
#include "trace.h"

/* On the network devices. What is not surely ours is the kernel's. */
SEC("xdp")
int ingress(struct xdp_md *ctx)
{
	struct etran_conn *conn;
	struct frame frame;
	__u32 *found, index;

	if (!parse_frame(ctx, &frame))
		return XDP_PASS;
	found = bpf_map_lookup_elem(&flows, &frame.key);
	if (!found)
		return XDP_PASS;
	index = *found;
	conn = bpf_map_lookup_elem(&conns, &index);
	if (!conn || conn->state == ETRAN_FLOW_NONE)
		return XDP_PASS;
	if (!ipv4_checksum_ok(ctx, &frame))
		return XDP_PASS; /* the kernel drops and counts it */
	switch (conn->transport) {
	case ETRAN_TRANSPORT_TCP:
		return tcp_ingress(ctx, &frame, conn, index);
	default:
		return XDP_PASS;
	}
}

/* On the taps. Runs in the writer's context, inside write(). */
SEC("xdp")
int egress(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	int owner = tap_owner(ctx->ingress_ifindex);
	struct etran_conn *conn;
	struct etran_pub *pub;
	struct request req;
	__u32 sack;

	if (owner < 0)
		return drop(ETRAN_DROP_TX_NO_APP);
	if (data + ETRAN_HEADER_ROOM > end)
		return drop(ETRAN_DROP_TX_MALFORMED);
	req.h = *(struct etran_tx_header *)data;
	req.app = owner;
	sack = req.h.flags & ETRAN_TX_SACK ? sizeof(struct etran_tx_sack) : 0;
	if (req.h.magic != (ETRAN_ABI_MAGIC ^ ETRAN_ABI_VERSION) || (sack && req.h.length) ||
	    end - data != ETRAN_HEADER_ROOM + sack + req.h.length)
		return drop(ETRAN_DROP_TX_MALFORMED);
	report_consumed(req.app, &req.h);
	if (req.h.flags & ETRAN_TX_CREDIT)
		return drop(ETRAN_DROP_TX_CREDIT_ONLY);
	if (req.h.slot < ETRAN_FIRST_SLOT || req.h.slot >= ETRAN_APP_SLOTS)
		return drop(ETRAN_DROP_TX_NO_CONN);
	req.index = req.app * ETRAN_APP_SLOTS + req.h.slot;
	conn = bpf_map_lookup_elem(&conns, &req.index);
	pub = conn_pub(req.index);
	if (!conn || !pub)
		return drop(ETRAN_DROP_TX_NO_CONN);
	switch (conn->transport) {
	case ETRAN_TRANSPORT_TCP:
		return tcp_egress(ctx, &req, conn, pub);
	default:
		return drop(ETRAN_DROP_TX_STATE);
	}
}

/* Run by the daemon: struct etran_ctl in, struct etran_ctl out. */
SEC("xdp")
int control(struct xdp_md *ctx)
{
	return control_run(ctx);
}

/* Run by the daemon with live frames: hands a frame to the kernel. */
SEC("xdp")
int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("raw_tp/xdp_redirect_err")
int redirect_err(struct bpf_raw_tracepoint_args *ctx)
{
	return trace_redirect_err(ctx);
}

char _license[] SEC("license") = "Dual BSD/GPL";
