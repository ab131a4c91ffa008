/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages between a program and the daemon, over a SOCK_SEQPACKET unix
 * socket <run-dir>/control.sock: one message per packet, fixed size per type,
 * descriptors by SCM_RIGHTS. The results of switches do not travel here: they
 * are phase changes in the arena, so that any thread can see and await them.
 */
#ifndef ETRAN_CONTROL_H
#define ETRAN_CONTROL_H

#include <linux/types.h>

#include "limits.h"

enum etran_msg_type {
	/* L→D, first message: struct etran_msg_register */
	ETRAN_MSG_REGISTER = 1,
	/* D→L: struct etran_msg_registered, fds: arena, published map, wake eventfd */
	ETRAN_MSG_REGISTERED = 2,
	/* D→L: struct etran_msg_refused; the daemon closes */
	ETRAN_MSG_REFUSED = 3,

	/* L→D about a slot: struct etran_msg_slot */
	ETRAN_MSG_OBSERVE = 10, /* fd: the socket */
	ETRAN_MSG_SWITCH = 11,
	ETRAN_MSG_DEMOTE = 12,
	ETRAN_MSG_CANCEL = 13,
	ETRAN_MSG_REINJECT = 14,
	/* L→D from a process that is not the owner: fd is the socket. The daemon
	 * asks the owner to demote and answers DONE (error 0 or an errno). */
	ETRAN_MSG_DEMOTE_FOREIGN = 15,

	/* L→D: another tap for another sending thread */
	ETRAN_MSG_TAP = 20,
	/* L→D, answer to RINGS: frames can come, struct etran_msg_slot (slot 0) */
	ETRAN_MSG_RINGS_READY = 21,

	/*
	 * D→L: struct etran_msg_rings, fds: UMEM, tap, XSK of each queue. Later
	 * perhaps once more, with frames 0: further queues over the same UMEM, fds:
	 * XSK of each queue.
	 */
	ETRAN_MSG_RINGS = 30,
	/* D→L: fd: tap; struct etran_msg_done */
	ETRAN_MSG_TAP_READY = 31,
	/* D→L, an operator, device or timer asks: struct etran_msg_slot */
	ETRAN_MSG_PLEASE_DEMOTE = 32, /* slot 0 = all */
	ETRAN_MSG_PLEASE_PROMOTE = 33, /* slot 0 = all that can be */
	ETRAN_MSG_DONE = 34, /* struct etran_msg_done */
};

struct etran_msg_header {
	__u32 magic;
	__u16 version;
	__u16 type; /* enum etran_msg_type */
};

#define ETRAN_COMM_LEN 16u

/*
 * etran_msg_register.flags. RESUME: the process was registered as `app` and
 * `generation` with a daemon that is gone, and has its arena, wake eventfd and
 * published map. REGISTERED then comes without descriptors and names the same
 * application; REFUSED means that this daemon knows nothing of it.
 */
#define ETRAN_REGISTER_RESUME 0x1u
#define ETRAN_REGISTER_RINGS 0x2u /* … and its rings */

struct etran_msg_register {
	struct etran_msg_header h;
	__u32 flags;
	__u32 app;        /* RESUME */
	__u32 generation; /* RESUME: of the application */
	__u32 pad;
	char comm[ETRAN_COMM_LEN];
};

struct etran_msg_registered {
	struct etran_msg_header h;
	__u32 app;
	__u32 generation;
	__u32 slots;
	/* Policy, where the program's ETRAN_* environment says nothing. */
	__u32 promote_after; /* exchanges before a connection is a candidate */
	__u32 promote_bytes; /* or octets, whichever is first */
	__u32 spin_us;       /* default bound of spinning, microseconds */
	__u64 arena_size;
	__u64 pub_size;
};

struct etran_msg_refused {
	struct etran_msg_header h;
	__u32 reason; /* enum etran_path_reason */
	__u32 pad;
};

struct etran_msg_slot {
	struct etran_msg_header h;
	__u32 slot;
	__u32 generation; /* 0 in OBSERVE */
	/* enum etran_path_reason; OBSERVE: POLICY if the program wants none of it, FORK
	 * if the socket is older than the process, so that others may have it, else OK */
	__u32 reason;
	__u32 number;     /* OBSERVE: the socket's descriptor in the program */
};

struct etran_msg_rings {
	struct etran_msg_header h;
	__u32 context;
	__u32 queues;     /* XSK descriptors that follow; ring of queue q = first_ring + q */
	__u32 first_ring; /* of the device's queues, or ETRAN_SHARED_RING */
	__u32 ring_size;  /* RX descriptors per ring */
	__u32 fill_size;  /* entries of each fill ring */
	__u32 frames;     /* UMEM frames; the library owns them all at first */
	__u32 frame_size;
	__u32 mtu;
};

struct etran_msg_done {
	struct etran_msg_header h;
	__s32 error; /* 0 or a positive errno */
	__u32 pad;
};

#endif
