/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signals that interrupt a blocking call. recv() is restarted after a handler
 * with SA_RESTART and returns EINTR after any other; ppoll(), which we sleep in,
 * is never restarted and does not tell which signal it was.
 *
 * The program's handlers are watched, never changed. As long as they all have
 * SA_RESTART, or none has, nothing needs to be known. If there are both kinds, a
 * sleeper keeps those that restart blocked while it sleeps, and a signalfd says
 * when one of them is there; it is delivered when ppoll() returns. So whatever
 * interrupts ppoll() is of the other kind.
 */
#ifndef ET_SIGNALS_H
#define ET_SIGNALS_H

#include <signal.h>
#include <stdbool.h>

struct et_restart {
	int fd;        /* signalfd to poll for POLLIN; -1: none is needed */
	sigset_t mask; /* for ppoll() */
};

/* True: there are both kinds, and `r` is filled in. */
bool et_restart_begin(struct et_restart *r);
void et_restart_end(const struct et_restart *r);

/* After an interruption: do all handlers that can have run restart? */
bool et_signals_restart(void);

/* The action of `sig` has been changed by a system call. */
void et_signals_learn(int sig);

#endif
