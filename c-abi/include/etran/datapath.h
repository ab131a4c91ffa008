/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the eBPF programs share with the daemon and the library.
 *
 * Byte order: fields named __be* are in network order, all others in host
 * order. Sequence numbers are host order and wrap (RFC 9293 3.4).
 *
 * Who advances the receive sequence? The library does, by acknowledging. XDP
 * only decides what is acceptable and delivers it, in whatever order it comes;
 * nothing is recorded as received until the library has it in its buffer and
 * says so in a tap frame. A frame lost between the program and the ring is
 * therefore just a lost segment: the peer sends it again.
 */
#ifndef ETRAN_DATAPATH_H
#define ETRAN_DATAPATH_H

#include <linux/bpf.h>
#include <linux/types.h>

#include "arena.h"
#include "limits.h"

/* State of a flow; changed only by the control program. */
enum etran_flow_state {
	ETRAN_FLOW_NONE = 0,
	/* segments pass to the kernel, XDP remembers what it saw */
	ETRAN_FLOW_OBSERVE = 1,
	/* every segment goes to the owner's ring, whole and unjudged */
	ETRAN_FLOW_HOLD = 2,
	/* XDP and library carry the connection */
	ETRAN_FLOW_ACTIVE = 3,
};

enum etran_transport {
	ETRAN_TRANSPORT_TCP = 1,
};

/* Key of a flow: where a segment of it arrives. */
struct etran_flow_key {
	__u32 ifindex;
	__be32 raddr; /* source of an arriving segment */
	__be32 laddr;
	__be16 rport;
	__be16 lport;
	__u16 vlan; /* 802.1Q tag id, 0 = untagged */
	__u16 pad;
};

/* etran_conn.flags */
#define ETRAN_CONN_TIMESTAMPS 0x0001u /* timestamps negotiated */
#define ETRAN_CONN_TS_VALID 0x0002u   /* ts_recent holds a value */
#define ETRAN_CONN_VERIFY_CSUM 0x0004u /* device does not vouch for checksums */
#define ETRAN_CONN_NOTIFY_ACK 0x0008u /* owner waits for SND.UNA to advance */
#define ETRAN_CONN_OBSERVED 0x0010u   /* OBSERVE has seen at least one segment */
#define ETRAN_CONN_SACK 0x0020u       /* selective acknowledgements negotiated */
#define ETRAN_CONN_RECOVERY 0x0040u   /* RFC 6582: a loss below `recover` is being repaired */

/*
 * The private record of a connection (map `conns`). Written by the eBPF
 * programs under `lock`; the daemon fills it while the state is NONE, gives the
 * numbers of the dump with ETRAN_CTL_ACTIVATE, and reads it without lock for
 * statistics only. Names as in RFC 9293 3.3.1.
 *
 * The order is for the cache: both ends of a wire may run on different CPUs, so
 * what ingress and egress write is kept apart. The kernel (6.18) puts the
 * values of an array 8 octets in front of a cache line: the lines begin at
 * `lock`, `snd_wl1`, `segs_out` and `obs_mac`.
 */
struct etran_conn {
	/* What OBSERVE saw of the peer. */
	__u32 obs_end; /* highest sequence end passed to the kernel */
	__u32 obs_ack; /* highest acknowledgement seen */

	/* Line of both directions. */
	struct bpf_spin_lock lock;
	__u32 state;      /* enum etran_flow_state; set by the control program */
	__u32 generation; /* of the slot; 0 never occurs */
	__u32 flags;
	/* Receive, written by ingress except rcv_nxt, rcv_adv (egress). */
	__u32 rcv_nxt;   /* acknowledged by the library; Last.ACK.sent */
	__u32 rcv_adv;   /* right edge advertised, never moves back */
	__u32 rcv_high;  /* highest sequence end delivered; bounds ACKs */
	__u32 ts_recent; /* RFC 7323 */
	/* Send, written by ingress except snd_nxt (egress). */
	__u32 snd_una;
	__u32 snd_nxt;
	__u32 snd_wnd; /* octets, scaled */
	__u32 max_wnd; /* largest window the peer offered */
	/* One round trip timed at once (RFC 6298, Karn): */
	__u64 rtt_start_ns; /* when it was sent, 0 = none being timed */
	__u32 rtt_seq;      /* sequence end being timed, valid if rtt_start_ns != 0 */
	__u8 transport;     /* enum etran_transport; this line's constants as below */
	__u8 snd_wscale;
	/* First ring of the receive context, + RX queue; or ETRAN_SHARED_RING. */
	__u16 ring;

	/* Line of ingress. */
	__u32 snd_wl1;
	__u32 snd_wl2;
	__u32 dup_acks;
	__u32 srtt_us;       /* smoothed, microseconds; 0 = no sample yet */
	__u32 rttvar_us;     /* RFC 6298, microseconds */
	__u32 device;        /* ifindex the flow lives on */
	__u64 last_rx_ns;    /* monotonic: last acceptable segment */
	__u64 last_limit_ns; /* monotonic: last challenge or event */
	__u64 segs_in;
	__u64 bytes_in; /* payload delivered, duplicates included */
	__u64 held;     /* segments caught in HOLD */

	/* Line of egress. */
	__u64 segs_out;
	__u64 bytes_out; /* payload first sent */
	__u64 retrans;   /* segments sent again */
	/* Constant while the state is not NONE. */
	__u32 ts_offset; /* our TSval = ms since boot + ts_offset */
	__be32 laddr;
	__be32 raddr;
	__be16 lport;
	__be16 rport;
	__u16 mss; /* payload octets of one segment we may send */
	__u16 hop; /* index in `hops` */
	__u8 tos;
	__u8 ttl;
	__u8 rcv_wscale;
	__u8 pad0;
	__u16 app;
	__u16 slot;
	__u16 ip_id; /* written by egress */
	__u16 pad1;
	__u32 recover; /* SND.NXT when RECOVERY began; written by both directions */
	__u32 pad2;

	/* What OBSERVE saw of the peer. */
	__u8 obs_mac[6]; /* source MAC of the last segment */
	__u16 pad3;
	__u32 obs_segs; /* segments seen */
	__u32 pad4[11];
};

/* etran_pub.events: sticky until the slot is re-used. */
#define ETRAN_EVENT_CTL 0x1u      /* a segment came that only the kernel can handle */
#define ETRAN_EVENT_TX_ERROR 0x2u /* a frame was refused by the device */

/*
 * The published words of a connection: element app-slot of the application's
 * own frozen map, which it maps read-only. Written by the eBPF programs under
 * the connection's lock (tx_errors: by the tracepoint). Two cache lines: the
 * segments that move the first come in on any CPU, the second belongs to the
 * sending thread.
 */
struct etran_pub {
	/* Line of ingress and the control program. */
	__u32 generation;
	__u32 state; /* enum etran_flow_state */
	__u32 snd_una;
	__u32 snd_limit; /* SND.UNA + min(SND.WND, fixed window): first octet NOT to send */
	__u32 events;    /* ETRAN_EVENT_* */
	__u32 loss_seq;  /* SND.UNA at the last loss counted */
	__u32 losses;    /* third duplicate ACKs and partial ACKs (RFC 5681, RFC 6582) */
	__u32 obs_segs;  /* OBSERVE: segments seen */
	__u32 srtt_us;   /* 0 = no sample yet */
	__u32 rttvar_us;
	__u32 pad0[6];

	/* Line of egress and the tracepoint, in the writer's own context. */
	__u32 snd_nxt;
	__u32 rcv_nxt;    /* last acknowledged */
	__u32 tx_errors;  /* frames refused by the device */
	__u32 tx_errno;   /* last error, positive errno */
	__u32 tx_refused; /* tap frames the egress program refused */
	__u32 tx_reason;  /* enum etran_drop_reason of the last refused one */
	__u32 pad1[10];
};

/*
 * The published words of a ring: elements 0 … ETRAN_MAX_RINGS-1 of the same
 * map. `delivered` counts frames put into the AF_XDP socket; frames that the
 * socket refused are taken back by the tracepoint. When the library has
 * consumed `delivered` descriptors it has everything XDP ever accepted: the
 * proof that a demotion waits for.
 */
struct etran_pub_ring {
	__u32 delivered;
	__u32 refused; /* by the socket: see ETRAN_DROP_REDIRECT_RX */
	__u32 pad[30];
};

/* What a delivered frame is: etran_rx_meta.kind. */
enum etran_rx_kind {
	/* payload inside the window; in order or not, perhaps a duplicate */
	ETRAN_RX_DATA = 1,
	/* the flow is in HOLD: whole frame, to be stashed */
	ETRAN_RX_HELD = 2,
	/* FIN, RST, SYN, URG …: whole frame, to be stashed; then demote */
	ETRAN_RX_CTL = 3,
	/* no payload: SND.UNA or the window moved, or a loss was counted */
	ETRAN_RX_ACK = 4,
	/* no payload: the peer must be answered with an ACK now */
	ETRAN_RX_PROBE = 5,
};

/*
 * Metadata directly in front of a delivered frame. The frame itself starts
 * with its Ethernet header; the payload lies at `offset` from there.
 */
struct etran_rx_meta {
	__u16 slot;
	__u16 kind; /* enum etran_rx_kind */
	__u32 generation;
	__u16 offset;
	__u16 length; /* payload octets */
	__u32 seq;    /* sequence of the first payload octet */
};

/* etran_tx_header.flags */
#define ETRAN_TX_RETRANSMIT 0x1u /* seq lies in [SND.UNA, SND.NXT) */
#define ETRAN_TX_NOTIFY 0x2u     /* deliver the next ACK that moves SND.UNA or the window */
#define ETRAN_TX_CREDIT 0x4u     /* send nothing: the frame only reports credit */
#define ETRAN_TX_PROBE 0x8u /* zero-length segment with SEQ = SND.UNA-1 (keepalive, persist) */
#define ETRAN_TX_PUSH 0x10u /* set PSH */
#define ETRAN_TX_SACK 0x20u /* no payload; struct etran_tx_sack lies in its place */

/*
 * In front of the payload in a frame written to a tap, at the start of the
 * ETRAN_HEADER_ROOM octets that the egress program overwrites with the real
 * headers. Everything in it is checked.
 */
struct etran_tx_header {
	__u32 magic; /* ETRAN_ABI_MAGIC ^ ETRAN_ABI_VERSION */
	__u32 slot;
	__u32 generation;
	__u32 flags;
	__u32 seq;
	__u32 ack; /* next octet the library expects; clamped to what was delivered */
	__u32 wnd; /* octets from `ack` the library has room for */
	__u32 ring; /* ring that `consumed` is about */
	__u32 consumed; /* descriptors taken from that ring since it began, modulo 2^32 */
	__u16 length; /* payload octets */
	__u16 csum; /* one's complement sum (not inverted) of the payload, as in memory */
};

#define ETRAN_SACK_BLOCKS 3u

/*
 * What the library has beyond `ack`: an ACK with selective acknowledgements
 * (RFC 2018). The egress program turns it into the option, or into NOPs if the
 * option was not negotiated: both have the same size. It lies directly behind
 * the ETRAN_HEADER_ROOM octets, unaligned, and the frame ends with it.
 */
struct etran_tx_sack {
	__u32 count; /* of blocks, at least one */
	struct etran_range block[ETRAN_SACK_BLOCKS];
};

/*
 * Map `taps`, element ifindex % ETRAN_MAX_TAPS: whose device it is, a tap or
 * the far end of a veth pair. ifindex is that of the private namespace; 0 = not
 * in use. An array, because a hash costs each segment sent 20-60 ns more.
 */
struct etran_tap {
	__u32 ifindex;
	__u32 app;
	__u32 generation; /* of the application */
};

/* Map `apps`: revoked first when an application ends. */
struct etran_app {
	__u32 generation; /* 0 = not in use */
	__u32 flags;
};

/* Map `hops`: next hops, kept by the daemon from netlink. */
struct etran_hop {
	__u32 valid;
	__u32 port; /* index in the DEVMAP `ports` */
	__u16 vlan;
	__u16 mtu;
	__u8 dmac[6];
	__u8 smac[6];
};

/* Private words of an AF_XDP socket (map `rings`, index as in the XSKMAP). */
struct etran_ring {
	__u32 consumed; /* last report of the library */
	/* Shared ring: frames that came out of the veth pair and were taken by the
	 * socket. What is in the pair is `delivered` less this. */
	__u32 relayed;
	__u32 pad[14];
};

/* Operations of the control program (BPF_PROG_RUN). */
enum etran_ctl_op {
	ETRAN_CTL_SNAPSHOT = 1,
	/* change state; refused unless `from` is the present state */
	ETRAN_CTL_SET_STATE = 2,
	/* raise ETRAN_EVENT_CTL on behalf of the daemon (wakes nobody) */
	ETRAN_CTL_EVENT = 3,
	/*
	 * SET_STATE from HOLD to ACTIVE that first takes from `conn` what the dump
	 * of the kernel socket gave: sequence numbers, windows, scales, timestamps,
	 * MSS, TOS, TTL, hop and flags. Addresses, ring, what ingress saw and the
	 * counters stay. TS.Recent is taken only if ingress never saw a TSval.
	 * RCV.HIGH becomes the end of what was held, as far as the library's buffer
	 * can hold it: the kernel may have promised more than the dump tells, and
	 * what the library takes of it, it must be able to acknowledge.
	 */
	ETRAN_CTL_ACTIVATE = 4,
	/*
	 * Frames go to the ring `arg` from now on (see etran_conn.ring). Those that
	 * went to another before are there.
	 */
	ETRAN_CTL_SET_RING = 5,
};

/*
 * Request and answer of the control program: data_in and data_out. The answer
 * is a snapshot taken under the lock, after the change.
 */
struct etran_ctl {
	__u32 op;
	__u32 index; /* connection record */
	__u32 generation;
	__u32 from; /* enum etran_flow_state */
	__u32 to;
	__u32 arg;
	__s32 error; /* 0, -ESTALE (generation), -EBUSY (state), -EINVAL */
	__u32 pad;
	struct etran_conn conn;
};

#endif
