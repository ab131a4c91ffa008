/* SPDX-License-Identifier: Apache-2.0 */
/* System calls without libc: no library sees them. */
#ifndef ETRAN_TESTS_RAW_H
#define ETRAN_TESTS_RAW_H

static inline long raw_syscall(long nr, long a, long b, long c)
{
	long r;

	__asm__ volatile("syscall"
			 : "=a"(r)
			 : "a"(nr), "D"(a), "S"(b), "d"(c)
			 : "rcx", "r11", "memory");
	return r;
}

#endif
