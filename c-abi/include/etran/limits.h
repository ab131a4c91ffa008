/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sizes that the eBPF programs, the daemon and the shim must agree on.
 *
 * ETRAN_ABI_VERSION changes with every change of a structure or message in
 * this directory; a mapping or message of another version is refused.
 */
#ifndef ETRAN_LIMITS_H
#define ETRAN_LIMITS_H

#define ETRAN_ABI_MAGIC 0x6e725445u /* "ETrn" */
#define ETRAN_ABI_VERSION 3u

/* Applications (registered processes) on one daemon. */
#define ETRAN_MAX_APPS 64u
/*
 * Slots of one application. A slot names a connection within its application;
 * the connection record's index is app * ETRAN_APP_SLOTS + slot. The first
 * ETRAN_MAX_RINGS slots carry no connection: in the published map the rings
 * have their words there.
 */
#define ETRAN_APP_SLOTS 1024u
#define ETRAN_MAX_CONNS (ETRAN_MAX_APPS * ETRAN_APP_SLOTS)

/* Receive contexts of an application, RX queues of a device. */
#define ETRAN_MAX_CONTEXTS 4u
#define ETRAN_MAX_QUEUES 8u
/*
 * Rings of an application. Direct ones lie on the queues of a device: context *
 * ETRAN_MAX_QUEUES + queue. The shared one lies at the far end of the
 * application's own veth pair.
 */
#define ETRAN_SHARED_RING (ETRAN_MAX_CONTEXTS * ETRAN_MAX_QUEUES)
#define ETRAN_MAX_RINGS (ETRAN_SHARED_RING + 1u)
/*
 * Frames on their way through a veth pair. Its ring has 256 places (VETH_RING_SIZE)
 * and drops beyond them without a word; a processor that has looked
 * but not yet counted may exceed this number by one.
 */
#define ETRAN_PAIR_FRAMES 240u
#define ETRAN_FIRST_SLOT ETRAN_MAX_RINGS
/* Index of a ring in the XSKMAP: app * ETRAN_MAX_RINGS + ring. */
#define ETRAN_MAX_XSKS (ETRAN_MAX_APPS * ETRAN_MAX_RINGS)

#define ETRAN_MAX_DEVICES 16u /* attached network devices */
#define ETRAN_MAX_HOPS 256u   /* next hops */
#define ETRAN_MAX_TAPS 1024u

/* UMEM: one frame holds one packet; the kernel keeps 256 octets headroom. */
#define ETRAN_FRAME_SIZE 2048u
#define ETRAN_FRAME_HEADROOM 256u
/* RX descriptors of one ring; also the descriptor credit (DESIGN: receive). */
#define ETRAN_RING_SIZE 2048u
/* Frames kept aside while a flow is in HOLD, per application. */
#define ETRAN_STASH_SIZE 512u

/* Buffers of one connection in the arena, octets, powers of two. */
#define ETRAN_SND_BUF (256u * 1024u)
#define ETRAN_RCV_BUF (256u * 1024u)
/* Octets in flight per connection until congestion control exists. */
#define ETRAN_FIXED_WINDOW (64u * 1024u)
/* Out-of-order ranges remembered per connection. */
#define ETRAN_OOO_RANGES 16u

/* Room that the library leaves in front of the payload in a tap frame:
 * Ethernet 14 + IPv4 20 + TCP 20 + options 12. */
#define ETRAN_HEADER_ROOM 66u
/* TCP options always sent: timestamps, or twelve NOPs. */
#define ETRAN_TCP_OPTIONS 12u

#endif
