/* SPDX-License-Identifier: Apache-2.0 */
/*
 * epoll sets with promoted sockets in them.
 *
 * A registration of a candidate socket is remembered here and lies in the real
 * set (in_kernel) exactly as long as the socket is on the kernel path; a fast
 * one is only here. A fast socket that becomes ready is put on the set's inbox
 * by et_ready(), without locks; epoll_wait() moves the inbox to the ready list
 * and evaluates that, as the kernel does with its own.
 *
 * A registration's state says who has it:
 *
 *   IDLE ──kick──► QUEUED ──epoll_wait──► BUSY ──► IDLE, or QUEUED again
 *     │               ▲                    │ kick
 *     ▼ removed       └────────────────── AGAIN
 *   DEAD (free)
 *
 * Whoever has it frees it if it was removed meanwhile.
 */
#ifndef ET_EPOLL_H
#define ET_EPOLL_H

#include "fdtable.h"
#include "lock.h"
#include "sleep.h"

struct et_sock;
struct et_epoll;

enum et_reg_state { ET_REG_DEAD = 0, ET_REG_IDLE, ET_REG_QUEUED, ET_REG_BUSY, ET_REG_AGAIN };

struct et_reg {
	_Atomic uint32_t state; /* enum et_reg_state */
	bool removed;           /* epoll lock */
	bool in_kernel;         /* sock lock */
	bool live;              /* counted in epoll->live; sock lock */
	int fd;
	struct et_sock *s;
	struct et_epoll *ep;
	uint32_t events; /* epoll lock */
	uint64_t data;
	struct et_reg *next;             /* inbox or ready list */
	struct et_reg *peer, **peer_ref; /* registrations of the set; epoll lock */
};

struct et_epoll {
	struct et_file file; /* first */
	struct et_lock lock;
	struct et_reg *_Atomic inbox;
	struct et_reg *ready, **ready_end; /* lock */
	_Atomic uint32_t ready_count;      /* lock; read without */
	struct et_reg *regs;               /* lock */
	_Atomic uint32_t fast; /* registrations of fast sockets */
	_Atomic uint32_t live; /* … of sockets that are or may become fast */
	_Atomic uint32_t socks; /* all registrations */
	_Atomic uint32_t blind; /* threads that sleep in the real call: none for them */
	_Atomic bool nested; /* somebody polls the set itself: no fast sockets */
	bool foreign; /* child: has registrations of the parent's connections */
	/* Fairness; whoever waits last has its way. */
	uint32_t turns;
	bool kernel_last;   /* the last events were the real set's */
	uint64_t kernel_ns; /* when it was looked at last */
	uint32_t kernel_gap; /* ns until the next look */
	struct et_spin spin;
};

void et_epoll_close(int fd);
void et_epoll_free(struct et_epoll *ep);
/* Up to max events of fast sockets; returns how many. */
int et_epoll_collect(struct et_epoll *ep, struct epoll_event *events, int max);
/* All its fast sockets go back to the kernel. */
void et_epoll_demote_all(struct et_epoll *ep, enum etran_path_reason why);
/* The set is polled by something that knows nothing of fast sockets. */
void et_epoll_isolate(int epfd);
void et_epoll_after_fork(void);

/* For sock.c, with the socket's lock held. */
void et_reg_to_user(struct et_reg *r);   /* socket became fast */
void et_reg_to_kernel(struct et_reg *r); /* … left the fast path */
/* Make the kernel report again what calls may have missed (EPOLLET). */
void et_reg_rearm(struct et_reg *r);
bool et_reg_promotable(const struct et_reg *r);
/* The socket will never be fast (again). */
void et_reg_settle(struct et_reg *r);
void et_reg_remove(struct et_reg *r, bool from_kernel);
/* Look at it in the next epoll_wait(). Takes no lock. */
void et_reg_kick(struct et_reg *r);

#endif
