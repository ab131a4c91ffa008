//go:build ignore

// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)
/*
 * A bad wire. Everything that comes in on one side goes out on the other, at
 * layer 2; of the TCP segments some are dropped, sent twice, changed in one
 * octet, or sent over a longer path so that others overtake them.
 *
 * What happens to segment n of a direction depends on the direction's seed and
 * on n, and on nothing else.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>
#include <stdbool.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define MILLION 1000000u
#define IP_PROTOCOL_OFFSET (ETH_HLEN + 9)

enum direction { A_TO_B, B_TO_A, DIRECTIONS };

/* The salt that makes one fault independent of the others. */
enum fault { DROP, DUPLICATE, CORRUPT, CORRUPT_WHERE, REORDER, FAULTS };

struct chance {
	__u64 limit; /* of the fault's count; 0 = no limit */
	__u32 per_million;
	__u32 pad;
};

/* What to do to a direction's segments. Written by the test. */
struct settings {
	struct chance drop;
	struct chance duplicate;
	struct chance corrupt;
	struct chance reorder;
	__u64 seed;
	/* Interface indices: the far side, the longer path, and the path of all
	 * other segments (the far side, unless they are delayed). */
	__u32 out;
	__u32 longer;
	__u32 usual;
	__u32 pad;
};

/* What was done. Only ever grows. */
struct counts {
	__u64 segments; /* of TCP over IPv4 */
	__u64 octets;   /* of those, whole frames */
	__u64 dropped;
	__u64 duplicated;
	__u64 corrupted;
	__u64 reordered;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, DIRECTIONS);
	__type(key, __u32);
	__type(value, struct settings);
} configured SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, DIRECTIONS);
	__type(key, __u32);
	__type(value, struct counts);
} counted SEC(".maps");

/* A number that depends on its arguments only (the finalizer of SplitMix64). */
static __always_inline __u64 decide(const struct settings *s, __u64 n, enum fault fault)
{
	__u64 x = s->seed + (n * FAULTS + fault + 1) * 0x9e3779b97f4a7c15ull;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

/* Says whether segment n suffers the fault, and counts it. */
static __always_inline bool suffers(const struct settings *s, __u64 n, enum fault fault,
				    const struct chance *chance, __u64 *count)
{
	if (decide(s, n, fault) % MILLION >= chance->per_million)
		return false;
	if (chance->limit && *count >= chance->limit)
		return false;
	__sync_fetch_and_add(count, 1);
	return true;
}

static __always_inline bool is_tcp(struct __sk_buff *skb)
{
	__u8 protocol;

	return skb->protocol == bpf_htons(ETH_P_IP) &&
	       !bpf_skb_load_bytes(skb, IP_PROTOCOL_OFFSET, &protocol, 1) &&
	       protocol == IPPROTO_TCP;
}

/*
 * Changes one octet, anywhere behind the Ethernet header (whose own checksum
 * would have caught it), and no checksum. One octet is what a one's complement
 * sum always notices.
 */
static __always_inline void corrupt(struct __sk_buff *skb, __u64 random)
{
	__u32 at = ETH_HLEN + (random >> 8) % (skb->len - ETH_HLEN);
	__u8 octet, change = 1 + random % 255;

	if (bpf_skb_load_bytes(skb, at, &octet, 1))
		return;
	octet ^= change;
	bpf_skb_store_bytes(skb, at, &octet, 1, 0);
}

static __always_inline int forward(struct __sk_buff *skb, __u32 direction)
{
	struct settings *s = bpf_map_lookup_elem(&configured, &direction);
	struct counts *c = bpf_map_lookup_elem(&counted, &direction);
	__u64 n;

	if (!s || !c)
		return TC_ACT_SHOT;
	if (!is_tcp(skb))
		return bpf_redirect(s->out, 0);
	n = __sync_fetch_and_add(&c->segments, 1);
	__sync_fetch_and_add(&c->octets, skb->len);
	if (suffers(s, n, DROP, &s->drop, &c->dropped))
		return TC_ACT_SHOT;
	if (suffers(s, n, CORRUPT, &s->corrupt, &c->corrupted))
		corrupt(skb, decide(s, n, CORRUPT_WHERE));
	if (suffers(s, n, DUPLICATE, &s->duplicate, &c->duplicated))
		bpf_clone_redirect(skb, s->usual, 0);
	if (suffers(s, n, REORDER, &s->reorder, &c->reordered))
		return bpf_redirect(s->longer, 0);
	return bpf_redirect(s->usual, 0);
}

/* The end of a longer path. */
static __always_inline int leave(__u32 direction)
{
	struct settings *s = bpf_map_lookup_elem(&configured, &direction);

	return s ? bpf_redirect(s->out, 0) : TC_ACT_SHOT;
}

SEC("tc")
int to_b(struct __sk_buff *skb)
{
	return forward(skb, A_TO_B);
}

SEC("tc")
int to_a(struct __sk_buff *skb)
{
	return forward(skb, B_TO_A);
}

SEC("tc")
int leave_to_b(struct __sk_buff *skb)
{
	return leave(A_TO_B);
}

SEC("tc")
int leave_to_a(struct __sk_buff *skb)
{
	return leave(B_TO_A);
}

/* A veth takes frames that XDP redirects only if its other end has a program. */
SEC("xdp")
int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
