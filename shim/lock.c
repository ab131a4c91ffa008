/* SPDX-License-Identifier: Apache-2.0 */
#include "lock.h"

#define SPINS 200
#define RECHECK_NS 1000000

__thread uint32_t et_tid_cache;

uint32_t et_tid_slow(void)
{
	et_tid_cache = (uint32_t)et_sys3(SYS_gettid, 0, 0, 0);
	return et_tid_cache;
}

bool et_lock_slow(struct et_lock *l)
{
	const struct timespec recheck = {.tv_nsec = RECHECK_NS};

	if (et_lock_mine(l))
		return false;
	for (int i = 0; i < SPINS; i++) {
		if (et_trylock(l))
			return true;
		et_pause();
	}
	__atomic_add_fetch(&l->waiters, 1, __ATOMIC_SEQ_CST);
	while (!et_trylock(l)) {
		uint32_t owner = __atomic_load_n(&l->owner, __ATOMIC_RELAXED);

		if (owner)
			et_futex_wait(&l->owner, owner, &recheck);
	}
	__atomic_sub_fetch(&l->waiters, 1, __ATOMIC_RELAXED);
	return true;
}
