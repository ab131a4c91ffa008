/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the Go side of the library calls in C, always on its own threads.
 */
#ifndef ET_SESSION_H
#define ET_SESSION_H

#include <stdbool.h>
#include <stdint.h>

/* Go's runtime is up: lets et_go_start() return. */
void et_go_ready(void);

/*
 * Connect to <run_dir>/control.sock and register; after a session was lost, take
 * it up again: another daemon may have adopted our connections. One that has not
 * makes them end as by a reset, and then registers us anew. Returns the socket or a
 * negative errno; -EACCES and -EPERM: refused for good, do not try again.
 * Blocks for 2 s at most.
 */
int et_session_open(const char *run_dir);
/*
 * Wait for the next message of the daemon (or for et_session_kick) for at most
 * timeout_ms (-1: no limit) and act on it. 0: go on. Negative errno: the
 * session is lost; call et_session_close and, after a while, open again.
 */
int et_session_step(int fd, int timeout_ms);
/* The session is lost: connections on the fast path stay there. */
void et_session_close(int fd);
/* No session for so long that a switch under way will not end any more. */
void et_session_missed(void);

/*
 * The assist: acknowledges, retransmits, probes and starts demotions for a
 * program that does not call in. Never returns: a thread that comes back into
 * Go every few milliseconds keeps the whole runtime awake.
 */
void et_assist_run(void) __attribute__((noreturn));

#endif
