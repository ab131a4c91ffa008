/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Processes: who may hold a file besides us.
 *
 * Every fork, exec and spawn begins a new epoch. A socket that existed before
 * may be held by the child, and is not promoted while that can be so:
 *  - a forked child holds the write end of a pipe made before the fork; when
 *    the last holder is gone, by exit or exec, our read end says so;
 *  - a program that was started by exec or spawn has the sockets without
 *    FD_CLOEXEC, for as long as it likes.
 */
#ifndef ET_PROCESS_H
#define ET_PROCESS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "sys.h"

extern long et_pid;
extern _Atomic uint64_t et_fork_epoch;

/*
 * Set in a vfork child, which has its parent's thread-local storage, until the
 * parent goes on. Only a hint: a signal handler of the parent may find it set.
 */
extern __thread bool et_vforked;
/* 1; the kernel gives a child with memory of its own 0. NULL: it cannot. */
extern const uint32_t *et_own_mark;

/*
 * False in a vfork child, which borrows our memory, and in others that
 * pthread_atfork does not know of: they must not touch our state. Costs no
 * system call, which every close() would pay for.
 */
static inline bool et_own_process(void)
{
	if (__builtin_expect(et_own_mark && !et_vforked, 1))
		return *(const volatile uint32_t *)et_own_mark != 0;
	return et_sys3(SYS_getpid, 0, 0, 0) == et_pid;
}

static inline bool et_borrowed(void)
{
	return __builtin_expect(et_vforked, 0) && !et_own_process();
}

void et_process_init(void);
/* The program uses TCP: start the control side, once. */
void et_process_use(void);
/* The program is strict, and there is no daemon: no connections. */
bool et_process_denies(void);
/* May another process hold the file behind fd, made in epoch `born`? */
bool et_process_shares(int fd, uint64_t born);
/* Children get what has no FD_CLOEXEC: give those connections back. */
void et_process_hands_on(void);
/* … and this one. */
void et_process_lends(int fd);
/* From a process that borrows our memory: the owner shall give that one back. */
void et_process_reclaims(int fd);
/* A new process, by means that run no handlers, and the child of such. */
void et_process_unwatched(void);
void et_process_child(void);

#endif
