/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A TCP socket that may be promoted: one per open file description.
 *
 *            ┌────────── refused, aborted ─────────┐
 *            ▼                                     │
 *   ──► KERNEL ──(quiet, nobody inside)──► SWITCHING ──► FAST ──► DEMOTING
 *            ▲                                                       │
 *            └───────────────────────────────────────────────────────┘
 *   In a forked child: SWITCHING, FAST, DEMOTING become FOREIGN (the parent
 *   has the connection), and KERNEL for ever at the first use. One that was
 *   KERNEL may be promoted by the child once nobody else has it: the daemon
 *   looks, for only the kernel knows.
 *
 * Every call on the socket is counted (ET_INSIDE) from before it looks at the
 * mode until it is done with the descriptor; a switch begins by setting
 * SWITCHING and gives up if somebody is inside. So no kernel call of this
 * process is in flight during a switch, and none sleeps: threads wait outside,
 * in ppoll() together with their waiter (see sleep.h).
 *
 * Locks: sock → epoll; sock → transport's. et_ready() takes none.
 */
#ifndef ET_SOCK_H
#define ET_SOCK_H

#include "fdtable.h"
#include "lock.h"
#include "sleep.h"
#include "transport.h"

#define ET_SOCK_REGS 2

enum et_mode {
	ET_MODE_KERNEL = 0,
	ET_MODE_SWITCHING,
	ET_MODE_FAST,
	ET_MODE_DEMOTING,
	ET_MODE_FOREIGN,
};

struct et_reg;

struct et_sock {
	struct et_file file; /* first */
	_Atomic uint32_t mode;
	_Atomic bool nonblock; /* O_NONBLOCK, as far as we were told */
	_Atomic bool never;    /* stays on the kernel until it is closed */
	_Atomic bool starved;  /* a call got EAGAIN because of the switch */
	_Atomic bool asked_room; /* et_conn_want_room() since the last et_ready() */
	bool closing;          /* lock */
	bool broken;           /* a demotion failed: as after a reset */
	bool observed;         /* lock; the daemon has, or had, a copy of the file */
	bool inherited;        /* older than this process: others may have the file */
	_Atomic int error;     /* errno to be reported once, if broken */
	_Atomic uint32_t please; /* enum etran_path_reason: demote, somebody asked */

	struct et_lock lock; /* mode changes, conn, reg */
	/* Changed with lock and, from FAST, with nobody inside. */
	struct et_conn *_Atomic conn;
	struct et_reg *_Atomic reg[ET_SOCK_REGS];
	struct et_conn *late; /* lock; given up, but a thread inside still uses it */

	/* Policy: plain words, a lost update delays a promotion. */
	bool asked;            /* octets were sent since the last ones came */
	uint32_t exchanges;    /* answers received */
	uint32_t sends;        /* since the last answer */
	uint32_t next_try;     /* exchanges at which to try again */
	uint32_t back_off;     /* exchanges to wait after the next failure */
	uint64_t bytes;
	uint64_t next_bytes;
	uint64_t born;         /* fork epoch at creation, see process.h */
	uint32_t unflushed;    /* octets read since the last flush */

	/* SO_RCVTIMEO and SO_SNDTIMEO, ns; 0 none, ET_TIMEOUT_UNKNOWN: ask. */
	_Atomic int64_t timeout[2];
	struct et_spin spin[2];
};
#define ET_TIMEOUT_UNKNOWN (-1)

extern _Atomic uint32_t et_fast_count;  /* sockets in mode FAST */
extern _Atomic uint32_t et_moving_count; /* … in mode SWITCHING */

static inline enum et_mode et_sock_mode(struct et_sock *s)
{
	return (enum et_mode)atomic_load_explicit(&s->mode, memory_order_acquire);
}

/* The connection of a fast socket, for a thread that is inside. NULL: it is not
 * fast, or another thread is taking it back to the kernel at this very moment. */
static inline struct et_conn *et_sock_fast(struct et_sock *s)
{
	return et_sock_mode(s) == ET_MODE_FAST ? atomic_load(&s->conn) : NULL;
}

/* The socket behind fd, counted as inside; NULL: not ours, do the real call. */
static inline struct et_sock *et_sock_enter(int fd)
{
	if (et_likely(!et_fd_entry(fd)))
		return NULL;
	return et_fd_pin(fd, ET_FD_SOCK, ET_PIN | ET_INSIDE);
}

static inline void et_sock_leave(struct et_sock *s)
{
	et_file_put(&s->file, ET_FD_SOCK, ET_PIN | ET_INSIDE);
}

/* Step outside to sleep, keeping the object. */
static inline void et_sock_step_out(struct et_sock *s)
{
	atomic_fetch_sub(&s->file.users, ET_INSIDE);
}

static inline void et_sock_step_in(struct et_sock *s)
{
	atomic_fetch_add(&s->file.users, ET_INSIDE);
}

/* Could this socket ever leave the kernel path, as things are? */
static inline bool et_sock_movable(struct et_sock *s)
{
	return et_policy.promote && et_up() &&
	       !atomic_load_explicit(&s->never, memory_order_relaxed);
}

/* libc's standard streams use these numbers where nobody sees it. */
bool et_is_standard(int fd);

/* Make fd a candidate, unless it is a standard stream's. */
void et_sock_create(int fd, bool nonblock);
/* fd is about to be closed or replaced: forget it, give the connection back. */
void et_sock_close(int fd, enum et_kind kind);
/* Take the numbers of this file out of the table: it is a plain socket now. */
void et_sock_forget(struct et_sock *s);
void et_sock_free(struct et_sock *s);
/* Forget its registrations in epoll sets; the kernel has them all. */
void et_sock_drop_regs(struct et_sock *s);

/*
 * After a call in mode KERNEL that moved octets, instead of et_sock_leave. The
 * best moment for a switch is when this thread has just emptied the kernel's
 * queue; `quiet`: that is certain.
 */
void et_sock_received(struct et_sock *s, size_t n, bool quiet);
void et_sock_sent(struct et_sock *s, size_t n);
void et_sock_leave_quiet(struct et_sock *s, bool quiet);

/*
 * For callers inside that found a mode other than KERNEL and FAST: wait until
 * that is over, at most timeout_us while a switch is on its way to FAST.
 * 0: look again. -EAGAIN: not yet.
 */
int et_sock_settle(struct et_sock *s, int fd, uint32_t timeout_us);
/* The same until the mode is KERNEL or FAST; returns the connection if FAST. */
struct et_conn *et_sock_steady(struct et_sock *s, int fd);
/* If something has come that only the kernel can tell of, an end of the stream or
 * a reset, the kernel has it on return; for callers inside. */
void et_sock_catch_up(struct et_sock *s, int fd);
/*
 * Back to the kernel, for callers inside; returns when that is done. 0, or
 * -EAGAIN: this very thread is in the middle of a switch (signal handler).
 */
int et_sock_demote(struct et_sock *s, enum etran_path_reason why);
/* The same with the lock held (and not inside). */
int et_sock_demote_locked(struct et_sock *s, enum etran_path_reason why);
/* Whatever it is doing, be in mode KERNEL on return, if that can be had. */
void et_sock_to_kernel(struct et_sock *s, int fd, enum etran_path_reason why);
/* … and stay there. */
void et_sock_pin_down(struct et_sock *s, int fd, enum etran_path_reason why);

/* In mode FAST: the reason to demote, or ETRAN_PATH_OK. */
static inline enum etran_path_reason et_sock_wants_demote(struct et_sock *s, struct et_conn *c)
{
	uint32_t please = atomic_load_explicit(&s->please, memory_order_relaxed);

	return please ? (enum etran_path_reason)please : et_conn_wants_demote(c);
}

/* Once per notification: it costs a segment. */
void et_sock_ask_room(struct et_sock *s, struct et_conn *c);

/* Complete the switches that the daemon has decided. */
void et_moving_run(void);
static inline void et_moving_poll(void)
{
	if (et_unlikely(atomic_load_explicit(&et_moving_count, memory_order_relaxed)))
		et_moving_run();
}

/* POLLIN, POLLOUT of those asked for, for a caller inside in mode FAST. */
short et_sock_ready(struct et_sock *s, struct et_conn *c, short events);

/* The next socket in use from number *i on, not pinned; NULL: none is left. */
struct et_sock *et_sock_next(uint32_t *i);
/* In the child, after fork. */
void et_sock_after_fork(void);

#endif
