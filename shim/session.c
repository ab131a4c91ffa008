/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The session with the daemon, driven by Go's thread: registration, the shared
 * mappings, the rings, and what the daemon asks for. See session.h.
 */
#include "fdtable.h"

#include "session.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if_xdp.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "config.h"
#include "control.h"
#include "core.h"

#ifndef SOL_XDP
#define SOL_XDP 283
#endif

/*
 * What a registration mapped. Other threads may look at any time, so nothing is
 * unmapped: when a registration ends, empty memory takes its place.
 */
#define MAX_MAPPINGS (3 + 2 * ET_QUEUES)
static struct {
	void *at;
	size_t length;
} mapping[MAX_MAPPINGS];
static unsigned mappings;

static void forget_mappings(void)
{
	while (mappings > 0) {
		mappings--;
		et_sys6(SYS_mmap, (long)mapping[mappings].at, (long)mapping[mappings].length,
			PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
	}
}

static void close_hidden(int fd)
{
	et_fd_unhide(fd);
	et_sys_close(fd);
}

/* A shared mapping that children do not inherit and cores do not contain. */
static void *map(int fd, size_t n, int prot, uint64_t offset)
{
	void *p = et_sys_mmap(n, prot, MAP_SHARED, fd, offset);

	if (et_sys_error(p))
		return NULL;
	if (mappings < MAX_MAPPINGS) {
		mapping[mappings].at = p;
		mapping[mappings++].length = n;
	}
	et_sys3(SYS_madvise, (long)p, (long)n, MADV_DONTFORK);
	et_sys3(SYS_madvise, (long)p, (long)n, MADV_DONTDUMP);
	return p;
}

static bool arena_valid(const struct etran_arena *a, uint64_t size)
{
	return a->magic == ETRAN_ABI_MAGIC && a->version == ETRAN_ABI_VERSION && a->size == size &&
	       a->slots == ETRAN_APP_SLOTS && a->stash_size == ETRAN_STASH_SIZE &&
	       a->conn_stride >= sizeof(struct etran_aconn);
}

static void attach_conns(struct etran_arena *a)
{
	uint8_t *base = (uint8_t *)a;

	et_core.stash = (struct etran_stash *)(base + a->stash_offset);
	for (uint32_t i = 0; i < ETRAN_APP_SLOTS; i++) {
		struct et_conn *c = &et_core.conn[i];

		memset(c, 0, sizeof(*c));
		c->slot = i;
		c->shared = (struct etran_aconn *)(base + a->conns_offset + i * a->conn_stride);
		c->pub = &et_core.pub[i];
		c->snd_ring = base + a->buffers_offset + i * a->buffer_stride;
		c->rcv_ring = c->snd_ring + a->snd_size;
	}
	et_core.arena = a;
}

static void bring_up(int sock, const struct etran_msg_registered *m)
{
	et_config_policy(m->promote_after, m->promote_bytes, m->spin_us);
	atomic_store(&et_core.lost_ns, 0);
	atomic_store(&et_core.control, sock);
	atomic_store(&et_core.up, true);
}

/* fds: arena, published map, wake eventfd. They are consumed. */
static int attach(int sock, const struct etran_msg_registered *m, const int *fds)
{
	struct etran_arena *a = map(fds[0], m->arena_size, PROT_READ | PROT_WRITE, 0);
	const struct etran_pub *pub = map(fds[1], m->pub_size, PROT_READ, 0);

	et_sys_close(fds[0]);
	et_sys_close(fds[1]);
	if (!a || !pub || !arena_valid(a, m->arena_size) || m->slots <= ETRAN_FIRST_SLOT ||
	    m->slots > ETRAN_APP_SLOTS || m->pub_size < ETRAN_APP_SLOTS * sizeof(*pub)) {
		et_sys_close(fds[2]);
		return -EPROTO;
	}
	et_core.pub = pub;
	et_core.slots = m->slots;
	et_core.wake = et_fd_hide(fds[2]);
	et_core.app = m->app;
	et_core.generation = m->generation;
	attach_conns(a);
	bring_up(sock, m);
	return 0;
}

static int await_registered(int sock, bool resuming)
{
	struct etran_msg_registered m;
	struct pollfd p = {.fd = sock, .events = POLLIN};
	const struct timespec limit = {.tv_sec = 2};
	int fds[ET_CONTROL_MAX_FDS], n = ET_CONTROL_MAX_FDS;
	bool registered;
	long got;

	if (et_sys_ppoll(&p, 1, &limit) <= 0)
		return -ETIMEDOUT;
	got = et_control_recv(sock, &m, sizeof(m), fds, &n);
	registered = got > 0 && et_control_valid(&m, (size_t)got, sizeof(m), ETRAN_MSG_REGISTERED);
	if (registered && n == 3 && !resuming)
		return attach(sock, &m, fds);
	if (registered && n == 0 && resuming) {
		bring_up(sock, &m);
		et_conn_resay();
		et_wake_all();
		return 0;
	}
	while (n > 0)
		et_sys_close(fds[--n]);
	if (got == sizeof(struct etran_msg_refused) && m.h.type == ETRAN_MSG_REFUSED)
		return -EACCES;
	return got < 0 ? (int)got : -EPROTO;
}

static bool still_fast(void)
{
	if (!et_core.arena)
		return false;
	for (uint32_t i = ETRAN_FIRST_SLOT; i < ETRAN_APP_SLOTS; i++)
		if (et_core.conn[i].user)
			return true;
	return false;
}

/* Connect and register: anew, or as whom the last daemon knew. */
static int greet(const char *run_dir, bool resuming)
{
	struct etran_msg_register m = {
		.h = {ETRAN_ABI_MAGIC, ETRAN_ABI_VERSION, ETRAN_MSG_REGISTER}};
	int sock = et_control_connect(run_dir), err;

	if (sock < 0) /* no refusal, whatever it is, of those who have been in */
		return resuming ? -EAGAIN : sock;
	sock = et_fd_hide(sock);
	et_sys6(SYS_prctl, PR_GET_NAME, (long)m.comm, 0, 0, 0, 0);
	if (resuming) {
		m.flags = ETRAN_REGISTER_RESUME | (et_rings_up() ? ETRAN_REGISTER_RINGS : 0);
		m.app = et_core.app;
		m.generation = et_core.generation;
	}
	err = et_control_send(sock, &m, sizeof(m), -1);
	if (!err)
		err = await_registered(sock, resuming);
	if (!err)
		return sock;
	close_hidden(sock);
	return err;
}

/*
 * The rings are of no use any more, and their descriptors keep the device's
 * queues from everybody. A thread may still be about to write to the tap: its
 * number gets a file that takes anything, until there is another tap.
 */
static void give_up_rings(void)
{
	struct et_context *x = &et_core.context;
	int harmless;

	if (!et_rings_up() || !et_lock(&x->lock))
		return;
	atomic_store(&et_core.rings_up, false);
	for (unsigned q = 0; q < x->queues; q++)
		close_hidden(x->queue[q].fd);
	__atomic_store_n(&x->queues, 0, __ATOMIC_RELEASE);
	harmless = (int)et_sys3(SYS_eventfd2, 0, EFD_CLOEXEC | EFD_NONBLOCK, 0);
	if (harmless >= 0) {
		et_sys3(SYS_dup3, harmless, et_core.tap, O_CLOEXEC);
		et_sys_close(harmless);
	}
	et_unlock(&x->lock);
	/* Whoever sleeps on the sockets keeps them open. */
	et_assist_kick();
	et_wake_all();
}

/*
 * The daemon does not know us: what we were registered for is lost. -EBUSY until
 * the program's threads have let go of it.
 */
static int start_afresh(void)
{
	const int wake = et_core.wake;

	if (et_core.generation) {
		et_conn_fail_all();
		et_core.generation = 0;
	}
	et_let_go();
	if (still_fast())
		return -EBUSY;
	give_up_rings();
	et_core.wake = -1;
	if (wake >= 0)
		close_hidden(wake);
	forget_mappings();
	return 0;
}

int et_session_open(const char *run_dir)
{
	int sock;

	if (et_core.generation) {
		sock = greet(run_dir, true);
		if (sock != -EACCES)
			return sock;
	}
	if (et_core.arena) {
		int err = start_afresh();

		if (err)
			return err;
	}
	return greet(run_dir, false);
}

static void *map_ring(int fd, const struct xdp_ring_offset *o, uint64_t entries, uint64_t size,
		      uint64_t page_offset)
{
	return map(fd, o->desc + entries * size, PROT_READ | PROT_WRITE, page_offset);
}

static bool open_queue(struct et_queue *q, int fd, const struct etran_msg_rings *m)
{
	struct xdp_mmap_offsets o;
	socklen_t n = sizeof(o);
	uint8_t *rx, *fill;

	if (et_sys6(SYS_getsockopt, fd, SOL_XDP, XDP_MMAP_OFFSETS, (long)&o, (long)&n, 0) < 0)
		return false;
	rx = map_ring(fd, &o.rx, m->ring_size, sizeof(struct xdp_desc), XDP_PGOFF_RX_RING);
	fill = map_ring(fd, &o.fr, m->fill_size, sizeof(uint64_t), XDP_UMEM_PGOFF_FILL_RING);
	if (!rx || !fill)
		return false;
	q->fd = fd;
	q->rx_producer = (uint32_t *)(rx + o.rx.producer);
	q->rx_consumer = (uint32_t *)(rx + o.rx.consumer);
	q->rx_desc = (const struct xdp_desc *)(rx + o.rx.desc);
	q->fill_producer = (uint32_t *)(fill + o.fr.producer);
	q->fill_addr = (uint64_t *)(fill + o.fr.desc);
	q->filled = q->taken = q->reported = 0;
	return true;
}

/* All frames are ours. */
static void own_frames(struct et_context *x, uint32_t frames)
{
	const uint32_t room = sizeof(x->spare) / sizeof(x->spare[0]);

	for (x->spares = 0; x->spares < frames && x->spares < room; x->spares++)
		x->spare[x->spares] = (uint64_t)x->spares * ETRAN_FRAME_SIZE;
}

/* fds: one AF_XDP socket per queue. They are consumed. */
static int add_queues(struct et_context *x, const struct etran_msg_rings *m, int *fds)
{
	for (unsigned i = 0; i < m->queues; i++) {
		struct et_queue *q = &x->queue[x->queues + i];

		fds[i] = et_fd_hide(fds[i]);
		if (!open_queue(q, fds[i], m))
			return -ENOMEM;
		q->ring = m->first_ring + i;
		q->posted = q->peak = q->calm = 0;
		q->target = ET_POSTED_MIN;
	}
	if (!et_lock(&x->lock))
		return -EAGAIN;
	for (unsigned i = 0; i < m->queues; i++)
		et_post_frames(x, &x->queue[x->queues + i]);
	__atomic_store_n(&x->queues, x->queues + m->queues, __ATOMIC_RELEASE);
	et_unlock(&x->lock);
	return 0;
}

/* The first rings. fds: UMEM, tap, sockets. */
static int open_rings(struct et_context *x, const struct etran_msg_rings *m, int *fds, int n)
{
	int err;

	if (n != (int)m->queues + 2 || m->frame_size != ETRAN_FRAME_SIZE ||
	    m->frames < m->queues * m->ring_size || m->fill_size < m->ring_size)
		return -EPROTO;
	x->umem = map(fds[0], (size_t)m->frames * ETRAN_FRAME_SIZE, PROT_READ | PROT_WRITE, 0);
	if (!x->umem)
		return -ENOMEM;
	x->ring_mask = m->ring_size - 1;
	x->fill_mask = m->fill_size - 1;
	own_frames(x, m->frames);
	err = add_queues(x, m, fds + 2);
	if (err)
		return err;
	if (et_core.tap >= 0)
		close_hidden(et_core.tap); /* of an earlier registration */
	et_core.tap = fds[1] = et_fd_hide(fds[1]);
	et_sys_close(fds[0]);
	atomic_store(&et_core.rings_up, true);
	return 0;
}

/* Further queues over the same frames. fds: sockets. */
static int more_rings(struct et_context *x, const struct etran_msg_rings *m, int *fds, int n)
{
	if (n != (int)m->queues || x->queues + m->queues > ET_QUEUES ||
	    m->ring_size != x->ring_mask + 1 || m->fill_size != x->fill_mask + 1)
		return -EPROTO;
	return add_queues(x, m, fds);
}

static int take_rings(int sock, const struct etran_msg_rings *m, int *fds, int n)
{
	const struct etran_msg_slot ready = {
		.h = {ETRAN_ABI_MAGIC, ETRAN_ABI_VERSION, ETRAN_MSG_RINGS_READY}};
	struct et_context *x = &et_core.context;
	bool further = m->frames == 0;
	int err;

	if (further != et_rings_up() || m->queues == 0 || m->queues > ETRAN_MAX_QUEUES ||
	    m->first_ring + m->queues > ETRAN_MAX_RINGS)
		return -EPROTO;
	err = further ? more_rings(x, m, fds, n) : open_rings(x, m, fds, n);
	if (err)
		return err;
	et_assist_start();
	et_wake_all();
	/* Not delivered: frames go on coming by the rings that were there. */
	et_control_send(sock, &ready, sizeof(ready), -1);
	return 0;
}

static void please(const struct etran_msg_slot *m)
{
	bool promote = m->h.type == ETRAN_MSG_PLEASE_PROMOTE;

	if (m->slot == 0)
		et_please(NULL, promote, m->reason);
	else if (m->slot >= ETRAN_FIRST_SLOT && m->slot < ETRAN_APP_SLOTS &&
		 et_core.conn[m->slot].user)
		et_please(et_core.conn[m->slot].user, promote, m->reason);
}

static int act(int sock, const void *msg, size_t got, int *fds, int n)
{
	const struct etran_msg_header *h = msg;

	if (et_control_valid(msg, got, sizeof(struct etran_msg_rings), ETRAN_MSG_RINGS) &&
	    take_rings(sock, msg, fds, n) == 0)
		return 0;
	while (n > 0)
		et_sys_close(fds[--n]);
	if (et_control_valid(msg, got, sizeof(struct etran_msg_slot), ETRAN_MSG_PLEASE_DEMOTE) ||
	    et_control_valid(msg, got, sizeof(struct etran_msg_slot), ETRAN_MSG_PLEASE_PROMOTE)) {
		please(msg);
		return 0;
	}
	return h->magic == ETRAN_ABI_MAGIC && h->version == ETRAN_ABI_VERSION ? 0 : -EPROTO;
}

int et_session_step(int fd, int timeout_ms)
{
	union {
		struct etran_msg_header h;
		struct etran_msg_rings rings;
		struct etran_msg_slot slot;
		struct etran_msg_registered largest;
	} m;
	struct pollfd p = {.fd = fd, .events = POLLIN};
	const struct timespec t = {timeout_ms / 1000, timeout_ms % 1000 * 1000000L};
	int fds[ET_CONTROL_MAX_FDS], n = ET_CONTROL_MAX_FDS;
	long got = et_sys_ppoll(&p, 1, timeout_ms < 0 ? NULL : &t);

	if (got == 0 || got == -EINTR)
		return 0;
	got = got < 0 ? got : et_control_recv(fd, &m, sizeof(m), fds, &n);
	if (got <= 0)
		return got < 0 ? (int)got : -EPIPE;
	if ((size_t)got < sizeof(m.h))
		return -EPROTO;
	return act(fd, &m, (size_t)got, fds, n);
}

void et_session_close(int fd)
{
	const struct timespec nap = {.tv_nsec = 100000};

	atomic_store(&et_core.lost_ns, et_now_ns());
	atomic_store(&et_core.up, false);
	atomic_store(&et_core.control, -1);
	/* A thread that was stopped in the middle of a request is not waited for
	 * for ever. */
	for (int i = 0; i < 10000 && atomic_load(&et_core.telling); i++)
		et_sys_ppoll(NULL, 0, &nap);
	close_hidden(fd);
	et_conn_fail_switches(false);
}

void et_session_missed(void)
{
	et_conn_fail_switches(true);
}

void et_after_fork_child(void)
{
	struct et_context *x = &et_core.context;

	/* The parent's queues must not live on with us: its successor on this
	 * device could not bind them. The mappings are not inherited. */
	if (atomic_load(&et_core.control) >= 0)
		et_sys_close(atomic_load(&et_core.control));
	if (et_core.wake >= 0)
		et_sys_close(et_core.wake);
	if (et_core.tap >= 0)
		et_sys_close(et_core.tap);
	if (et_rings_up()) {
		for (unsigned q = 0; q < et_queues(x); q++)
			et_sys_close(x->queue[q].fd);
	}
	atomic_store(&et_core.up, false);
	atomic_store(&et_core.rings_up, false);
	atomic_store(&et_core.control, -1);
	atomic_store(&et_core.telling, 0);
	et_core.tap = et_core.wake = -1;
	et_core.generation = 0;
	mappings = 0;
	et_core.arena = NULL;
	et_core.pub = NULL;
	et_tid_cache = 0;
	et_wait_after_fork();
}

int et_demote_foreign(int fd)
{
	struct etran_msg_slot m = {.h = {ETRAN_ABI_MAGIC, ETRAN_ABI_VERSION,
					 ETRAN_MSG_DEMOTE_FOREIGN},
				   .reason = ETRAN_PATH_FORK};
	struct etran_msg_done done;
	const struct timespec limit = {.tv_sec = 2};
	struct pollfd p = {.events = POLLIN};
	int n = 0, sock = et_control_connect(et_config.run_dir), err;

	if (sock < 0)
		return sock;
	p.fd = sock;
	err = et_control_send(sock, &m, sizeof(m), fd);
	if (!err && et_sys_ppoll(&p, 1, &limit) <= 0)
		err = -ETIMEDOUT;
	if (!err &&
	    !et_control_valid(&done, (size_t)et_control_recv(sock, &done, sizeof(done), NULL, &n),
			      sizeof(done), ETRAN_MSG_DONE))
		err = -EPROTO;
	if (!err)
		err = -done.error;
	et_sys_close(sock);
	return err;
}
