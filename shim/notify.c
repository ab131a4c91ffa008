/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the transport tells the surface. Both only mark: they run on any thread,
 * under the transport's locks, and take none.
 */
#include "epoll.h"
#include "sock.h"

void et_ready(void *user)
{
	struct et_sock *s = user;

	atomic_store_explicit(&s->asked_room, false, memory_order_relaxed);
	for (int i = 0; i < ET_SOCK_REGS; i++) {
		struct et_reg *r = atomic_load(&s->reg[i]);

		if (r)
			et_reg_kick(r);
	}
}

void et_please(void *user, bool promote, enum etran_path_reason why)
{
	struct et_sock *s;
	uint32_t next = 0;

	while ((s = et_sock_next(&next))) {
		if (user && s != user)
			continue;
		if (promote) {
			/* At its next quiet moment, whatever the back-off. */
			s->next_try = 1;
			s->next_bytes = 1;
		} else if (et_sock_mode(s) == ET_MODE_FAST) {
			atomic_store(&s->please, why);
			et_ready(s);
		}
	}
	et_wake_all();
}
