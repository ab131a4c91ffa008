/* SPDX-License-Identifier: Apache-2.0 */
#include "pool.h"

#include <sys/mman.h>

#include "sys.h"

/* The links of the free list stand in front of the objects, not inside: the
 * content of a free object stays readable. */
static size_t links_size(const struct et_pool *p)
{
	return (p->max * sizeof(uint32_t) + 63) & ~(size_t)63;
}

static _Atomic uint32_t *link_of(struct et_pool *p, uint32_t i)
{
	return (_Atomic uint32_t *)atomic_load_explicit(&p->base, memory_order_acquire) + i;
}

void *et_pool_at(struct et_pool *p, uint32_t i)
{
	return atomic_load_explicit(&p->base, memory_order_acquire) + links_size(p) + i * p->size;
}

static char *map_pool(struct et_pool *p)
{
	size_t size = links_size(p) + p->max * p->size;
	char *mapped = et_sys_mmap(size, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *expected = NULL;

	if (et_sys_error(mapped))
		return NULL;
	if (atomic_compare_exchange_strong(&p->base, &expected, mapped))
		return mapped;
	et_sys3(SYS_munmap, (long)mapped, (long)size, 0);
	return expected;
}

void *et_pool_get(struct et_pool *p)
{
	uint64_t head;
	uint32_t i;

	if (!atomic_load_explicit(&p->base, memory_order_acquire) && !map_pool(p))
		return NULL;
	head = atomic_load(&p->free);
	while ((uint32_t)head) {
		uint64_t next = atomic_load(link_of(p, (uint32_t)head - 1));

		next |= ((head >> 32) + 1) << 32;
		if (atomic_compare_exchange_weak(&p->free, &head, next))
			return et_pool_at(p, (uint32_t)head - 1);
	}
	i = atomic_load(&p->used);
	while (i < p->max)
		if (atomic_compare_exchange_weak(&p->used, &i, i + 1))
			return et_pool_at(p, i);
	return NULL;
}

void et_pool_put(struct et_pool *p, void *object)
{
	uint32_t i = (uint32_t)(((char *)object - (char *)et_pool_at(p, 0)) / (ptrdiff_t)p->size);
	uint64_t head = atomic_load(&p->free), next;

	do {
		atomic_store(link_of(p, i), (uint32_t)head);
		next = ((head >> 32) + 1) << 32 | (i + 1);
	} while (!atomic_compare_exchange_weak(&p->free, &head, next));
}
