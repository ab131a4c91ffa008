/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* TCP: what ingress, egress and control share. */
#ifndef ETRAN_BPF_TCP_H
#define ETRAN_BPF_TCP_H

#include "maps.h"
#include "seq.h"

/* Octet 13 of the header. */
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_PSH 0x08
#define TCP_ACK 0x10
#define TCP_URG 0x20

#define TCP_OPT_EOL 0
#define TCP_OPT_NOP 1
#define TCP_OPT_SACK 5
#define TCP_OPT_TIMESTAMP 8
#define TCP_OPTLEN_TIMESTAMP 10
/* NOP, NOP, kind 8, length 10: where everybody puts it (RFC 7323 appendix A). */
#define TCP_TIMESTAMP_WORD 0x0101080a
#define TCP_NOPS_WORD 0x01010101
/* NOP, NOP, kind 5; plus the length (RFC 2018 3). */
#define TCP_SACK_WORD 0x01010500

/* RFC 7323 2.3: larger shifts are to be treated as 14. */
#define TCP_MAX_WSCALE 14

/* First octet that must not be sent. */
static __always_inline __u32 tcp_send_limit(const struct etran_conn *conn)
{
	__u32 window = conn->snd_wnd;

	if (window > ETRAN_FIXED_WINDOW)
		window = ETRAN_FIXED_WINDOW;
	return conn->snd_una + window;
}

/*
 * What is in flight has lost a segment: until all of it is acknowledged, an ACK
 * of a part of it tells of another loss (RFC 6582), and the time until an ACK
 * is that of the repair, not a round trip.
 */
static __always_inline void tcp_enter_recovery(struct etran_conn *conn)
{
	conn->flags |= ETRAN_CONN_RECOVERY;
	conn->recover = conn->snd_nxt;
	conn->rtt_start_ns = 0;
}

static __always_inline __u32 tcp_shift(__u32 wscale)
{
	return wscale > TCP_MAX_WSCALE ? TCP_MAX_WSCALE : wscale;
}

#endif
