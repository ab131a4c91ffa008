/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "fake_transport.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

#include "lock.h"
#include "start.h"
#include "sys.h"

#define CONNS 512
#define LOW_WATER (1 << 20)
#define TICK_NS 50000

enum phase { FREE, OBSERVING, SWITCHING, SWITCHED, FAST, ABORTED, DEMOTED };

struct et_conn {
	_Atomic uint32_t phase;
	int fd; /* ours */
	void *_Atomic user;
	_Atomic uint32_t want;
	_Atomic uint32_t reported; /* octets readable when et_ready was called last */
	_Atomic bool wants_room;
	uint64_t decide_ns;
	unsigned reads;
	struct et_lock lock;
};

struct fake fake = {.up = true, .switch_us = 200};
struct et_policy et_policy = {
	.promote = true, .promote_after = 2, .promote_bytes = 1 << 20, .spin_us = 50};
static struct et_conn conns[CONNS];
static struct et_lock rx_lock, waiters_lock;
static struct et_waiter *_Atomic waiters; /* `sleeper` is the next one */
static __thread int own_fd = -1;
static _Atomic uint32_t seed = 12345;

static uint32_t random32(void)
{
	uint32_t x = atomic_load(&seed);

	x ^= x << 13;
	x ^= x >> 17;
	x ^= x << 5;
	atomic_store(&seed, x);
	return x;
}

bool et_up(void)
{
	return fake.up;
}

bool et_rings_up(void)
{
	return fake.up;
}

void et_count_kernel(struct et_conn *c, size_t in, size_t out)
{
	(void)c;
	atomic_fetch_add(&fake.kernel_in, in);
	atomic_fetch_add(&fake.kernel_out, out);
}

static void low_water(struct et_conn *c, int octets)
{
	et_sys6(SYS_setsockopt, c->fd, SOL_SOCKET, SO_RCVLOWAT, (long)&octets, sizeof(octets), 0);
}

/* The daemon's part: decides switches, and delivers for those who sleep. */
static void *daemon_main(void *arg)
{
	const struct timespec tick = {.tv_nsec = TICK_NS};

	for (;;) {
		unsigned moved = 0;

		et_sys_ppoll(NULL, 0, &tick);
		for (int i = 0; i < CONNS; i++) {
			struct et_conn *c = &conns[i];

			if (atomic_load(&c->phase) != SWITCHING || et_now_ns() < c->decide_ns)
				continue;
			if (fake.abort_every && random32() % fake.abort_every == 0) {
				atomic_fetch_add(&fake.aborted, 1);
				atomic_store(&c->phase, ABORTED);
			} else {
				low_water(c, LOW_WATER);
				atomic_store(&c->phase, SWITCHED);
			}
			et_futex_wake((uint32_t *)&c->phase, INT32_MAX);
			moved++;
		}
		if (fake.please)
			et_please(NULL, true, ETRAN_PATH_OK);
		if (moved || (atomic_load(&waiters) && et_rx_poll()))
			et_wake_all();
	}
	return arg;
}

static void start_daemon(void)
{
	static _Atomic long started; /* pid */
	long pid = et_sys3(SYS_getpid, 0, 0, 0), old = atomic_load(&started);
	pthread_t thread;
	sigset_t all, mask;

	if (old == pid || !atomic_compare_exchange_strong(&started, &old, pid))
		return;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &mask);
	if (pthread_create(&thread, NULL, daemon_main, NULL) == 0)
		pthread_detach(thread);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
}

struct et_conn *et_conn_open(int fd, void *user, enum etran_path_reason why)
{
	if (!fake.up || why == ETRAN_PATH_POLICY)
		return NULL;
	start_daemon();
	for (int i = 0; i < CONNS; i++) {
		struct et_conn *c = &conns[i];
		uint32_t none = FREE;

		if (!atomic_compare_exchange_strong(&c->phase, &none, OBSERVING))
			continue;
		c->fd = et_sys_fcntl(fd, F_DUPFD_CLOEXEC, 500);
		c->reads = 0;
		atomic_store(&c->want, ETRAN_PATH_OK);
		atomic_store(&c->reported, 0);
		atomic_store(&c->user, user);
		atomic_fetch_add(&fake.opened, 1);
		atomic_fetch_add(&fake.inherited, why == ETRAN_PATH_FORK);
		return c;
	}
	return NULL;
}

enum et_progress et_conn_progress(struct et_conn *c)
{
	switch (atomic_load(&c->phase)) {
	case OBSERVING:
		return ET_CAN_SWITCH;
	case SWITCHING:
		return ET_WAIT;
	case SWITCHED:
		return ET_COMMIT;
	case FAST:
		return ET_FAST;
	default:
		return ET_GONE;
	}
}

bool et_conn_lost(const struct et_conn *c)
{
	(void)c;
	return false;
}

enum etran_path_reason et_conn_reason(struct et_conn *c)
{
	return atomic_load(&c->phase) == ABORTED ? ETRAN_PATH_BUSY : ETRAN_PATH_REQUEST;
}

int et_conn_switch(struct et_conn *c)
{
	uint32_t from = OBSERVING;

	c->decide_ns = et_now_ns() + (fake.switch_us ? random32() % fake.switch_us : 0) * 1000ull;
	return atomic_compare_exchange_strong(&c->phase, &from, SWITCHING) ? 0 : -EAGAIN;
}

enum et_progress et_conn_await(struct et_conn *c, uint32_t timeout_us)
{
	uint64_t end = timeout_us == UINT32_MAX ? UINT64_MAX : et_now_ns() + timeout_us * 1000ull;

	while (atomic_load(&c->phase) == SWITCHING && et_now_ns() < end) {
		const struct timespec t = {.tv_nsec = 20000};

		et_futex_wait((uint32_t *)&c->phase, SWITCHING, &t);
	}
	return et_conn_progress(c);
}

void et_conn_commit(struct et_conn *c)
{
	uint32_t from = SWITCHED;

	if (atomic_compare_exchange_strong(&c->phase, &from, FAST))
		atomic_fetch_add(&fake.switched, 1);
}

int et_conn_demote(struct et_conn *c, enum etran_path_reason why)
{
	(void)why;
	if (!et_lock(&c->lock))
		return -EAGAIN;
	if (atomic_load(&c->phase) == FAST) {
		low_water(c, 1);
		atomic_store(&c->phase, DEMOTED);
		atomic_fetch_add(&fake.demoted, 1);
	}
	et_unlock(&c->lock);
	if (fake.fail_demote) {
		fake.fail_demote--;
		return -ECONNRESET;
	}
	return 0;
}

void et_conn_await_gone(struct et_conn *c)
{
	(void)c;
}

void et_conn_release(struct et_conn *c)
{
	if (atomic_load(&c->phase) == SWITCHED)
		low_water(c, 1);
	atomic_store(&c->user, NULL);
	et_sys_close(c->fd);
	atomic_fetch_add(&fake.released, 1);
	atomic_store(&c->phase, FREE);
}

enum etran_path_reason et_conn_wants_demote(struct et_conn *c)
{
	return atomic_load(&c->want);
}

bool fake_is_fast(const struct et_conn *c)
{
	return atomic_load(&c->phase) == FAST;
}

void fake_want_demote(struct et_conn *c, enum etran_path_reason why)
{
	atomic_store(&c->want, why);
	et_ready(atomic_load(&c->user));
}

/* Nothing comes any more, or an error. */
static void look_for_end(struct et_conn *c, ssize_t r)
{
	if (r == 0 || (r < 0 && r != -EAGAIN))
		atomic_store(&c->want, ETRAN_PATH_PEER_FIN);
}

ssize_t et_conn_recv(struct et_conn *c, const struct iovec *iov, int iovcnt, bool peek)
{
	struct msghdr m = {.msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)iovcnt};
	ssize_t r;

	if (!et_lock(&c->lock))
		return -EAGAIN;
	if (atomic_load(&c->phase) != FAST) {
		et_unlock(&c->lock);
		return ET_KERNEL;
	}
	r = et_sys_recvmsg(c->fd, &m, MSG_DONTWAIT | (peek ? MSG_PEEK : 0));
	look_for_end(c, r);
	atomic_store(&c->reported, (uint32_t)et_conn_readable(c));
	if (fake.demote_every && ++c->reads % fake.demote_every == 0)
		atomic_store(&c->want, ETRAN_PATH_REQUEST);
	et_unlock(&c->lock);
	if (r <= 0)
		return -EAGAIN;
	atomic_fetch_add(&fake.fast_in, (unsigned long)r);
	return r;
}

ssize_t et_conn_discard(struct et_conn *c, size_t n)
{
	char sink[4096];
	struct iovec iov = {sink, n < sizeof(sink) ? n : sizeof(sink)};

	return et_conn_recv(c, &iov, 1, false);
}

ssize_t et_conn_send(struct et_conn *c, const struct iovec *iov, int iovcnt)
{
	struct msghdr m = {.msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)iovcnt};
	ssize_t r;

	if (!et_lock(&c->lock))
		return -EAGAIN;
	if (atomic_load(&c->phase) != FAST) {
		et_unlock(&c->lock);
		return ET_KERNEL;
	}
	r = et_sys_sendmsg(c->fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
	look_for_end(c, r);
	et_unlock(&c->lock);
	if (r <= 0)
		return -EAGAIN;
	atomic_fetch_add(&fake.fast_out, (unsigned long)r);
	return r;
}

size_t et_conn_readable(const struct et_conn *c)
{
	int n = 0;

	et_sys3(SYS_ioctl, c->fd, FIONREAD, (long)&n);
	return n > 0 ? (size_t)n : 0;
}

size_t et_conn_writable(const struct et_conn *c)
{
	struct pollfd p = {.fd = c->fd, .events = POLLOUT};
	const struct timespec now = {0};

	return et_sys_ppoll(&p, 1, &now) == 1 ? 65536 : 0;
}

size_t et_conn_unsent(const struct et_conn *c)
{
	int n = 0;

	et_sys3(SYS_ioctl, c->fd, SIOCOUTQ, (long)&n);
	return (size_t)n;
}

void et_conn_want_room(struct et_conn *c)
{
	atomic_store(&c->wants_room, true);
}

void et_conn_kept_options(const struct et_conn *c, uint32_t *keepalive, uint32_t *user_timeout)
{
	(void)c;
	*keepalive = 1;
	*user_timeout = 4711;
}

static unsigned poll_conn(struct et_conn *c)
{
	void *user = atomic_load(&c->user);
	unsigned moved = 0;
	size_t n;
	char octet;

	if (atomic_load(&c->phase) != FAST || !user || !et_trylock(&c->lock))
		return 0;
	n = et_conn_readable(c);
	if (n && n != atomic_exchange(&c->reported, (uint32_t)n))
		moved++;
	if (!n && !atomic_load(&c->want)) {
		look_for_end(c, et_sys_recv(c->fd, &octet, 1, MSG_PEEK | MSG_DONTWAIT));
		moved += atomic_load(&c->want) != ETRAN_PATH_OK;
	}
	if (atomic_load(&c->wants_room) && et_conn_writable(c)) {
		atomic_store(&c->wants_room, false);
		moved++;
	}
	et_unlock(&c->lock);
	if (moved)
		et_ready(user);
	return moved;
}

/* The rings of this transport are kernel sockets: only a look can tell. */
bool et_rx_pending(void)
{
	return true;
}

unsigned et_rx_poll(void)
{
	unsigned moved = 0;

	if (!et_trylock(&rx_lock))
		return 0;
	for (int i = 0; i < CONNS; i++)
		moved += poll_conn(&conns[i]);
	et_unlock(&rx_lock);
	if (moved)
		et_wake_others();
	return moved;
}

void et_flush(void)
{
}

int et_wait_begin(struct et_waiter *w)
{
	if (own_fd < 0)
		own_fd = (int)et_sys3(SYS_eventfd2, 0, EFD_CLOEXEC | EFD_NONBLOCK, 0);
	w->fd = own_fd;
	if (w->fd < 0)
		return w->fd;
	if (!et_lock(&waiters_lock))
		return -EAGAIN;
	w->sleeper = atomic_load(&waiters);
	atomic_store(&waiters, w);
	et_unlock(&waiters_lock);
	return 0;
}

void et_wait_end(struct et_waiter *w)
{
	uint64_t count;

	if (!et_lock(&waiters_lock))
		return;
	if (atomic_load(&waiters) == w)
		atomic_store(&waiters, w->sleeper);
	for (struct et_waiter *p = atomic_load(&waiters); p; p = p->sleeper)
		if (p->sleeper == w)
			p->sleeper = w->sleeper;
	et_unlock(&waiters_lock);
	et_sys_read(w->fd, &count, sizeof(count));
}

int et_wait_fds(int *fds, int max)
{
	(void)fds;
	(void)max;
	return 0;
}

void et_wake_all(void)
{
	const uint64_t one = 1;

	if (!atomic_load(&waiters) || !et_lock(&waiters_lock))
		return;
	for (struct et_waiter *w = atomic_load(&waiters); w; w = w->sleeper)
		et_sys_write(w->fd, &one, sizeof(one));
	et_unlock(&waiters_lock);
}

void et_wake_others(void)
{
	et_wake_all();
}

void et_after_fork_child(void)
{
	for (int i = 0; i < CONNS; i++)
		if (atomic_load(&conns[i].phase) != FREE)
			et_sys_close(conns[i].fd);
	memset(conns, 0, sizeof(conns));
	fake.up = false;
	own_fd = -1;
	et_tid_cache = 0;
}

int et_demote_foreign(int fd)
{
	int low = 1;

	return (int)et_sys6(SYS_setsockopt, fd, SOL_SOCKET, SO_RCVLOWAT, (long)&low, sizeof(low),
			    0);
}
