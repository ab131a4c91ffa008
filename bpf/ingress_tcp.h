/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/*
 * SEGMENT ARRIVES for an established connection: RFC 9293 3.10.7.4 with the
 * protections of RFC 5961 and RFC 7323, one function per step. A step returns
 * true to go on; otherwise it has decided the outcome.
 *
 * All steps run under the connection's lock and call no helper.
 */
#ifndef ETRAN_BPF_INGRESS_TCP_H
#define ETRAN_BPF_INGRESS_TCP_H

#include "ingress.h"
#include "tcp.h"
#include "tcp_parse.h"

#define NSEC_PER_USEC 1000u
/* RFC 5961 7: one challenge ACK per connection and millisecond. */
#define TCP_CHALLENGE_INTERVAL_NS 1000000
/* RFC 7323 5.5: TS.Recent means nothing after 24 days of silence. */
#define TCP_PAWS_IDLE_NS (24ull * 24 * 3600 * 1000000000)
/* RFC 5681 3.2. */
#define TCP_DUP_ACKS 3

struct tcp_input {
	struct etran_conn *conn;
	struct etran_pub *pub;
	const struct segment *seg;
	__u64 now;
	__u32 obstacle; /* see struct sink */
	bool moved;     /* SND.UNA or the send limit advanced */
	bool lost;      /* a loss was counted */
	struct outcome *out;
};

static __always_inline bool tcp_drop(struct tcp_input *in, __u32 reason)
{
	in->out->reason = reason;
	return false;
}

/* Returns false if nothing can be delivered now; that is then the outcome. */
static __always_inline bool tcp_deliver(struct tcp_input *in, __u32 kind, __u32 seq, __u32 offset,
					__u32 length)
{
	struct outcome *out = in->out;

	if (in->obstacle)
		return tcp_drop(in, in->obstacle);
	out->kind = kind;
	out->seq = seq;
	out->offset = offset;
	out->length = length;
	return true;
}

static __always_inline bool tcp_deliver_whole(struct tcp_input *in, __u32 kind)
{
	return tcp_deliver(in, kind, in->seg->seq, 0, in->seg->frame);
}

/* The segment is ignored, but the peer is told where we stand. */
static __always_inline bool tcp_answer(struct tcp_input *in, __u32 reason)
{
	if (tcp_deliver(in, ETRAN_RX_PROBE, in->seg->seq, 0, 0))
		in->out->reason = reason;
	return false;
}

/* As tcp_answer, at most once per interval: anybody can make us do it. */
static __always_inline bool tcp_challenge(struct tcp_input *in, __u32 reason)
{
	struct etran_conn *conn = in->conn;

	if ((__s64)(in->now - conn->last_limit_ns) < TCP_CHALLENGE_INTERVAL_NS)
		return tcp_drop(in, ETRAN_DROP_RATE_LIMIT);
	if (!in->obstacle)
		conn->last_limit_ns = in->now;
	return tcp_answer(in, reason);
}

/* RFC 7323 5.3 R1. */
static __always_inline bool tcp_check_paws(struct tcp_input *in)
{
	struct etran_conn *conn = in->conn;
	const __u32 both = ETRAN_CONN_TIMESTAMPS | ETRAN_CONN_TS_VALID;

	if (!in->seg->has_ts || (conn->flags & both) != both)
		return true;
	if (!seq_before(in->seg->tsval, conn->ts_recent) || in->seg->flags & TCP_RST)
		return true;
	if (in->now - conn->last_rx_ns > TCP_PAWS_IDLE_NS) {
		conn->flags &= ~ETRAN_CONN_TS_VALID;
		return true;
	}
	return tcp_challenge(in, ETRAN_DROP_PAWS);
}

/*
 * First step: the segment overlaps [RCV.NXT, right edge), or is empty and
 * inside. The edge is the one advertised, not the one the library wishes for.
 */
static __always_inline bool tcp_check_sequence(struct tcp_input *in)
{
	const struct segment *seg = in->seg;
	__u32 nxt = in->conn->rcv_nxt, adv = in->conn->rcv_adv;

	if (seg->length) {
		if (seq_before(seg->seq, adv) && seq_after(seg->end, nxt))
			return true;
	} else if (seq_within(seg->seq, nxt, adv)) {
		return true;
	}
	if (seg->flags & TCP_RST)
		return tcp_drop(in, ETRAN_DROP_BAD_SEQ);
	/* A duplicate: our ACK was lost. */
	if (seg->length && !seq_after(seg->end, nxt))
		return tcp_answer(in, ETRAN_DROP_NONE);
	/* Keepalive or window probe. Limited, or two stacks that disagree
	 * answer each other's answers for ever. */
	if (!seg->length && seq_before(seg->seq, nxt))
		return tcp_challenge(in, ETRAN_DROP_NONE);
	return tcp_challenge(in, ETRAN_DROP_BAD_SEQ);
}

static __always_inline bool tcp_deliver_control(struct tcp_input *in)
{
	/* Atomic: the tracepoint writes here without the lock. */
	if (tcp_deliver_whole(in, ETRAN_RX_CTL))
		__sync_fetch_and_or(&in->pub->events, ETRAN_EVENT_CTL);
	return false;
}

/*
 * Second step: RFC 5961 3.2, only the exact sequence number resets. What we
 * expect next is RCV.NXT or, for data the library has not acknowledged yet,
 * the end of what was delivered.
 */
static __always_inline bool tcp_check_rst(struct tcp_input *in)
{
	if (!(in->seg->flags & TCP_RST))
		return true;
	if (in->seg->seq == in->conn->rcv_nxt || in->seg->seq == in->conn->rcv_high)
		return tcp_deliver_control(in);
	return tcp_challenge(in, ETRAN_DROP_NONE);
}

/* Fourth step: RFC 5961 4.2. */
static __always_inline bool tcp_check_syn(struct tcp_input *in)
{
	if (!(in->seg->flags & TCP_SYN))
		return true;
	return tcp_challenge(in, ETRAN_DROP_NONE);
}

/* Fifth step, first half: RFC 5961 5.2. */
static __always_inline bool tcp_check_ack(struct tcp_input *in)
{
	struct etran_conn *conn = in->conn;

	if (!(in->seg->flags & TCP_ACK))
		return tcp_drop(in, ETRAN_DROP_NO_ACK_BIT);
	if (!seq_within(in->seg->ack, conn->snd_una - conn->max_wnd, conn->snd_nxt))
		return tcp_challenge(in, ETRAN_DROP_BAD_ACK);
	return true;
}

/* RFC 7323 4.3: Last.ACK.sent is RCV.NXT, since only sent ACKs move it. */
static __always_inline void tcp_update_ts_recent(struct tcp_input *in)
{
	struct etran_conn *conn = in->conn;

	if (!in->seg->has_ts || seq_after(in->seg->seq, conn->rcv_nxt))
		return;
	if (conn->flags & ETRAN_CONN_TS_VALID && seq_before(in->seg->tsval, conn->ts_recent))
		return;
	conn->ts_recent = in->seg->tsval;
	conn->flags |= ETRAN_CONN_TS_VALID;
}

/* RFC 6298 2. */
static __always_inline void tcp_update_rtt(struct tcp_input *in)
{
	struct etran_conn *conn = in->conn;
	__s64 elapsed = in->now - conn->rtt_start_ns;
	__u32 rtt = elapsed > 0 ? (__u64)elapsed / NSEC_PER_USEC : 0;
	__u32 off;

	conn->rtt_start_ns = 0;
	rtt = rtt ? rtt : 1; /* 0 means: no sample yet */
	if (!conn->srtt_us) {
		conn->srtt_us = rtt;
		conn->rttvar_us = rtt / 2;
	} else {
		off = rtt > conn->srtt_us ? rtt - conn->srtt_us : conn->srtt_us - rtt;
		conn->rttvar_us = conn->rttvar_us - conn->rttvar_us / 4 + off / 4;
		conn->srtt_us = conn->srtt_us - conn->srtt_us / 8 + rtt / 8;
		conn->srtt_us = conn->srtt_us ? conn->srtt_us : 1;
	}
	in->pub->srtt_us = conn->srtt_us;
	in->pub->rttvar_us = conn->rttvar_us;
}

/* The segment at SND.UNA is missing: the library must send it again. */
static __always_inline void tcp_count_loss(struct tcp_input *in)
{
	in->lost = true;
	in->pub->loss_seq = in->conn->snd_una;
	in->pub->losses++;
}

/*
 * SND.UNA advanced in recovery (RFC 6582 3.2 step 3): all that was in flight is
 * there, or the next segment is missing, too.
 */
static __always_inline void tcp_recover(struct tcp_input *in)
{
	struct etran_conn *conn = in->conn;

	if (seq_before(conn->snd_una, conn->recover))
		tcp_count_loss(in);
	else
		conn->flags &= ~ETRAN_CONN_RECOVERY;
}

/* Fifth step, second half: SND.UNA < SEG.ACK =< SND.NXT advances SND.UNA. */
static __always_inline void tcp_process_ack(struct tcp_input *in)
{
	struct etran_conn *conn = in->conn;

	if (!seq_after(in->seg->ack, conn->snd_una))
		return;
	conn->snd_una = in->seg->ack;
	conn->dup_acks = 0;
	in->moved = true;
	if (conn->flags & ETRAN_CONN_RECOVERY)
		tcp_recover(in);
	if (conn->rtt_start_ns && !seq_before(in->seg->ack, conn->rtt_seq))
		tcp_update_rtt(in);
}

/* RFC 5681 2, definition of a duplicate ACK; before the window is updated. */
static __always_inline void tcp_count_duplicate_ack(struct tcp_input *in, __u32 window)
{
	struct etran_conn *conn = in->conn;

	if (in->moved || in->seg->length || in->seg->flags & TCP_FIN ||
	    in->seg->ack != conn->snd_una || conn->snd_una == conn->snd_nxt ||
	    window != conn->snd_wnd)
		return;
	conn->dup_acks++;
	if (conn->dup_acks != TCP_DUP_ACKS || conn->flags & ETRAN_CONN_RECOVERY)
		return;
	tcp_enter_recovery(conn);
	tcp_count_loss(in);
}

static __always_inline void tcp_update_window(struct tcp_input *in, __u32 window)
{
	struct etran_conn *conn = in->conn;
	const struct segment *seg = in->seg;

	/* Only from a segment that is not older than the last that set it. */
	if (seq_before(seg->ack, conn->snd_una) || seq_before(seg->seq, conn->snd_wl1) ||
	    (seg->seq == conn->snd_wl1 && seq_before(seg->ack, conn->snd_wl2)))
		return;
	conn->snd_wnd = window;
	conn->snd_wl1 = seg->seq;
	conn->snd_wl2 = seg->ack;
	if (window > conn->max_wnd)
		conn->max_wnd = window;
}

/* The program polls this line: write only what changed. */
static __always_inline void tcp_publish_send(struct tcp_input *in)
{
	__u32 limit = tcp_send_limit(in->conn);

	if (in->moved)
		in->pub->snd_una = in->conn->snd_una;
	if (limit == in->pub->snd_limit)
		return;
	if (seq_after(limit, in->pub->snd_limit))
		in->moved = true;
	in->pub->snd_limit = limit;
}

/* Sixth and eighth step: URG, FIN and what nobody defined are the kernel's. */
static __always_inline bool tcp_check_control(struct tcp_input *in)
{
	if (!(in->seg->flags & (TCP_FIN | TCP_URG)) && !in->seg->odd)
		return true;
	return tcp_deliver_control(in);
}

/* Seventh step: the part inside the window goes to the library. */
static __always_inline void tcp_process_payload(struct tcp_input *in)
{
	struct etran_conn *conn = in->conn;
	__u32 start = seq_max(in->seg->seq, conn->rcv_nxt);
	__u32 end = seq_min(in->seg->end, conn->rcv_adv);

	if (!tcp_deliver(in, ETRAN_RX_DATA, start, in->seg->offset + (start - in->seg->seq),
			 end - start))
		return;
	conn->rcv_high = seq_max(conn->rcv_high, end);
	conn->bytes_in += end - start;
}

/* A pure ACK ends here unless the owner waits for it or must retransmit. */
static __always_inline void tcp_finish_ack(struct tcp_input *in)
{
	bool awaited = in->moved && in->conn->flags & ETRAN_CONN_NOTIFY_ACK;

	if (!awaited && !in->lost) {
		tcp_drop(in, ETRAN_DROP_CONSUMED);
		return;
	}
	if (tcp_deliver(in, ETRAN_RX_ACK, in->seg->seq, 0, 0) && awaited)
		in->conn->flags &= ~ETRAN_CONN_NOTIFY_ACK;
}

static __always_inline void tcp_active(struct tcp_input *in)
{
	__u32 window = in->seg->window << tcp_shift(in->conn->snd_wscale);

	if (in->seg->fault) {
		tcp_drop(in, in->seg->fault);
		return;
	}
	if (!tcp_check_paws(in) || !tcp_check_sequence(in) || !tcp_check_rst(in) ||
	    !tcp_check_syn(in) || !tcp_check_ack(in))
		return;
	in->conn->last_rx_ns = in->now;
	in->conn->segs_in++;
	tcp_update_ts_recent(in);
	tcp_process_ack(in);
	tcp_count_duplicate_ack(in, window);
	tcp_update_window(in, window);
	tcp_publish_send(in);
	if (!tcp_check_control(in))
		return;
	if (in->seg->length)
		tcp_process_payload(in);
	else
		tcp_finish_ack(in);
}

/*
 * Caught whole: the library or the kernel will judge, but neither can know any
 * more whether the checksum was right. Payload ends are remembered so that the
 * library can acknowledge what it takes from here.
 */
static __always_inline void tcp_hold(struct tcp_input *in)
{
	struct etran_conn *conn = in->conn;

	if (in->seg->fault) {
		tcp_drop(in, in->seg->fault);
		return;
	}
	if (!tcp_deliver_whole(in, ETRAN_RX_HELD))
		return;
	conn->held++;
	if (in->seg->length)
		conn->rcv_high = seq_max(conn->rcv_high, in->seg->end);
}

/*
 * Remember what the kernel is about to see. TS.Recent is taken only from a
 * segment at the front: whoever can guess the tuple only must not poison it.
 */
static __always_inline void tcp_observe(struct tcp_input *in, const struct frame *f)
{
	struct etran_conn *conn = in->conn;
	const struct segment *seg = in->seg;
	bool first = !(conn->flags & ETRAN_CONN_OBSERVED);
	__u32 end = seg->end + !!(seg->flags & TCP_SYN) + !!(seg->flags & TCP_FIN);

	in->out->pass = true;
	if (seg->fault || seg->fragment || !(seg->flags & TCP_ACK))
		return;
	if (seg->has_ts && (first || seg->seq == conn->obs_end)) {
		conn->ts_recent = seg->tsval;
		conn->flags |= ETRAN_CONN_TS_VALID;
	}
	conn->obs_end = first ? end : seq_max(conn->obs_end, end);
	conn->obs_ack = first ? seg->ack : seq_max(conn->obs_ack, seg->ack);
	conn->flags |= ETRAN_CONN_OBSERVED;
	__builtin_memcpy(conn->obs_mac, f->smac, ETH_ALEN);
	conn->last_rx_ns = in->now; /* tcp_check_paws needs one from the start */
	conn->obs_segs++;
	in->pub->obs_segs = conn->obs_segs;
}

static __always_inline void tcp_segment_arrives(struct tcp_input *in, const struct frame *f)
{
	__u32 state = in->conn->state;

	in->out->generation = in->conn->generation;
	switch (state) {
	case ETRAN_FLOW_ACTIVE:
	case ETRAN_FLOW_HOLD:
		/* The rest of the datagram cannot be matched to the flow. */
		if (in->seg->fragment)
			tcp_drop(in, ETRAN_DROP_FRAGMENT);
		else if (in->obstacle == ETRAN_DROP_TOO_LONG)
			tcp_drop(in, ETRAN_DROP_TOO_LONG);
		else if (state == ETRAN_FLOW_ACTIVE)
			tcp_active(in);
		else
			tcp_hold(in);
		return;
	case ETRAN_FLOW_OBSERVE:
		tcp_observe(in, f);
		return;
	default:
		in->out->pass = true;
	}
}

static __always_inline int tcp_ingress(struct xdp_md *ctx, const struct frame *f,
				       struct etran_conn *conn, __u32 index)
{
	struct outcome out = {};
	struct segment seg;
	struct sink sink;
	struct tcp_input in = {.conn = conn, .seg = &seg, .out = &out};

	tcp_parse(ctx, f, conn, &seg);
	if (!sink_open(ctx, conn, index, f->length, &sink))
		return conn->state < ETRAN_FLOW_HOLD ? XDP_PASS : drop(ETRAN_DROP_INTERNAL);
	in.pub = sink.pub;
	in.obstacle = sink.obstacle;
	in.now = bpf_ktime_get_ns();

	bpf_spin_lock(&conn->lock);
	tcp_segment_arrives(&in, f);
	/* Under the lock: whoever freezes the flow must see it counted. */
	if (out.kind)
		__sync_fetch_and_add(&sink.ring->delivered, 1);
	bpf_spin_unlock(&conn->lock);

	return sink_finish(ctx, &sink, index % ETRAN_APP_SLOTS, &out);
}

#endif
