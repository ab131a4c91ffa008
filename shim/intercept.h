/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The libc functions behind the names that we export.
 *
 * et_real.NAME may be called at any time: until the constructor has resolved
 * the real functions it makes the system call itself, or resolves first where
 * there is no such call.
 */
#ifndef ET_INTERCEPT_H
#define ET_INTERCEPT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
/* The headers must not turn our definitions into checking wrappers. */
#undef _FORTIFY_SOURCE

#include <aio.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>

#define ET_EXPORT __attribute__((visibility("default")))
#define et_likely(x) __builtin_expect(!!(x), 1)
#define et_unlikely(x) __builtin_expect(!!(x), 0)

struct et_real {
#define ETRAN_INTERPOSE(ret, name, params, args, early, value) ret(*name) params;
#include "interpose.def"
};

/* Numbers that fit into the quick look, see et_fd_entry(). */
#define ET_FD_QUICK 1024

/*
 * All that a call which is none of ours touches, in one page: after a system call
 * the processor may have to look up each page anew, which took 30 ns here.
 */
extern struct et_page {
	struct et_real real;
	/* The table of descriptors, see fdtable.h. */
	_Atomic uint64_t seen[ET_FD_QUICK / 64];
	uint32_t fd_limit; /* 0 until there is a table */
	_Atomic uintptr_t *fd_table;
	/* Waits for sets of the program may be ours; set once, for good. */
	_Atomic bool watching;
} et_page;
#define et_real et_page.real

/* Look all of them up; a name that libc lacks keeps its early function. */
void et_resolve(void);

/*
 * A program's mistake that the kernel is to find: there is no memory in the first
 * page and in the kernel's half. It is a guess that costs nothing; the rest of
 * what can be wrong with a pointer is a fault of whoever uses it.
 */
static inline bool et_nowhere(const void *p)
{
	return (uintptr_t)p - 4096 >= (1ull << 47) - 4096;
}

/* The end of a call: results below zero are negative errno values. */
static inline ssize_t et_return(ssize_t r)
{
	if (et_likely(r >= 0))
		return r;
	errno = (int)-r;
	return -1;
}

#endif
