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
 * Connect to <run_dir>/control.sock and register. Returns the socket or a
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

/*
 * One turn of the assist: acknowledges, retransmits, probes and starts
 * demotions for a program that does not call in. Returns the milliseconds
 * until it wants to be called again, or -1: only when et_assist_wait returns.
 */
int et_assist_tick(void);
/*
 * Sleep until there is something to assist (a segment arrived and no thread
 * took it, or data is in flight), or timeout_ms.
 */
void et_assist_wait(int timeout_ms);

#endif
