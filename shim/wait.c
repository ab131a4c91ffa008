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

/*
 * Sleepers are in a table, not on the stacks of those who sleep: a handler may
 * jump out of a sleep, and the frame that began it is never come back to. Such
 * ones are given up when their thread, higher up its stack, sleeps again.
 */
#define MAX_SLEEPERS 256
/* So many eventfds are kept for the next; threads that end leave none. */
#define MAX_IDLE 64

struct sleeper {
	int fd; /* eventfd; 0: none yet */
	bool used;
	uint32_t turn; /* counts its users */
	const void *frame;
	struct sleeper *outer; /* the same thread's, interrupted by a handler */
};

static struct et_lock waiters_lock;
static struct sleeper sleepers[MAX_SLEEPERS]; /* waiters_lock */
static unsigned idle_count;        /* waiters_lock; unused ones with an eventfd */
static _Atomic unsigned sleeping;
static __thread struct sleeper *own;

/* Lock held. */
static struct sleeper *take_sleeper(void)
{
	struct sleeper *s = NULL;
	int fd;

	for (int i = 0; i < MAX_SLEEPERS && !(s && s->fd); i++)
		if (!sleepers[i].used && (!s || sleepers[i].fd))
			s = &sleepers[i];
	if (!s)
		return NULL;
	if (s->fd) {
		idle_count--;
	} else {
		fd = (int)et_sys3(SYS_eventfd2, 0, EFD_CLOEXEC | EFD_NONBLOCK, 0);
		if (fd < 0)
			return NULL;
		s->fd = et_fd_hide(fd);
	}
	s->used = true;
	s->turn++;
	atomic_fetch_add(&sleeping, 1);
	return s;
}

/* Lock held: nobody writes to it any more. */
static void give_sleeper(struct sleeper *s)
{
	uint64_t count;

	s->used = false;
	s->turn++;
	atomic_fetch_sub(&sleeping, 1);
	et_sys_read(s->fd, &count, sizeof(count));
	if (idle_count < MAX_IDLE) {
		idle_count++;
		return;
	}
	et_fd_unhide(s->fd);
	et_sys_close(s->fd);
	s->fd = 0;
}

int et_wait_begin(struct et_waiter *w)
{
	struct sleeper *s;

	if (!et_lock(&waiters_lock))
		return -EAGAIN;
	for (; own && (const char *)own->frame <= (const char *)w; own = s) {
		s = own->outer;
		give_sleeper(own);
	}
	s = take_sleeper();
	if (s) {
		s->frame = w;
		s->outer = own;
		own = s;
		*w = (struct et_waiter){.fd = s->fd, .turn = s->turn, .sleeper = s};
	}
	et_unlock(&waiters_lock);
	atomic_thread_fence(memory_order_seq_cst);
	return s ? 0 : -EAGAIN;
}

void et_wait_end(struct et_waiter *w)
{
	struct sleeper *s = w->sleeper;
	uint64_t count;

	if (!et_lock(&waiters_lock))
		return;
	/* Unless a handler on a stack of its own took it for a dead one. */
	if (s->used && s->turn == w->turn) {
		own = s->outer;
		give_sleeper(s);
	}
	et_unlock(&waiters_lock);
	/* The daemon's eventfd is shared: whoever empties it tells the others. */
	if (et_core.wake >= 0 && et_sys_read(et_core.wake, &count, sizeof(count)) > 0) {
		et_conns_look();
		et_wake_all();
	}
}

static void wake(const struct sleeper *except)
{
	const uint64_t one = 1;

	atomic_thread_fence(memory_order_seq_cst);
	if (!atomic_load_explicit(&sleeping, memory_order_relaxed) || !et_lock(&waiters_lock))
		return;
	for (unsigned i = 0, left = atomic_load(&sleeping); left && i < MAX_SLEEPERS; i++) {
		if (!sleepers[i].used)
			continue;
		left--;
		if (&sleepers[i] != except)
			et_sys_write(sleepers[i].fd, &one, sizeof(one));
	}
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
	for (int i = 0; i < MAX_SLEEPERS; i++) {
		if (sleepers[i].fd && !waiters_lock.owner)
			et_sys_close(sleepers[i].fd);
		sleepers[i] = (struct sleeper){0};
	}
	idle_count = 0;
	waiters_lock = (struct et_lock){0};
	atomic_store(&sleeping, 0);
	own = NULL;
}
