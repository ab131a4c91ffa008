/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starting the Go side of the library: once per process, when it is first
 * needed, and never behind the program's back.
 */
#ifndef ET_START_H
#define ET_START_H

#include <stdbool.h>

/*
 * Take the copies that the start will need: the program may overwrite its
 * argument block later (setproctitle). To be called from the library's
 * constructor, with what the dynamic linker passes to it.
 */
void et_start_ctor(int argc, char **argv, char **envp);

/*
 * Start the Go side unless it runs; true when it does. The first call takes
 * some milliseconds, later ones one system call (getpid).
 *
 * False means: do without, for ever (Go program, AT_SECURE, no address space,
 * no threads, no Go linked in, forked from a process where Go ran). In a vfork
 * child, and after a bare clone or _Fork, it is always false.
 *
 * Preconditions: not inside an allocator; not on a path that a signal handler
 * may take. Keeps errno, the signal mask, all dispositions and limits.
 */
bool et_go_start(void);

/*
 * True in a process forked, without exec, from one whose Go side ran: its
 * threads are not here, so nothing of Go may be touched.
 */
bool et_go_dead_after_fork(void);

#endif
