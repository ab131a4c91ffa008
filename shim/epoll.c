/* SPDX-License-Identifier: Apache-2.0 */
#include "epoll.h"

#include "config.h"
#include "pool.h"
#include "sock.h"
#include "sys.h"

#define MAX_EPOLLS (1u << 12)
#define MAX_REGS (1u << 17)
/* Registrations evaluated in one go. */
#define BATCH 32

static struct et_pool epolls = {.size = sizeof(struct et_epoll), .max = MAX_EPOLLS};
static struct et_pool regs = {.size = sizeof(struct et_reg), .max = MAX_REGS};

static int real_ctl(int epfd, int op, int fd, struct epoll_event *event)
{
	return (int)et_sys6(SYS_epoll_ctl, epfd, op, fd, (long)event, 0, 0);
}

/* ---- registrations ------------------------------------------------------- */

static bool reg_change(struct et_reg *r, uint32_t from, uint32_t to)
{
	return atomic_compare_exchange_strong(&r->state, &from, to);
}

/* To the inbox of its set. The caller has just made it QUEUED. */
static void inbox_push(struct et_reg *r)
{
	struct et_epoll *ep = r->ep;
	struct et_reg *head = atomic_load(&ep->inbox);

	do {
		r->next = head;
	} while (!atomic_compare_exchange_weak(&ep->inbox, &head, r));
}

void et_reg_kick(struct et_reg *r)
{
	for (;;) {
		switch (atomic_load(&r->state)) {
		case ET_REG_IDLE:
			if (!reg_change(r, ET_REG_IDLE, ET_REG_QUEUED))
				continue;
			inbox_push(r);
			return;
		case ET_REG_BUSY:
			if (!reg_change(r, ET_REG_BUSY, ET_REG_AGAIN))
				continue;
			return;
		default:
			return;
		}
	}
}

static void reg_free(struct et_reg *r)
{
	atomic_store(&r->state, ET_REG_DEAD);
	et_pool_put(&regs, r);
}

static struct et_reg *find(struct et_sock *s, struct et_epoll *ep, int fd)
{
	for (int i = 0; i < ET_SOCK_REGS; i++) {
		struct et_reg *r = atomic_load(&s->reg[i]);

		if (r && r->ep == ep && r->fd == fd)
			return r;
	}
	return NULL;
}

static void count_live(struct et_reg *r, bool live)
{
	if (live == r->live)
		return;
	r->live = live;
	if (live)
		atomic_fetch_add(&r->ep->live, 1);
	else
		atomic_fetch_sub(&r->ep->live, 1);
}

/* Both locks held. NULL: no place for it. */
static struct et_reg *reg_add(struct et_sock *s, struct et_epoll *ep, int fd,
			      const struct epoll_event *event, bool in_kernel)
{
	struct et_reg *_Atomic *slot = s->reg;
	struct et_reg *r;

	while (slot < s->reg + ET_SOCK_REGS && atomic_load(slot))
		slot++;
	if (slot == s->reg + ET_SOCK_REGS)
		return NULL;
	r = et_pool_get(&regs);
	if (!r)
		return NULL;
	*r = (struct et_reg){.s = s, .ep = ep, .fd = fd, .in_kernel = in_kernel};
	r->events = event->events;
	r->data = event->data.u64;
	r->peer = ep->regs;
	r->peer_ref = &ep->regs;
	if (r->peer)
		r->peer->peer_ref = &r->peer;
	ep->regs = r;
	atomic_fetch_add(&ep->socks, 1);
	if (!in_kernel)
		atomic_fetch_add(&ep->fast, 1);
	count_live(r, !atomic_load(&s->never));
	atomic_store(&r->state, ET_REG_IDLE);
	atomic_store(slot, r);
	return r;
}

/* Out of the set and the socket; freed by whoever has it. Both locks held. */
static void reg_unlink(struct et_reg *r)
{
	for (int i = 0; i < ET_SOCK_REGS; i++)
		if (atomic_load(&r->s->reg[i]) == r)
			atomic_store(&r->s->reg[i], NULL);
	*r->peer_ref = r->peer;
	if (r->peer)
		r->peer->peer_ref = r->peer_ref;
	atomic_fetch_sub(&r->ep->socks, 1);
	if (!r->in_kernel)
		atomic_fetch_sub(&r->ep->fast, 1);
	count_live(r, false);
	r->removed = true;
	if (reg_change(r, ET_REG_IDLE, ET_REG_DEAD))
		reg_free(r);
}

/*
 * The set's lock, for short sections only. It cannot fail where the caller is
 * no signal handler; there the change of the list is left undone.
 */
void et_reg_remove(struct et_reg *r, bool from_kernel)
{
	struct et_epoll *ep = r->ep;

	if (!et_lock(&ep->lock))
		return;
	if (from_kernel && r->in_kernel)
		real_ctl(atomic_load(&ep->file.fd), EPOLL_CTL_DEL, r->fd, NULL);
	reg_unlink(r);
	et_unlock(&ep->lock);
}

void et_reg_to_user(struct et_reg *r)
{
	if (r->in_kernel) {
		real_ctl(atomic_load(&r->ep->file.fd), EPOLL_CTL_DEL, r->fd, NULL);
		r->in_kernel = false;
		atomic_fetch_add(&r->ep->fast, 1);
	}
	et_reg_kick(r);
}

void et_reg_to_kernel(struct et_reg *r)
{
	struct epoll_event event = {.events = r->events, .data.u64 = r->data};
	int err;

	if (r->in_kernel)
		return;
	err = real_ctl(atomic_load(&r->ep->file.fd), EPOLL_CTL_ADD, r->fd, &event);
	if (err && err != -EEXIST)
		et_log("fd %d: back into the epoll set: error %d", r->fd, -err);
	r->in_kernel = true;
	atomic_fetch_sub(&r->ep->fast, 1);
}

void et_reg_rearm(struct et_reg *r)
{
	struct epoll_event event = {.events = r->events, .data.u64 = r->data};

	if (r->in_kernel)
		real_ctl(atomic_load(&r->ep->file.fd), EPOLL_CTL_MOD, r->fd, &event);
}

bool et_reg_promotable(const struct et_reg *r)
{
	return !(r->events & (EPOLLONESHOT | EPOLLEXCLUSIVE)) && !atomic_load(&r->ep->nested) &&
	       !atomic_load(&r->ep->blind);
}

void et_reg_settle(struct et_reg *r)
{
	count_live(r, false);
}

/* ---- epoll_ctl ----------------------------------------------------------- */

/* Registrations that only the kernel can do. */
static bool kernel_only(struct et_epoll *ep, const struct epoll_event *event)
{
	return event->events & (EPOLLONESHOT | EPOLLEXCLUSIVE) || atomic_load(&ep->nested);
}

/* The real call, and what it changed. Both locks held. */
static int ctl_kernel(struct et_sock *s, struct et_epoll *ep, int epfd, int op, int fd,
		      struct epoll_event *event)
{
	struct et_reg *r = find(s, ep, fd);
	int err = real_ctl(epfd, op, fd, event);

	if (err)
		return err;
	if (op == EPOLL_CTL_DEL) {
		if (r)
			reg_unlink(r);
	} else if (r) {
		r->events = event->events;
		r->data = event->data.u64;
	} else if (!reg_add(s, ep, fd, event, true)) {
		atomic_store(&s->never, true);
	}
	return 0;
}

/* The socket is fast: the real set knows nothing of it. Both locks held. */
static int ctl_fast(struct et_sock *s, struct et_epoll *ep, int op, int fd,
		    const struct epoll_event *event)
{
	struct et_reg *r = find(s, ep, fd);

	if (op == EPOLL_CTL_ADD) {
		if (r)
			return -EEXIST;
		r = reg_add(s, ep, fd, event, false);
		if (!r)
			return -ENOSPC;
	} else if (!r) {
		return -ENOENT;
	} else if (op == EPOLL_CTL_DEL) {
		reg_unlink(r);
		return 0;
	} else {
		r->events = event->events;
		r->data = event->data.u64;
	}
	et_reg_kick(r);
	return 0;
}

static bool reg_room(struct et_sock *s)
{
	for (int i = 0; i < ET_SOCK_REGS; i++)
		if (!atomic_load(&s->reg[i]))
			return true;
	return false;
}

/* Socket's lock held. */
static int ctl_locked(struct et_sock *s, struct et_epoll *ep, int epfd, int op, int fd,
		      struct epoll_event *event)
{
	int err;

	if (et_sock_mode(s) == ET_MODE_FAST && op != EPOLL_CTL_DEL &&
	    (et_nowhere(event) || kernel_only(ep, event) || (op == EPOLL_CTL_ADD && !reg_room(s)) ||
	     (op != EPOLL_CTL_ADD && op != EPOLL_CTL_MOD)))
		et_sock_demote_locked(s, ETRAN_PATH_EPOLL);
	if (!et_lock(&ep->lock))
		return -ENOMEM;
	if (et_sock_mode(s) == ET_MODE_FAST)
		err = ctl_fast(s, ep, op, fd, event);
	else
		err = ctl_kernel(s, ep, epfd, op, fd, event);
	et_unlock(&ep->lock);
	if (et_unlikely(atomic_load(&ep->blind)) && !err && op != EPOLL_CTL_DEL)
		et_sock_demote_locked(s, ETRAN_PATH_EPOLL);
	return err;
}

static int ctl(struct et_sock *s, struct et_epoll *ep, int epfd, int op, int fd,
	       struct epoll_event *event)
{
	int err = -ENOMEM;

	if (et_sock_mode(s) == ET_MODE_FOREIGN)
		et_sock_to_kernel(s, fd, ETRAN_PATH_FORK);
	if (!ep) {
		/* A set that we do not know, perhaps another process's. */
		if (op == EPOLL_CTL_ADD)
			et_sock_pin_down(s, fd, ETRAN_PATH_EPOLL);
		return real_ctl(epfd, op, fd, event);
	}
	/* Outside: a demotion waits for those inside. */
	et_sock_step_out(s);
	if (et_lock(&s->lock)) {
		err = ctl_locked(s, ep, epfd, op, fd, event);
		et_unlock(&s->lock);
	}
	et_sock_step_in(s);
	return err;
}

ET_EXPORT int epoll_ctl(int epfd, int op, int fd, struct epoll_event *event)
{
	struct et_sock *s = et_sock_enter(fd);
	struct et_epoll *ep;
	int r;

	if (!s) {
		if (et_fd_is(fd, ET_FD_EPOLL) && op == EPOLL_CTL_ADD)
			et_epoll_isolate(fd);
		return et_real.epoll_ctl(epfd, op, fd, event);
	}
	ep = et_fd_pin(epfd, ET_FD_EPOLL, ET_PIN);
	r = ctl(s, ep, epfd, op, fd, event);
	if (ep)
		et_file_put(&ep->file, ET_FD_EPOLL, ET_PIN);
	et_sock_leave(s);
	return (int)et_return(r);
}

/* ---- life of a set ------------------------------------------------------- */

static int create(int epfd)
{
	struct et_epoll *ep;

	if (epfd < 0 || !et_config.active)
		return epfd;
	if (et_fd_entry(epfd))
		et_sock_close(epfd, et_entry_kind(et_fd_entry(epfd)));
	ep = et_pool_get(&epolls);
	if (!ep)
		return epfd;
	/* The inbox stays as it is: a late kick may still put something there,
	 * which is then found removed. */
	ep->lock = (struct et_lock){0};
	ep->ready = NULL;
	ep->ready_end = &ep->ready;
	atomic_store(&ep->ready_count, 0);
	ep->regs = NULL;
	atomic_store(&ep->fast, 0);
	atomic_store(&ep->live, 0);
	atomic_store(&ep->socks, 0);
	atomic_store(&ep->blind, 0);
	atomic_store(&ep->nested, false);
	ep->foreign = false;
	ep->turns = 0;
	ep->kernel_ns = 0;
	ep->kernel_last = false;
	ep->spin = (struct et_spin){0};
	atomic_store(&ep->file.fds, 0);
	atomic_store(&ep->file.users, ET_PIN);
	et_fd_set(epfd, &ep->file, ET_FD_EPOLL);
	et_file_put(&ep->file, ET_FD_EPOLL, ET_PIN);
	return epfd;
}

ET_EXPORT int epoll_create(int size)
{
	return create(et_real.epoll_create(size));
}

ET_EXPORT int epoll_create1(int flags)
{
	return create(et_real.epoll_create1(flags));
}

/* The pinned socket of some registration, or NULL. `fast`: only such. */
static struct et_sock *any_sock(struct et_epoll *ep, bool fast)
{
	struct et_sock *s = NULL;

	if (!et_lock(&ep->lock))
		return NULL;
	for (struct et_reg *r = ep->regs; r && !s; r = r->peer)
		if ((!fast || !r->in_kernel) && et_file_pin(&r->s->file, ET_PIN))
			s = r->s;
	et_unlock(&ep->lock);
	return s;
}

/* The order of locks is socket, set: so one socket at a time. */
static void remove_all(struct et_epoll *ep)
{
	struct et_sock *s;

	while ((s = any_sock(ep, false))) {
		bool locked = et_lock(&s->lock);

		for (int i = 0; locked && i < ET_SOCK_REGS; i++) {
			struct et_reg *r = atomic_load(&s->reg[i]);

			if (r && r->ep == ep)
				et_reg_remove(r, false);
		}
		if (locked)
			et_unlock(&s->lock);
		et_file_put(&s->file, ET_FD_SOCK, ET_PIN);
		if (!locked) /* a signal handler; the set is being left to leak */
			break;
	}
}

void et_epoll_close(int fd)
{
	struct et_epoll *ep = et_fd_pin(fd, ET_FD_EPOLL, ET_PIN);

	if (!ep)
		return;
	if (et_fd_clear(fd, &ep->file, ET_FD_EPOLL) == 0) {
		remove_all(ep);
		et_file_put(&ep->file, ET_FD_EPOLL, ET_PIN);
	}
	et_file_put(&ep->file, ET_FD_EPOLL, ET_PIN);
}

static void take_inbox(struct et_epoll *ep);

void et_epoll_free(struct et_epoll *ep)
{
	take_inbox(ep);
	for (struct et_reg *r = ep->ready, *next; r; r = next) {
		next = r->next;
		reg_free(r);
	}
	ep->ready = NULL;
	et_pool_put(&epolls, ep);
}

void et_epoll_demote_all(struct et_epoll *ep, enum etran_path_reason why)
{
	bool done = true;
	struct et_sock *s;

	while (done && atomic_load(&ep->fast) && (s = any_sock(ep, true))) {
		et_sock_step_in(s);
		et_sock_to_kernel(s, atomic_load(&s->file.fd), why);
		done = et_sock_mode(s) == ET_MODE_KERNEL;
		et_sock_leave(s);
	}
}

void et_epoll_isolate(int epfd)
{
	struct et_epoll *ep = et_fd_pin(epfd, ET_FD_EPOLL, ET_PIN);

	if (!ep)
		return;
	atomic_store(&ep->nested, true);
	et_epoll_demote_all(ep, ETRAN_PATH_EPOLL);
	et_file_put(&ep->file, ET_FD_EPOLL, ET_PIN);
}

void et_epoll_after_fork(void)
{
	for (uint32_t i = 0; i < atomic_load(&epolls.used); i++) {
		struct et_epoll *ep = et_pool_at(&epolls, i);

		ep->lock = (struct et_lock){0};
		atomic_store(&ep->blind, 0);
		ep->foreign = atomic_load(&ep->fast) != 0;
		atomic_store(&ep->live, 0);
	}
	for (uint32_t i = 0; i < atomic_load(&regs.used); i++)
		((struct et_reg *)et_pool_at(&regs, i))->live = false;
}

/* ---- readiness of fast sockets ------------------------------------------- */

static void ready_append(struct et_epoll *ep, struct et_reg *r)
{
	r->next = NULL;
	*ep->ready_end = r;
	ep->ready_end = &r->next;
	atomic_fetch_add_explicit(&ep->ready_count, 1, memory_order_relaxed);
}

/* Lock held. The inbox is a stack: turn it round. */
static void take_inbox(struct et_epoll *ep)
{
	struct et_reg *r, *first = NULL, *next;

	if (!atomic_load_explicit(&ep->inbox, memory_order_relaxed))
		return;
	for (r = atomic_exchange(&ep->inbox, NULL); r; r = next) {
		next = r->next;
		r->next = first;
		first = r;
	}
	for (r = first; r; r = next) {
		next = r->next;
		ready_append(ep, r);
	}
}

/* One registration under evaluation. */
struct look {
	struct et_reg *r;
	struct et_sock *s;
	uint32_t interest, found;
	uint64_t data;
};

/* Take up to `max` from the ready list; the sockets are entered. */
static int take_batch(struct et_epoll *ep, struct look *batch, int max, uint32_t *left)
{
	int n = 0;

	while (n < max && *left && ep->ready) {
		struct et_reg *r = ep->ready;

		ep->ready = r->next;
		if (!ep->ready)
			ep->ready_end = &ep->ready;
		atomic_fetch_sub_explicit(&ep->ready_count, 1, memory_order_relaxed);
		--*left;
		if (r->removed) {
			reg_free(r);
			continue;
		}
		atomic_store(&r->state, ET_REG_BUSY);
		if (!et_file_pin(&r->s->file, ET_PIN | ET_INSIDE)) {
			atomic_store(&r->state, ET_REG_IDLE);
			continue;
		}
		batch[n++] = (struct look){r, r->s, r->events, 0, r->data};
	}
	return n;
}

/*
 * A connection that has to go back does so first: what has happened to it, end
 * of stream or error, is an event that only the real set can report, and an
 * edge-triggered program may not look at the socket again without it.
 */
static uint32_t evaluate(struct et_sock *s, uint32_t interest)
{
	const uint32_t all = POLLIN | POLLRDNORM | POLLOUT | POLLWRNORM;
	enum etran_path_reason why;
	struct et_conn *c = et_sock_fast(s);

	if (!c)
		return 0;
	why = et_sock_wants_demote(s, c);
	if (et_unlikely(why != ETRAN_PATH_OK || et_conn_progress(c) != ET_FAST)) {
		et_sock_demote(s, why != ETRAN_PATH_OK ? why : et_conn_reason(c));
		return 0;
	}
	/* The values of EPOLL* are those of POLL*. */
	return (uint32_t)et_sock_ready(s, c, (short)(interest & all));
}

/* Done with it: level-triggered ones that were ready come again. Lock held. */
static void put_back(struct et_epoll *ep, struct look *l)
{
	struct et_reg *r = l->r;

	if (r->removed) {
		reg_free(r);
		return;
	}
	if (!(l->found && !(l->interest & EPOLLET)) && reg_change(r, ET_REG_BUSY, ET_REG_IDLE))
		return;
	atomic_store(&r->state, ET_REG_QUEUED);
	ready_append(ep, r);
}

int et_epoll_collect(struct et_epoll *ep, struct epoll_event *events, int max)
{
	struct look batch[BATCH];
	uint32_t left = 0;
	int n = 0, count;

	if (!atomic_load(&ep->inbox) && !atomic_load(&ep->ready_count))
		return 0;
	do {
		if (!et_lock(&ep->lock))
			break;
		take_inbox(ep);
		if (!n && !left)
			left = atomic_load(&ep->ready_count);
		count = take_batch(ep, batch, max - n < BATCH ? max - n : BATCH, &left);
		et_unlock(&ep->lock);
		for (int i = 0; i < count; i++) {
			batch[i].found = evaluate(batch[i].s, batch[i].interest);
			if (batch[i].found)
				events[n++] = (struct epoll_event){.events = batch[i].found,
								   .data.u64 = batch[i].data};
		}
		while (!et_lock(&ep->lock))
			et_pause();
		for (int i = 0; i < count; i++)
			put_back(ep, &batch[i]);
		et_unlock(&ep->lock);
		for (int i = 0; i < count; i++)
			et_sock_leave(batch[i].s);
	} while (count && left && n < max);
	return n;
}
