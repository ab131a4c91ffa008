/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Descriptors come and go: what fds.c shares.
 */
#ifndef ET_FDS_H
#define ET_FDS_H

/* The kernel has just given out this number, or fd is < 0. Returns fd. */
int et_fd_new(int fd);
/* `to` is a new descriptor of what `from` is, or < 0. Returns `to`. */
int et_fd_copied(int from, int to);

#endif
