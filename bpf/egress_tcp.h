/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/*
 * SEND: what the library may put on the wire, and the headers for it. Checks
 * come first and move nothing; a refused frame changes no state.
 */
#ifndef ETRAN_BPF_EGRESS_TCP_H
#define ETRAN_BPF_EGRESS_TCP_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>

#include <bpf/bpf_endian.h>

#include "egress.h"
#include "tcp.h"
#include "tcp_parse.h"

#define NSEC_PER_MSEC 1000000u
/* RFC 7323 2.3: no window is larger than 1 GiB. */
#define TCP_MAX_WINDOW (1u << 30)
#define TCP_MAX_WINDOW_FIELD 65535u
#define IP_DONT_FRAGMENT 0x4000u

/* IPv4 and TCP octets of every segment with payload. */
#define TCP_OVERHEAD (ETRAN_HEADER_ROOM - ETH_HLEN)

struct tcp_output {
	const struct etran_tx_header *h;
	struct etran_conn *conn;
	/*
	 * The words of a struct etran_tx_sack in the frame, which become the rest
	 * of the TCP options in place; NULL if there are none.
	 */
	__u32 *sack;
	__u64 now;
	/* Decided under the lock, written to the frame after it: */
	__u32 seq;
	__u32 ack;
	__u32 window; /* header field */
	__u32 tsecr;
	__u32 tsoffset;
	__be32 laddr;
	__be32 raddr;
	__be16 lport;
	__be16 rport;
	__u16 header; /* octets of the TCP header */
	__u16 ip_id;
	__u8 tos;
	__u8 ttl;
	bool timestamps;
	bool sacks; /* negotiated */
};

/*
 * The acknowledgement: at most what was delivered (a program must not make the
 * peer send faster than it receives), never less than was acknowledged.
 */
static __always_inline __u32 tcp_next_ack(const struct tcp_output *out)
{
	const struct etran_conn *conn = out->conn;

	return seq_max(conn->rcv_nxt, seq_min(out->h->ack, conn->rcv_high));
}

/* Blocks lie beyond the acknowledgement and inside what was delivered. */
static __always_inline __u32 tcp_check_sack(const struct tcp_output *out)
{
	__u32 ack = tcp_next_ack(out), count = out->sack[0];

	if (!count || count > ETRAN_SACK_BLOCKS)
		return ETRAN_DROP_TX_SEQ;
#pragma unroll
	for (__u32 i = 0; i < ETRAN_SACK_BLOCKS; i++) {
		/* Unsigned distances from the acknowledgement: nothing wraps. */
		__u32 start = out->sack[1 + 2 * i] - ack, end = out->sack[2 + 2 * i] - ack;

		if (i < count && (!start || start >= end || end > out->conn->rcv_high - ack))
			return ETRAN_DROP_TX_SEQ;
	}
	return ETRAN_DROP_NONE;
}

/* Sets the segment's sequence number; returns a drop reason. */
static __always_inline __u32 tcp_check_send(struct tcp_output *out)
{
	const struct etran_tx_header *h = out->h;
	struct etran_conn *conn = out->conn;
	__u32 end = h->seq + h->length;

	out->seq = conn->snd_nxt;
	if (h->flags & ETRAN_TX_PROBE) {
		out->seq = conn->snd_una - 1;
		/* Blocks would go out unchecked. */
		return h->length || out->sack ? ETRAN_DROP_TX_MALFORMED : ETRAN_DROP_NONE;
	}
	if (h->length > conn->mss)
		return ETRAN_DROP_TX_MTU;
	if (h->flags & ETRAN_TX_RETRANSMIT) {
		out->seq = h->seq;
		if (!h->length || seq_before(h->seq, conn->snd_una) ||
		    seq_after(end, conn->snd_nxt))
			return ETRAN_DROP_TX_SEQ;
		return ETRAN_DROP_NONE;
	}
	if (!h->length)
		return out->sack ? tcp_check_sack(out) : ETRAN_DROP_NONE;
	if (h->seq != conn->snd_nxt)
		return ETRAN_DROP_TX_SEQ;
	if (seq_after(end, tcp_send_limit(conn)))
		return ETRAN_DROP_TX_WINDOW;
	return ETRAN_DROP_NONE;
}

/*
 * The window field: what the library has room for. What was promised stays
 * acceptable (`rcv_adv`), and the library never takes its own promises back
 * (RFC 9293 3.8.6); on the wire they may fall short by less than one unit of
 * scale (RFC 7323 2.4). But the kernel may have promised more than the
 * library's buffer holds, before the promotion. The peer must learn that, as it
 * must be able to (RFC 9293 3.8.6): else it sends what nobody takes, and takes
 * a program that does not read for a network that loses.
 */
static __always_inline void tcp_offer_window(struct tcp_output *out)
{
	struct etran_conn *conn = out->conn;
	__u32 shift = tcp_shift(conn->rcv_wscale), window = out->h->wnd, edge;

	if (window > TCP_MAX_WINDOW)
		window = TCP_MAX_WINDOW;
	edge = out->ack + window;
	/* Another thread has acknowledged more: its octets are in this room. */
	if (seq_before(out->h->ack, out->ack))
		edge = seq_max(out->h->ack + window, out->ack);
	out->window = (edge - out->ack) >> shift;
	if (out->window > TCP_MAX_WINDOW_FIELD)
		out->window = TCP_MAX_WINDOW_FIELD;
	conn->rcv_adv = seq_max(conn->rcv_adv, out->ack + (out->window << shift));
}

/* Moves SND.NXT, starts or stops the timing of a round trip, counts. */
static __always_inline void tcp_advance_send(struct tcp_output *out)
{
	struct etran_conn *conn = out->conn;
	__u32 length = out->h->length;

	conn->segs_out++;
	if (out->h->flags & ETRAN_TX_NOTIFY)
		conn->flags |= ETRAN_CONN_NOTIFY_ACK;
	if (!length)
		return;
	if (out->h->flags & ETRAN_TX_RETRANSMIT) {
		conn->retrans++;
		conn->rtt_start_ns = 0; /* Karn: RFC 6298 3 */
		if (!(conn->flags & ETRAN_CONN_RECOVERY))
			tcp_enter_recovery(conn);
		return;
	}
	conn->snd_nxt = out->seq + length;
	conn->bytes_out += length;
	if (!conn->rtt_start_ns && !(conn->flags & ETRAN_CONN_RECOVERY)) {
		conn->rtt_start_ns = out->now;
		conn->rtt_seq = conn->snd_nxt;
	}
}

static __always_inline void tcp_take_constants(struct tcp_output *out)
{
	struct etran_conn *conn = out->conn;

	out->timestamps = conn->flags & ETRAN_CONN_TIMESTAMPS;
	out->sacks = conn->flags & ETRAN_CONN_SACK;
	out->tsecr = conn->flags & ETRAN_CONN_TS_VALID ? conn->ts_recent : 0;
	out->tsoffset = conn->ts_offset;
	out->laddr = conn->laddr;
	out->raddr = conn->raddr;
	out->lport = conn->lport;
	out->rport = conn->rport;
	out->tos = conn->tos;
	out->ttl = conn->ttl;
	out->ip_id = conn->ip_id++;
}

/* Under the lock. Returns a drop reason; NONE: `out` is complete. */
static __always_inline __u32 tcp_send(struct tcp_output *out, struct etran_pub *pub, __u32 hop)
{
	__u32 reason;

	/* Not published: the slot's words belong to its new owner. */
	if (out->conn->generation != out->h->generation)
		return ETRAN_DROP_TX_GENERATION;
	reason = out->conn->state != ETRAN_FLOW_ACTIVE ? ETRAN_DROP_TX_STATE : hop;
	if (!reason)
		reason = tcp_check_send(out);
	if (reason) {
		pub->tx_refused++;
		pub->tx_reason = reason;
		return reason;
	}
	out->ack = tcp_next_ack(out);
	out->conn->rcv_nxt = out->ack;
	tcp_offer_window(out);
	tcp_advance_send(out);
	tcp_take_constants(out);
	if (pub->snd_nxt != out->conn->snd_nxt)
		pub->snd_nxt = out->conn->snd_nxt;
	if (pub->rcv_nxt != out->conn->rcv_nxt)
		pub->rcv_nxt = out->conn->rcv_nxt;
	return ETRAN_DROP_NONE;
}

static __always_inline void write_ipv4(__be32 *ip, const struct tcp_output *out)
{
	struct iphdr *header = (struct iphdr *)ip;
	__u32 total = sizeof(*header) + out->header + out->h->length;
	__u64 sum;

	ip[0] = bpf_htonl(0x45000000 | out->tos << 16 | total);
	ip[1] = bpf_htonl(out->ip_id << 16 | IP_DONT_FRAGMENT);
	ip[2] = bpf_htonl(out->ttl << 24 | IPPROTO_TCP << 16);
	ip[3] = out->laddr;
	ip[4] = out->raddr;
	sum = (__u64)ip[0] + ip[1] + ip[2] + ip[3] + ip[4];
	header->check = ~csum_fold(sum);
}

/* Returns the sum of the words written. */
static __always_inline __u64 write_sack(const struct tcp_output *out)
{
	__be32 *word = out->sack;
	__u32 count = out->sacks ? word[0] : 0;
	__u64 sum;

	word[0] = bpf_htonl(count ? TCP_SACK_WORD | (2 + 8 * count) : TCP_NOPS_WORD);
	sum = word[0];
#pragma unroll
	for (__u32 i = 1; i <= 2 * ETRAN_SACK_BLOCKS; i++) {
		word[i] = bpf_htonl(i <= 2 * count ? word[i] : TCP_NOPS_WORD);
		sum += word[i];
	}
	return sum;
}

static __always_inline void write_tcp(__be32 *tcp, const struct tcp_output *out)
{
	struct tcphdr *header = (struct tcphdr *)tcp;
	__u32 flags = TCP_ACK | (out->h->flags & ETRAN_TX_PUSH ? TCP_PSH : 0);
	__u64 sum = csum_pseudo(out->laddr, out->raddr, out->header + out->h->length);

	tcp[0] = out->lport | (__u32)out->rport << 16;
	tcp[1] = bpf_htonl(out->seq);
	tcp[2] = bpf_htonl(out->ack);
	tcp[3] = bpf_htonl(out->header / 4 << 28 | flags << 16 | out->window);
	tcp[4] = 0;
	tcp[5] = bpf_htonl(out->timestamps ? TCP_TIMESTAMP_WORD : TCP_NOPS_WORD);
	tcp[6] = bpf_htonl(TCP_NOPS_WORD);
	tcp[7] = bpf_htonl(TCP_NOPS_WORD);
	if (out->timestamps) {
		tcp[6] = bpf_htonl((__u32)(out->now / NSEC_PER_MSEC) + out->tsoffset);
		tcp[7] = bpf_htonl(out->tsecr);
	}
	sum += (__u64)tcp[0] + tcp[1] + tcp[2] + tcp[3] + tcp[5] + tcp[6] + tcp[7];
	if (out->sack)
		sum += write_sack(out);
	header->check = ~csum_fold(sum + out->h->csum);
}

/* Why hop `hop` cannot carry `length` octets of payload, or NONE. */
static __always_inline __u32 check_hop(const struct etran_hop *hop, __u32 length)
{
	if (!hop || !hop->valid || hop->vlan)
		return ETRAN_DROP_TX_NO_HOP;
	if (TCP_OVERHEAD + length > hop->mtu)
		return ETRAN_DROP_TX_MTU;
	return ETRAN_DROP_NONE;
}

static __always_inline int tcp_egress(struct xdp_md *ctx, const struct request *req,
				      struct etran_conn *conn, struct etran_pub *pub)
{
	struct tcp_output out = {
		.h = &req->h,
		.conn = conn,
		.header = TCP_HEADER_SIZE + ETRAN_TCP_OPTIONS,
	};
	__u32 hop_index = conn->hop, reason;
	struct etran_hop *hop = bpf_map_lookup_elem(&hops, &hop_index);
	struct ethhdr *eth = (void *)(long)ctx->data;

	if ((void *)eth + ETRAN_HEADER_ROOM > (void *)(long)ctx->data_end)
		return drop(ETRAN_DROP_TX_MALFORMED);
	if (req->h.flags & ETRAN_TX_SACK) {
		out.sack = (void *)eth + ETRAN_HEADER_ROOM;
		out.header += sizeof(struct etran_tx_sack);
		if ((void *)out.sack + sizeof(struct etran_tx_sack) > (void *)(long)ctx->data_end)
			return drop(ETRAN_DROP_TX_MALFORMED);
	}
	reason = check_hop(hop, req->h.length);
	out.now = bpf_ktime_get_ns();

	bpf_spin_lock(&conn->lock);
	reason = tcp_send(&out, pub, reason);
	bpf_spin_unlock(&conn->lock);
	if (reason || !hop)
		return drop(reason);

	__builtin_memcpy(eth->h_dest, hop->dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, hop->smac, ETH_ALEN);
	eth->h_proto = bpf_htons(ETH_P_IP);
	write_ipv4((void *)eth + ETH_HLEN, &out);
	write_tcp((void *)eth + ETH_HLEN + sizeof(struct iphdr), &out);
	return transmit(pub, req->index, hop->port);
}

#endif
