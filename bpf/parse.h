/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/*
 * Ethernet, at most one 802.1Q tag, IPv4, ports. Parsing never judges: a frame
 * that is not surely TCP over IPv4 to this host is not ours.
 */
#ifndef ETRAN_BPF_PARSE_H
#define ETRAN_BPF_PARSE_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>

#include <bpf/bpf_endian.h>

#include "maps.h"

#define VLAN_TAG_SIZE 4
#define VLAN_ID_MASK 0x0fff
#define IP_MORE_FRAGMENTS 0x2000
#define IP_OFFSET_MASK 0x1fff
/* Above the largest offset of a TCP header: 14 + 4 + 60. */
#define L4_OFFSET_MASK 0x7fu

/* What a frame says about itself, before any connection is known. */
struct frame {
	struct etran_flow_key key;
	__u32 length;   /* octets of the frame */
	__u32 l3;       /* offset of the IPv4 header */
	__u32 l4;       /* offset of the TCP header */
	__u32 l4_end;   /* end of the datagram by IPv4; padding may follow */
	__u64 ip_sum;   /* of the IPv4 header without options, not folded */
	bool fragment;  /* first fragment of several */
	bool options;   /* the IPv4 header has options */
	__u8 smac[ETH_ALEN];
	/* The TCP header without options, as received. */
	struct tcphdr tcp;
};

/* Returns the offset of the IPv4 header, 0 if there is none. */
static __always_inline __u32 parse_ethernet(void *data, void *end, struct frame *f)
{
	struct ethhdr *eth = data;
	__be16 *tag = data + sizeof(*eth);

	if ((void *)(eth + 1) > end)
		return 0;
	/* Group addresses: the kernel takes no TCP from those either. */
	if (eth->h_dest[0] & 1)
		return 0;
	__builtin_memcpy(f->smac, eth->h_source, ETH_ALEN);
	f->key.vlan = 0;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return sizeof(*eth);
	if (eth->h_proto != bpf_htons(ETH_P_8021Q) || (void *)(tag + 2) > end)
		return 0;
	if (tag[1] != bpf_htons(ETH_P_IP))
		return 0;
	f->key.vlan = bpf_ntohs(tag[0]) & VLAN_ID_MASK;
	return sizeof(*eth) + VLAN_TAG_SIZE;
}

/* Returns false if the frame cannot be ours. */
static __always_inline bool parse_ipv4(struct iphdr *ip, void *end, struct frame *f)
{
	const __be32 *word = (const __be32 *)ip;
	__u32 fragment;

	if ((void *)(ip + 1) > end)
		return false;
	if (ip->version != 4 || ip->ihl < 5 || ip->protocol != IPPROTO_TCP)
		return false;
	fragment = bpf_ntohs(ip->frag_off);
	/* Later fragments have no ports: the kernel sorts them out. */
	if (fragment & IP_OFFSET_MASK)
		return false;
	f->fragment = fragment & IP_MORE_FRAGMENTS;
	f->options = ip->ihl != 5;
	f->l4 = f->l3 + ip->ihl * 4;
	f->l4_end = f->l3 + bpf_ntohs(ip->tot_len);
	f->ip_sum = (__u64)word[0] + word[1] + word[2] + word[3] + word[4];
	f->key.raddr = ip->saddr;
	f->key.laddr = ip->daddr;
	return true;
}

/* Returns false if the frame cannot be ours. */
static __always_inline bool parse_frame(struct xdp_md *ctx, struct frame *f)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct tcphdr *tcp;

	f->l3 = parse_ethernet(data, end, f);
	if (!f->l3 || !parse_ipv4(data + f->l3, end, f))
		return false;
	tcp = data + f->l4;
	if ((void *)(tcp + 1) > end)
		return false;
	f->tcp = *tcp;
	f->key.rport = tcp->source;
	f->key.lport = tcp->dest;
	f->key.ifindex = ctx->ingress_ifindex;
	f->key.pad = 0;
	f->length = bpf_xdp_get_buff_len(ctx);
	return true;
}

#endif
