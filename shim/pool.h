/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pools of equal objects, for a library that must not call malloc.
 *
 * The memory is mapped at the first use, is never unmapped and never becomes
 * something else: a stale pointer always points at an object of its type. Both
 * calls are lock-free, so a signal handler may use them.
 */
#ifndef ET_POOL_H
#define ET_POOL_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

struct et_pool {
	size_t size;  /* octets of an object */
	uint32_t max; /* objects */
	char *_Atomic base;
	_Atomic uint32_t used; /* objects that were ever handed out */
	/* Free list: index + 1 of its head below, a count against ABA above. */
	_Atomic uint64_t free;
};

/* Content as it was left, zeros at first. NULL: none left, or no memory. */
void *et_pool_get(struct et_pool *p);
void et_pool_put(struct et_pool *p, void *object);
/* Object number i < used, in use or not. */
void *et_pool_at(struct et_pool *p, uint32_t i);

#endif
