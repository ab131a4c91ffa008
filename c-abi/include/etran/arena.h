/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The arena: memory shared by one application and the daemon (a sealed memfd).
 *
 * It holds all that a demotion needs, so that the daemon can do one without
 * the program's help: the switch words, unread data, data not acknowledged or
 * not yet sent, and the held frames. It contains no pointers. The daemon trusts
 * none of it: it copies, then checks.
 *
 *   0                     struct etran_arena (one page)
 *   stash_offset          struct etran_stash [ETRAN_STASH_SIZE]
 *   conns_offset          struct etran_aconn [ETRAN_APP_SLOTS]
 *   buffers_offset        per slot: snd_size octets, then rcv_size octets
 *
 * A buffer is a ring: sequence number s lies at (s - base) modulo size, where
 * base is the sequence number that stands at offset 0. When a buffer is empty
 * its base is moved to the next sequence number, so that short messages always
 * use the same, cached octets.
 */
#ifndef ETRAN_ARENA_H
#define ETRAN_ARENA_H

#include <linux/types.h>

#include "limits.h"

/*
 * Phase of a slot's switch, a futex word in etran_aconn. Every change is a
 * store-release followed by FUTEX_WAKE (shared) by whoever is named.
 *
 *   FREE ─(L)→ OBSERVE_REQ ─(D)→ OBSERVING ─(L)→ SWITCH_REQ ─(D)→ FAST
 *                  │(D)             │(L)             │(D)          │(L)
 *               REFUSED          CANCEL_REQ       ABORTED      DEMOTE_REQ
 *                  │(L)             │(D)             │(L)          │(D)
 *                 FREE             FREE         REINJECT_REQ    FROZEN
 *                                                    │(D)          │(L)
 *                                                   FREE        DRAINED
 *                                                                  │(D)
 *                            FREE ←(D)─ REINJECT_REQ ←(L)─ DEMOTED │ DEMOTE_FAILED
 *
 * FROZEN: the flow is in HOLD, XDP accepts nothing more. The library takes all
 * that the rings hold up to the proof (consumed = delivered) and says DRAINED;
 * then the arena has every octet that was ever accepted. The daemon does not wait
 * for that if it sees that the rings hold no data of the connection.
 * L = the library (or the daemon in its place once it is dead), D = the daemon.
 * ABORTED and DEMOTED mean: the kernel has the connection again and the flow
 * entry is gone. The library then drains its ring to the proof, so that all
 * held frames of the slot are in the stash, and asks for their re-injection.
 * DEMOTE_FAILED: the kernel socket could not be restored (it is closed: reads
 * give ECONNRESET as after a reset).
 *
 * A program that is dead, stopped or does not answer need not take part: the
 * daemon goes from FAST, DEMOTE_REQ or FROZEN to DEMOTED alone, having seized
 * the connection's lock (ETRAN_LOCK_SEIZED).
 */
enum etran_phase {
	ETRAN_PHASE_FREE = 0,
	ETRAN_PHASE_OBSERVE_REQ = 1,
	ETRAN_PHASE_OBSERVING = 2,
	ETRAN_PHASE_REFUSED = 3,
	ETRAN_PHASE_CANCEL_REQ = 4,
	ETRAN_PHASE_SWITCH_REQ = 5,
	ETRAN_PHASE_FAST = 6,
	ETRAN_PHASE_ABORTED = 7,
	ETRAN_PHASE_DEMOTE_REQ = 8,
	ETRAN_PHASE_DEMOTED = 9,
	ETRAN_PHASE_DEMOTE_FAILED = 10,
	ETRAN_PHASE_REINJECT_REQ = 11,
	ETRAN_PHASE_FROZEN = 12,
	ETRAN_PHASE_DRAINED = 13,
};

/*
 * In etran_aconn.owner: the daemon has the connection's lock, taken from
 * whoever had it, and gives the connection back to the kernel.
 *
 *   D: flow in HOLD, phase FROZEN
 *   D: displaced = the tid in `owner`, owner: that tid → SEIZED, in one step
 *   D: copies rings, words and buffers until nothing changed meanwhile
 *   D: taken_read, taken_end = `read` and `end` in its copy
 *   D: socket restored; phase DEMOTED; owner = 0
 *
 * The library gives the lock back by compare-and-swap, tid → 0. If that
 * succeeds, it came before the seizure in the order of the changes of `owner`,
 * and all that the thread wrote under the lock is in the daemon's copy. If it
 * fails, the lock was seized: the thread waits for the end of the switch and
 * compares. Octets that it appended count if taken_end covers them: the kernel
 * sends them. Octets that it copied out count if taken_read covers them;
 * otherwise they are in the kernel's receive queue. For what does not count the
 * call is done again on the kernel's socket. Both words are published after the
 * octets that they speak of, so that the daemon's copy has what it says it has.
 *
 * The slot is not used again while the displaced thread may still write to it:
 * that thread sets `displaced` to 0 when it is done, and then, or if it was 0
 * before, the library asks for REINJECT.
 */
#define ETRAN_LOCK_SEIZED 0x80000000u

/* A received range beyond a hole: [start, end). */
struct etran_range {
	__u32 start;
	__u32 end;
};

/*
 * Receive buffer of a connection. Written by whoever holds the receive
 * context's lock, except `read` (the reader, under the connection's lock).
 * Unread data: [read, nxt). Window offered: base of `read` + rcv_size.
 */
struct etran_rcvbuf {
	__u32 base; /* sequence at offset 0; moved only when empty, both locks held */
	__u32 read; /* next octet for the program */
	__u32 nxt;  /* next octet expected from the network: RCV.NXT */
	__u32 ranges;
	struct etran_range range[ETRAN_OOO_RANGES]; /* sorted, disjoint, beyond nxt */
};

/*
 * Send buffer: [una, end) is kept, una = SND.UNA as last read from the
 * published words. Written under the connection's lock.
 */
struct etran_sndbuf {
	__u32 base;
	__u32 una;
	__u32 nxt; /* next octet to send: SND.NXT as the library knows it */
	__u32 end; /* one beyond the last octet the program gave */
};

/* A frame of the UMEM set aside for re-injection; addr 0 = entry unused. */
struct etran_stash {
	__u64 addr; /* UMEM address of the Ethernet header */
	__u32 length;
	__u16 slot;
	__u16 state; /* 0 unused, 1 held */
	__u32 generation;
	__u32 order; /* arrival order, for re-injection */
};

/* Shared state of one connection. */
struct etran_aconn {
	__u32 phase;      /* enum etran_phase, futex */
	__u32 generation; /* D: of the slot, valid from OBSERVING on */
	__u32 reason;     /* D: enum etran_path_reason of a refusal or demotion */
	__u32 owner;      /* lock: tid of the holder, 0 free, or ETRAN_LOCK_SEIZED */
	__u32 waiters;
	/* D at FAST: */
	__u32 mss;        /* payload octets per segment */
	__u32 rcv_window; /* octets the library may offer at most */
	__u32 keepalive;  /* SO_KEEPALIVE as the program set it */
	__u32 user_timeout; /* TCP_USER_TIMEOUT, ms, as the program set it */
	__u32 ring;       /* context's first ring */
	/* L, for tools only: what went through the kernel. */
	__u32 kernel_reason; /* enum etran_path_reason: why still on the kernel */
	__u32 displaced;     /* tid that the lock was seized from, 0 none; D, then L */
	__u64 kernel_bytes_in;
	__u64 kernel_bytes_out;
	struct etran_sndbuf snd;
	struct etran_rcvbuf rcv;
	/* D, of a connection that was seized: what it found. */
	__u32 taken_read; /* rcv.read */
	__u32 taken_end;  /* snd.end */
};

struct etran_arena {
	__u32 magic;   /* ETRAN_ABI_MAGIC */
	__u32 version; /* ETRAN_ABI_VERSION */
	__u64 size;
	__u64 stash_offset;
	__u64 conns_offset;
	__u64 conn_stride;
	__u64 buffers_offset;
	__u64 buffer_stride; /* snd_size + rcv_size */
	__u32 snd_size;
	__u32 rcv_size;
	__u32 slots;
	__u32 stash_size;
	/* L: totals over all TCP sockets of the process, for tools only. */
	__u64 kernel_bytes_in;
	__u64 kernel_bytes_out;
	__u64 kernel_calls;
	__u64 sockets; /* TCP sockets open now */
	__u32 stash_order;
	__u32 pad;
};

#endif
