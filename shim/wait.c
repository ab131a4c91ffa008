/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sleeping and waking. A sleeper puts itself on the list, looks once more and
 * only then sleeps; a waker changes something and then looks at the list. The
 * full barriers in wait_begin and wake order the two against each other.
 */
#include "fdtable.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>

#include "core.h"

static struct et_lock waiters_lock;
static struct et_waiter *_Atomic waiters;
static __thread struct et_waiter *own;
/* Eventfds that nobody uses now: threads come and go, and must leave none. */
static int idle[64];
static unsigned idle_count; /* waiters_lock */

/* Lock held. */
static int waiter_fd(void)
{
	int fd;

	if (idle_count)
		return idle[--idle_count];
	fd = (int)et_sys3(SYS_eventfd2, 0, EFD_CLOEXEC | EFD_NONBLOCK, 0);
	return fd < 0 ? fd : et_fd_hide(fd);
}

int et_wait_begin(struct et_waiter *w)
{
	if (!et_lock(&waiters_lock))
		return -EAGAIN;
	w->fd = waiter_fd();
	if (w->fd < 0) {
		et_unlock(&waiters_lock);
		return w->fd;
	}
	w->next = atomic_load_explicit(&waiters, memory_order_relaxed);
	w->prev = (struct et_waiter **)&waiters;
	if (w->next)
		w->next->prev = &w->next;
	atomic_store(&waiters, w);
	own = w;
	et_unlock(&waiters_lock);
	atomic_thread_fence(memory_order_seq_cst);
	return 0;
}

void et_wait_end(struct et_waiter *w)
{
	uint64_t count;

	if (!et_lock(&waiters_lock))
		return;
	*w->prev = w->next;
	if (w->next)
		w->next->prev = w->prev;
	own = NULL;
	/* Off the list, nobody writes to it any more. */
	et_sys_read(w->fd, &count, sizeof(count));
	if (idle_count < sizeof(idle) / sizeof(*idle)) {
		idle[idle_count++] = w->fd;
	} else {
		et_fd_unhide(w->fd);
		et_sys_close(w->fd);
	}
	et_unlock(&waiters_lock);
	/* The daemon's eventfd is shared: whoever empties it tells the others. */
	if (et_core.wake >= 0 && et_sys_read(et_core.wake, &count, sizeof(count)) > 0) {
		et_conns_look();
		et_wake_all();
	}
}

static void wake(const struct et_waiter *except)
{
	const uint64_t one = 1;

	atomic_thread_fence(memory_order_seq_cst);
	if (!atomic_load_explicit(&waiters, memory_order_relaxed) || !et_lock(&waiters_lock))
		return;
	for (struct et_waiter *w = atomic_load(&waiters); w; w = w->next)
		if (w != except)
			et_sys_write(w->fd, &one, sizeof(one));
	et_unlock(&waiters_lock);
}

void et_wake_all(void)
{
	wake(NULL);
}

/* The barrier is needed here, too: without it, what was just changed may not be
 * seen by a thread that we do not see on the list. */
void et_wake_others(void)
{
	wake(own);
}

int et_wait_fds(int *fds, int max)
{
	int n = 0;

	if (et_core.wake >= 0 && n < max)
		fds[n++] = et_core.wake;
	if (!et_rings_up())
		return n;
	for (unsigned q = 0; q < et_queues(&et_core.context) && n < max; q++)
		fds[n++] = et_core.context.queue[q].fd;
	return n;
}

/* The sleepers are the parent's threads, and their eventfds are its own. */
void et_wait_after_fork(void)
{
	/* If one of them was at it just then, the descriptors are left open. */
	while (!waiters_lock.owner && idle_count)
		et_sys_close(idle[--idle_count]);
	idle_count = 0;
	waiters_lock = (struct et_lock){0};
	atomic_store(&waiters, NULL);
	own = NULL;
}
