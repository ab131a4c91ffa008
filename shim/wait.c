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
static __thread int own_fd = -1;

static int waiter_fd(void)
{
	int fd;

	if (own_fd >= 0)
		return own_fd;
	fd = (int)et_sys3(SYS_eventfd2, 0, EFD_CLOEXEC | EFD_NONBLOCK, 0);
	if (fd >= 0)
		own_fd = et_fd_hide(fd);
	return fd < 0 ? fd : own_fd;
}

int et_wait_begin(struct et_waiter *w)
{
	w->fd = waiter_fd();
	if (w->fd < 0)
		return w->fd;
	if (!et_lock(&waiters_lock))
		return -EAGAIN;
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
	et_unlock(&waiters_lock);
	et_sys_read(w->fd, &count, sizeof(count));
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
