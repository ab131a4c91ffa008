/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/*
 * The control program: what the daemon does to a live connection, atomically
 * with respect to ingress and egress.
 */
#ifndef ETRAN_BPF_CONTROL_H
#define ETRAN_BPF_CONTROL_H

#include <linux/errno.h>

#include "maps.h"
#include "tcp.h"

/* conn->flags that ACTIVATE takes from the daemon. */
#define CONN_FLAGS_FROM_DUMP (ETRAN_CONN_TIMESTAMPS | ETRAN_CONN_VERIFY_CSUM | ETRAN_CONN_SACK)

static __always_inline void publish(struct etran_conn *conn, struct etran_pub *pub)
{
	pub->generation = conn->generation;
	pub->snd_una = conn->snd_una;
	pub->snd_limit = tcp_send_limit(conn);
	pub->snd_nxt = conn->snd_nxt;
	pub->rcv_nxt = conn->rcv_nxt;
	pub->srtt_us = conn->srtt_us;
	pub->rttvar_us = conn->rttvar_us;
	pub->obs_segs = conn->obs_segs;
	/* Last: whoever sees the state sees the numbers that belong to it. */
	barrier();
	*(volatile __u32 *)&pub->state = conn->state;
}

/* The one setter of conn->state. */
static __always_inline void conn_set_state(struct etran_conn *conn, struct etran_pub *pub,
					   __u32 state)
{
	if (state == ETRAN_FLOW_OBSERVE)
		__builtin_memset(pub, 0, sizeof(*pub));
	/* What OBSERVE let pass is received, as far as a bound goes. */
	if (state == ETRAN_FLOW_HOLD && conn->state == ETRAN_FLOW_OBSERVE)
		conn->rcv_high = conn->obs_end;
	conn->state = state;
	publish(conn, pub);
}

/* The numbers of the dump, see ETRAN_CTL_ACTIVATE. */
static __always_inline void conn_take_dump(struct etran_conn *conn, const struct etran_conn *dump)
{
	conn->rcv_nxt = dump->rcv_nxt;
	conn->rcv_high =
		seq_min(seq_max(conn->rcv_high, dump->rcv_nxt), dump->rcv_nxt + ETRAN_RCV_BUF);
	conn->rcv_adv = seq_max(dump->rcv_adv, conn->rcv_high);
	conn->snd_una = dump->snd_una;
	conn->snd_nxt = dump->snd_nxt;
	conn->snd_wnd = dump->snd_wnd;
	conn->max_wnd = dump->max_wnd;
	conn->snd_wl1 = dump->snd_wl1;
	conn->snd_wl2 = dump->snd_wl2;
	conn->snd_wscale = dump->snd_wscale;
	conn->rcv_wscale = dump->rcv_wscale;
	conn->dup_acks = 0;
	conn->rtt_start_ns = 0;
	conn->ts_offset = dump->ts_offset;
	if (!(conn->flags & ETRAN_CONN_TS_VALID)) {
		conn->ts_recent = dump->ts_recent;
		conn->flags |= dump->flags & ETRAN_CONN_TS_VALID;
	}
	conn->flags &= ~(CONN_FLAGS_FROM_DUMP | ETRAN_CONN_NOTIFY_ACK | ETRAN_CONN_RECOVERY);
	conn->flags |= dump->flags & CONN_FLAGS_FROM_DUMP;
	conn->mss = dump->mss;
	conn->tos = dump->tos;
	conn->ttl = dump->ttl;
	conn->hop = dump->hop;
}

/* Under the lock. Returns 0 or a negative errno. */
static __always_inline int control_apply(const struct etran_ctl *ctl, struct etran_conn *conn,
					 struct etran_pub *pub)
{
	if (conn->generation != ctl->generation)
		return -ESTALE;
	switch (ctl->op) {
	case ETRAN_CTL_SNAPSHOT:
		return 0;
	case ETRAN_CTL_SET_STATE:
		if (ctl->to > ETRAN_FLOW_ACTIVE)
			return -EINVAL;
		if (conn->state != ctl->from)
			return -EBUSY;
		conn_set_state(conn, pub, ctl->to);
		return 0;
	case ETRAN_CTL_EVENT:
		__sync_fetch_and_or(&pub->events, ETRAN_EVENT_CTL);
		return 0;
	case ETRAN_CTL_ACTIVATE:
		if (conn->state != ETRAN_FLOW_HOLD)
			return -EBUSY;
		conn_take_dump(conn, &ctl->conn);
		conn_set_state(conn, pub, ETRAN_FLOW_ACTIVE);
		return 0;
	case ETRAN_CTL_SET_RING:
		if (ctl->arg > ETRAN_SHARED_RING)
			return -EINVAL;
		conn->ring = ctl->arg;
		return 0;
	default:
		return -EINVAL;
	}
}

/* Under the lock; the lock itself cannot be copied. */
static __always_inline void control_snapshot(struct etran_conn *to, const struct etran_conn *from)
{
	const __u32 after = __builtin_offsetof(struct etran_conn, state);

	__builtin_memcpy(to, from, __builtin_offsetof(struct etran_conn, lock));
	__builtin_memcpy((void *)to + after, (const void *)from + after, sizeof(*to) - after);
}

static __always_inline int control_run(struct xdp_md *ctx)
{
	struct etran_ctl *ctl = (void *)(long)ctx->data;
	struct etran_conn *conn;
	struct etran_pub *pub;
	__u32 index;

	if ((void *)(ctl + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	index = ctl->index;
	conn = bpf_map_lookup_elem(&conns, &index);
	pub = conn ? conn_pub(index) : NULL;
	if (!conn || !pub) {
		ctl->error = -EINVAL;
		return XDP_PASS;
	}
	bpf_spin_lock(&conn->lock);
	ctl->error = control_apply(ctl, conn, pub);
	control_snapshot(&ctl->conn, conn);
	bpf_spin_unlock(&conn->lock);
	return XDP_PASS;
}

#endif
