/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What io.c shares with other calls on descriptors.
 */
#ifndef ET_IO_H
#define ET_IO_H

#include "sock.h"

/*
 * Not an errno: the descriptor is no socket. It was closed behind our back, by
 * libc itself or a raw system call, and the number is something else now. The
 * entry is gone; do the real call.
 */
#define ET_STALE (-100001)

/* An iterator over a program's vector: part of it, for one attempt. */
#define ET_WINDOW 16
struct et_cursor {
	const struct iovec *iov;
	int count;
	size_t skip; /* octets of iov[0] that are done */
};
/* Fills `window`, returns its length. */
int et_cursor_window(const struct et_cursor *c, struct iovec *window);
void et_cursor_advance(struct et_cursor *c, size_t n);
/* Octets of a vector, or -EINVAL. */
ssize_t et_iov_total(const struct iovec *iov, int count);

/* Descriptors in SCM_RIGHTS of a message go to another process: give back. */
void et_give_rights(const struct msghdr *msg);

#endif
