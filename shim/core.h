/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The transport's own state, private to shim's transport files.
 *
 * Everything is static and there is one application per process. The session
 * (Go's thread) fills it and then publishes `up` and `rings_up`; nothing is
 * ever unmapped while other threads may look.
 */
#ifndef ET_CORE_H
#define ET_CORE_H

#include <stdatomic.h>

#include "csum.h"
#include "lock.h"
#include "rcvbuf.h"
#include "seq.h"
#include "sndbuf.h"
#include "transport.h"

/* One AF_XDP socket: its RX ring and the fill ring of its queue. */
struct et_queue {
	int fd;
	uint32_t ring; /* its number in the application */
	/* RX ring: the kernel produces, we consume. */
	uint32_t *rx_producer, *rx_consumer;
	const struct xdp_desc *rx_desc;
	/* Fill ring: we produce, the kernel consumes. */
	uint32_t *fill_producer;
	uint64_t *fill_addr;
	uint32_t filled;   /* = *fill_producer, once published */
	uint32_t taken;    /* = *rx_consumer; reported to egress as credit */
	uint32_t reported; /* last value of `taken` in a tap frame */
	uint32_t posted;   /* frames in either ring */
	uint32_t target;   /* how many there should be; a power of two */
	uint32_t peak;     /* longest backlog seen lately */
	uint32_t calm;     /* frames taken since `target` was looked at */
};

/* A device's queues, and the end of the application's veth pair. */
#define ET_QUEUES (ETRAN_MAX_QUEUES + 1u)

/*
 * A receive context: one RX ring per NIC queue (direct), or the one that ingress
 * reaches by a veth pair (shared), or both. One context per process today; a
 * connection names its context's first ring, so that more can exist.
 */
struct et_context {
	struct et_lock lock;
	unsigned queues; /* grows only, until a registration ends: see et_queues() */
	uint32_t ring_mask;
	uint32_t fill_mask;
	uint8_t *umem;
	struct et_queue queue[ET_QUEUES];
	/* Frames in no ring and not in the stash. */
	uint32_t spares;
	uint64_t spare[ET_QUEUES * ETRAN_RING_SIZE + ETRAN_STASH_SIZE];
};

/* The queues that can be used now; the session may add some at any time. */
static inline unsigned et_queues(const struct et_context *x)
{
	return __atomic_load_n(&x->queues, __ATOMIC_ACQUIRE);
}

/* Library's private words of a slot. */
struct et_conn {
	uint32_t slot;
	uint32_t generation; /* once committed */
	void *user;
	struct etran_aconn *shared;
	const struct etran_pub *pub;
	uint8_t *snd_ring;
	uint8_t *rcv_ring;

	bool committed;   /* conn lock: FAST and taken over */
	bool ack_now;     /* context lock: the peer must hear from us */
	bool want_room;   /* conn lock: program waits for room */
	uint32_t recent;  /* context lock: first octet of the last segment beyond a hole */
	uint32_t acked;   /* last acknowledgement sent */
	uint32_t edge;    /* right edge last offered */
	uint32_t losses;  /* pub->losses acted upon */
	_Atomic uint32_t want; /* enum etran_path_reason: demote because */
	_Atomic bool leaving;  /* released; a displaced thread is still inside */
	_Atomic bool queued;   /* on the flush list */
	_Atomic bool active;   /* on the assist's list */

	/* Retransmission timer (RFC 6298), run by the assist. */
	uint32_t timer_una;
	unsigned timeouts; /* without progress */
	uint64_t timer_ns; /* when it began, 0 = off */
};

struct et_core {
	_Atomic bool up;
	_Atomic bool rings_up;
	_Atomic int control; /* control socket, -1 */
	/* Threads that may be using `control`, or that are between setting the
	 * phase of a request and sending it. */
	_Atomic uint32_t telling;
	/* By slot: a message (enum etran_msg_type) that found no daemon. */
	_Atomic uint8_t unsaid[ETRAN_APP_SLOTS];
	_Atomic uint64_t lost_ns; /* when the session was lost; 0: there is one */
	uint32_t app;        /* as registered */
	uint32_t generation; /* … 0 = never */
	int tap;     /* -1 */
	int wake;    /* eventfd the daemon writes */
	uint32_t slots; /* below this number; the daemon's quota */
	struct etran_arena *arena;
	struct etran_stash *stash;
	const struct etran_pub *pub;
	struct et_context context;
	struct et_conn conn[ETRAN_APP_SLOTS];

	/* Slots with acknowledgements or retransmissions to send. */
	struct et_lock flush_lock;
	_Atomic uint32_t flush_count;
	uint16_t flush[ETRAN_APP_SLOTS];
};
extern struct et_core et_core;

/* Why et_tx_segment did not send. */
enum et_tx { ET_TX_OK, ET_TX_WINDOW, ET_TX_STOPPED, ET_TX_ERROR };

/* tx.c ------------------------------------------------------------------- */
enum et_tx et_tx_data(struct et_conn *c, uint32_t seq, uint32_t n, uint32_t flags);
/* With selective acknowledgements if the caller holds the context lock. */
void et_tx_ack(struct et_conn *c, uint32_t flags);
/* Send what the windows allow; conn lock. */
void et_tx_push(struct et_conn *c);
/* Send the first unacknowledged segment again; conn lock. */
void et_tx_retransmit(struct et_conn *c);
/* The same, if XDP has counted a loss since the last time; conn lock. */
void et_tx_recover(struct et_conn *c);
/* Put the connection on the flush list. */
void et_tx_queue(struct et_conn *c);
void et_tx_credit(void);

/* context.c -------------------------------------------------------------- */
/*
 * Take the descriptors of all queues until consumed = delivered: the proof.
 * Waits for frames that the kernel has accepted and not yet published.
 */
void et_rx_drain(void);
/* Has the connection frames in the stash? */
bool et_rx_held(struct et_conn *c);
/* Frames posted per queue at first. */
#define ET_POSTED_MIN 256u
/* Give the kernel the frames put at its disposal, and spares until the queue
 * has its target. */
void et_post_frames(struct et_context *x, struct et_queue *q);
/* Frames that the stash no longer needs go back to the spares. */
void et_stash_reclaim(void);
/*
 * Take a connection over that has become fast: c->committed. All frames that were
 * held for it are taken from the rings and fed to its receive buffer; they were
 * delivered before the phase changed, but need not have been taken. True if one of
 * them acknowledged data of ours.
 */
bool et_rx_commit(struct et_conn *c);

/* conn.c ----------------------------------------------------------------- */
static inline uint32_t et_phase(const struct et_conn *c)
{
	return __atomic_load_n(&c->shared->phase, __ATOMIC_ACQUIRE);
}
void et_want(struct et_conn *c, enum etran_path_reason why);
/* The daemon has changed phases: mark the connections that it has given back. */
void et_conns_look(void);
/* The session is there again: send what found none. */
void et_conn_resay(void);
/*
 * There is no daemon to answer: switches whose flow it removed are over. `gone`:
 * none came in time, so the others are, too.
 */
void et_conn_fail_switches(bool gone);
/* The daemon knows nothing of us: no connection can be saved. */
void et_conn_fail_all(void);
static inline struct et_lock *et_conn_lock(struct et_conn *c)
{
	/* owner and waiters lie side by side in the arena. */
	return (struct et_lock *)&c->shared->owner;
}
/* The end of using a slot after its lock was seized. */
void et_conn_step_aside(struct et_conn *c);
static inline void et_conn_unlock(struct et_conn *c)
{
	if (!et_unlock_shared(et_conn_lock(c)))
		et_conn_step_aside(c);
}
_Static_assert(offsetof(struct etran_aconn, waiters) == offsetof(struct etran_aconn, owner) + 4 &&
		       sizeof(struct et_lock) == 8,
	       "the arena's lock words are a struct et_lock");

/* wait.c ----------------------------------------------------------------- */
void et_wait_after_fork(void);

/* assist.c --------------------------------------------------------------- */
/* There is something in flight: the assist must look after it. */
void et_assist_arm(struct et_conn *c);
/* The rings have come, or more of them: there may be something to do. */
void et_assist_start(void);
/* … or have gone: look again. */
void et_assist_kick(void);
int et_assist_tick(void);

#endif
