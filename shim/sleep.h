/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waiting: spin as long as that has been paying off, then sleep for real.
 */
#ifndef ET_SLEEP_H
#define ET_SLEEP_H

#include "intercept.h"

#include <stdbool.h>
#include <stdint.h>

#include "transport.h"

struct et_file;
struct et_restart;
struct et_sock;

#define ET_NO_DEADLINE UINT64_MAX
/* Waiter, signals, descriptors of the transport, one or two of the kernel. */
#define ET_SLEEP_FDS 16

/* What is expected of the next wait at one place. */
struct et_spin {
	uint32_t expect_ns; /* moving average of recent gaps, clamped */
};

/* How long to spin now, in ns; 0: not at all. */
uint64_t et_spin_budget(const struct et_spin *p);
/* A wait of gap_ns is over. `spun`: the budget was used up. */
void et_spin_learn(struct et_spin *p, uint64_t gap_ns, bool spun);

/* Kernel-path calls spin only in the measurement variant without promotion. */
static inline bool et_spin_kernel(void)
{
	return !et_policy.promote && et_policy.spin_us;
}

/* The point in time `timeout_ns` from now; below zero: never. */
uint64_t et_deadline(uint64_t now, int64_t timeout_ns);

/*
 * ppoll() until the deadline, as a cancellation point: a thread cancelled in
 * here leaves the waiters' list, ends `restart`, and unpins `f` (both may be NULL). Returns ready
 * descriptors, 0, or a negative errno.
 */
int et_sleep(struct et_waiter *w, struct pollfd *fds, nfds_t count, uint64_t now, uint64_t deadline,
	     const sigset_t *mask, struct et_file *f, int kind, const struct et_restart *restart);

/* A thread that waits for one socket. */
struct et_wait {
	struct et_sock *s;
	int fd;
	short events;
	bool spun;
	bool moved; /* the call has something to return: a signal ends it */
	struct et_spin *spin;
	uint64_t start, spin_end, deadline;
};
#define ET_WAIT_IN_CALL 1
void et_wait_init(struct et_wait *w, struct et_sock *s, int fd, short events);
/*
 * Wait a little, for a caller inside that got EAGAIN. 0: try again. -EAGAIN:
 * timeout, or the socket is non-blocking. -EINTR. ET_WAIT_IN_CALL: sleep in the
 * system call itself.
 */
int et_wait_turn(struct et_wait *w);
void et_wait_done(struct et_wait *w);

#endif
