/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A lock that knows its owner: a signal handler that interrupts the holder and
 * comes back here gets false instead of a deadlock. Spins a little, then sleeps
 * on a futex. The words may lie in shared memory: the connection locks do, so
 * that the daemon can take one away (ETRAN_LOCK_SEIZED in <etran/arena.h>).
 */
#ifndef ET_LOCK_H
#define ET_LOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "sys.h"

struct et_lock {
	uint32_t owner; /* tid, 0 = free */
	uint32_t waiters;
};

extern __thread uint32_t et_tid_cache;
uint32_t et_tid_slow(void);

static inline uint32_t et_tid(void)
{
	return et_tid_cache ? et_tid_cache : et_tid_slow();
}

static inline bool et_trylock(struct et_lock *l)
{
	uint32_t none = 0;

	return __atomic_compare_exchange_n(&l->owner, &none, et_tid(), false, __ATOMIC_ACQUIRE,
					   __ATOMIC_RELAXED);
}

static inline bool et_lock_mine(const struct et_lock *l)
{
	return __atomic_load_n(&l->owner, __ATOMIC_RELAXED) == et_tid();
}

bool et_lock_slow(struct et_lock *l);

/* False: this thread holds it already. */
static inline bool et_lock(struct et_lock *l)
{
	return et_trylock(l) || et_lock_slow(l);
}

static inline void et_unlock(struct et_lock *l)
{
	__atomic_store_n(&l->owner, 0, __ATOMIC_RELEASE);
	/* Not ordered after the store: a waiter may be missed, it looks again
	 * after a millisecond. Cheaper than a full barrier on every unlock. */
	if (__builtin_expect(__atomic_load_n(&l->waiters, __ATOMIC_RELAXED) != 0, 0))
		et_futex_wake(&l->owner, 1);
}

/*
 * The same for a lock in shared memory. False: it was seized while this thread
 * held it, and is not this thread's to give back.
 */
static inline bool et_unlock_shared(struct et_lock *l)
{
	uint32_t own = et_tid();

	if (__builtin_expect(!__atomic_compare_exchange_n(&l->owner, &own, 0, false,
							  __ATOMIC_RELEASE, __ATOMIC_ACQUIRE),
			     0))
		return false;
	if (__builtin_expect(__atomic_load_n(&l->waiters, __ATOMIC_RELAXED) != 0, 0))
		et_futex_wake(&l->owner, 1);
	return true;
}

#endif
