/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Client of the control protocol (<etran/control.h>) in C: needs no libc state
 * beyond memcpy, raises no SIGPIPE, touches no errno. Results: 0 or octets, or
 * a negative errno.
 */
#ifndef ETRAN_CLIENT_CONTROL_H
#define ETRAN_CLIENT_CONTROL_H

#include <stddef.h>

#include <etran/control.h>

#define ET_CONTROL_MAX_FDS 16

/* Connect to `run_dir`/control.sock; the descriptor is CLOEXEC. */
int et_control_connect(const char *run_dir);
/* Send one message without blocking, with a descriptor if fd >= 0. */
int et_control_send(int sock, const void *msg, size_t n, int fd);
/*
 * Receive one message, blocking; at most *nfds descriptors (CLOEXEC), their
 * number is stored there. 0 octets: the daemon is gone.
 */
long et_control_recv(int sock, void *msg, size_t n, int *fds, int *nfds);
/* Magic, version, type and length are as they must be. */
int et_control_valid(const void *msg, size_t got, size_t want, enum etran_msg_type type);

#endif
