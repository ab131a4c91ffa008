/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Descriptors come and go: what fds.c shares.
 */
#ifndef ET_FDS_H
#define ET_FDS_H

/* `to` is a new descriptor of what `from` is, or < 0. Returns `to`. */
int et_fd_copied(int from, int to);

#endif
