/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The transport: what the socket calls (shim surface) see of the fast path.
 *
 * Lock order: connection lock → context lock → (surface) epoll lock. The
 * receive side never takes a connection lock. No function here allocates,
 * blocks for longer than said, changes errno, or calls an interposed name.
 * Results are >= 0 or a negative errno; ET_KERNEL means "not mine: the kernel
 * has this connection, do the system call".
 */
#ifndef ET_TRANSPORT_H
#define ET_TRANSPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <etran/abi.h>

/* Not an errno: the connection is on the kernel path. */
#define ET_KERNEL (-100000)

struct et_conn; /* one slot of the arena and the library's private words for it */

/* ---- process-wide ------------------------------------------------------ */

/* True once the process is registered and the arena is mapped. Lock-free. */
bool et_up(void);
/* True once the receive rings and a tap are there (after the first OBSERVE). */
bool et_rings_up(void);

/* Policy from the daemon, lowered by ETRAN_* of the environment. */
struct et_policy {
	bool promote;           /* ETRAN_PROMOTE=off → false */
	uint32_t promote_after; /* exchanges */
	uint32_t promote_bytes;
	uint32_t spin_us; /* 0 = never spin */
};
extern struct et_policy et_policy;

/* Socket accounting for `etran stats`: octets that went through the kernel. */
void et_count_kernel(struct et_conn *c, size_t in, size_t out);

/* ---- life of a connection --------------------------------------------- */

/*
 * Start observing the connected TCP socket `fd`: take a slot and ask the
 * daemon. `user` is passed to et_ready(). `why`: OK; POLICY: the connection shall
 * stay on the kernel, and the daemon is only told, for its lists; FORK: it was
 * inherited, and is refused while another process has it, or this one has a second
 * descriptor. NULL when there is no slot, no session, or the message could not be
 * sent without blocking.
 */
struct et_conn *et_conn_open(int fd, void *user, enum etran_path_reason why);

enum et_progress {
	ET_WAIT,     /* nothing to do now; ask again later */
	ET_CAN_SWITCH, /* XDP sees the flow: call et_conn_switch at a quiet moment */
	ET_FAST,     /* on the fast path (after et_conn_commit) */
	ET_COMMIT,   /* the daemon has switched: call et_conn_commit */
	ET_GONE,     /* refused or aborted: call et_conn_release, stay on the kernel */
};
/* Where the connection is. A few loads; no lock. */
enum et_progress et_conn_progress(struct et_conn *c);
/* When ET_GONE: the kernel does not have it either, it is as after a reset. */
bool et_conn_lost(const struct et_conn *c);
/* Why, when ET_GONE. */
enum etran_path_reason et_conn_reason(struct et_conn *c);

/*
 * Ask for the switch. The caller guarantees that no kernel call is in flight
 * on the file and that none starts before ET_COMMIT or ET_GONE.
 */
int et_conn_switch(struct et_conn *c);
/*
 * Wait until the switch is decided: spins, then futex-waits, at most
 * `timeout_us` (UINT32_MAX: until decided). Returns the progress.
 */
enum et_progress et_conn_await(struct et_conn *c, uint32_t timeout_us);
/*
 * Take over after ET_COMMIT: frames caught in HOLD go into the receive buffer,
 * behind what the kernel's queue had (the daemon has put that there).
 */
void et_conn_commit(struct et_conn *c);

/*
 * Give the connection back to the kernel, waiting until that is done. On
 * return (0) every octet received and not read is in the kernel's receive
 * queue, everything given to send is in its send queue. ECONNRESET if the
 * socket could not be restored. Call et_conn_release afterwards. Safe to call
 * by several threads: one does it, the others wait. 0 at once if the daemon has
 * done it by itself.
 */
int et_conn_demote(struct et_conn *c, enum etran_path_reason why);
/* Forget the slot (not FAST); held frames are re-injected first. */
void et_conn_release(struct et_conn *c);
/* After that: wait, not long, until the daemon has closed its copy of the socket. */
void et_conn_await_gone(struct et_conn *c);

/*
 * Something demands a demotion (FIN, RST, device error, operator, time-outs):
 * its reason, or ETRAN_PATH_OK. A few loads.
 */
enum etran_path_reason et_conn_wants_demote(struct et_conn *c);

/* ---- data -------------------------------------------------------------- */

/*
 * Copy unread octets to iov; `peek` leaves them unread. Returns octets, -EAGAIN
 * when there are none, ET_KERNEL. Does not poll the rings: see et_rx_poll.
 */
ssize_t et_conn_recv(struct et_conn *c, const struct iovec *iov, int iovcnt, bool peek);
/* Same, but throws up to n octets away (MSG_TRUNC). */
ssize_t et_conn_discard(struct et_conn *c, size_t n);
/*
 * Take octets into the send buffer and send what the windows allow. Returns
 * octets taken (may be fewer), -EAGAIN when the buffer is full, ET_KERNEL.
 */
ssize_t et_conn_send(struct et_conn *c, const struct iovec *iov, int iovcnt);
size_t et_conn_readable(const struct et_conn *c); /* octets unread */
size_t et_conn_writable(const struct et_conn *c); /* octets et_conn_send would take */
size_t et_conn_unsent(const struct et_conn *c);   /* SIOCOUTQ */
/* The program waits for room: deliver the next ACK that makes some. */
void et_conn_want_room(struct et_conn *c);

/* ---- receiving and waiting --------------------------------------------- */

/*
 * Take what the rings hold, for all connections, and call et_ready for each
 * that became readable, writable or wants to be demoted. Returns frames taken.
 * 0 at once when another thread is doing it.
 */
unsigned et_rx_poll(void);
/* Would et_rx_poll find something? A load or two per ring. */
bool et_rx_pending(void);
/*
 * Send what was put off: acknowledgements not piggybacked since, fast
 * retransmissions. Call before spinning on nothing or blocking, and now and
 * then when a program only reads.
 */
void et_flush(void);

/*
 * A thread about to sleep. Usage:
 *   et_wait_begin(&w); re-check everything; if still nothing: ppoll on
 *   w.fd, et_wait_fds() and the kernel fds; et_wait_end(&w).
 * Whoever makes a connection ready for another thread, and every switch that
 * ends, makes w.fd readable.
 */
struct et_waiter {
	int fd; /* eventfd of this thread */
	uint32_t turn;
	void *sleeper;
};
int et_wait_begin(struct et_waiter *w); /* 0, or -errno: do not sleep on the fast path */
void et_wait_end(struct et_waiter *w);
/* The AF_XDP sockets to poll for POLLIN; returns how many (<= max). */
int et_wait_fds(int *fds, int max);
/* Make the sleepers of other threads look again; nearly free if there are none. */
void et_wake_others(void);
/* Make every sleeper look again. */
void et_wake_all(void);

/* ---- implemented by the surface ----------------------------------------- */

/*
 * The connection opened with `user` became readable, writable, or wants to be
 * demoted. Called with the context lock held: only marks, never calls back.
 */
void et_ready(void *user);
/* An operator asks: try to promote (all) or demote (user, or all if NULL). */
void et_please(void *user, bool promote, enum etran_path_reason why);

/* No request is answered any more: let go of connections that are not fast. */
void et_let_go(void);

/* ---- processes ----------------------------------------------------------- */

/* After fork, in the child: forget everything, stay on the kernel for ever. */
void et_after_fork_child(void);
/*
 * In a process that is not the owner (forked child): have the daemon make the
 * owner demote the connection of socket `fd`. 0 or -errno. May take as long as
 * the owner needs; bounded by 2 s.
 */
int et_demote_foreign(int fd);

/* ---- asked for by the surface -------------------------------------------- */

/* SO_KEEPALIVE and TCP_USER_TIMEOUT (ms) of a connection on the fast path, as
 * the program set them: on the sleeping socket both are off. */
void et_conn_kept_options(const struct et_conn *c, uint32_t *keepalive, uint32_t *user_timeout);

#endif
