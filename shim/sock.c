/* SPDX-License-Identifier: Apache-2.0 */
#include "sock.h"

#include <limits.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "config.h"
#include "epoll.h"
#include "pool.h"
#include "process.h"
#include "sys.h"

#define MAX_SOCKS (1u << 16)
/* So much makes it worth to start the control side: a child that answers once
 * must not pay for it. */
#define FIRST_EXCHANGES 2u
#define FIRST_BYTES 16384u
/* Sockets that are being switched at the same time. */
#define MAX_MOVING 128
/* Exchanges to wait after a failed promotion or a demotion; doubles. */
#define FIRST_BACK_OFF 64u
/* So many sends without an answer are a one-way stream. */
#define ONE_WAY_SENDS 16
/* The parent of a new process has its descriptor of the connection for a moment. */
#define INHERITED_BACK_OFF 4u
#define LAST_BACK_OFF (1u << 20)
/* The same for sockets that only send or only receive. */
#define BYTES_PER_EXCHANGE 16384u
/* How long a demotion waits for threads that are inside a fast call. They hold
 * no lock and never sleep there; only an interrupted one can be that slow. */
#define DRAIN_NS 10000000u

static struct et_pool pool = {.size = sizeof(struct et_sock), .max = MAX_SOCKS};
_Atomic uint32_t et_fast_count;
_Atomic uint32_t et_moving_count;
/* Sockets on their way, or with a slot to be given up when nobody is inside. */
static struct et_sock *_Atomic moving[MAX_MOVING];

/* Those who wait for a mode to end do so on the lock: no wake-up needed here. */
static void set_mode(struct et_sock *s, enum et_mode to)
{
	enum et_mode from = atomic_load(&s->mode);

	if (to == ET_MODE_FAST && from != ET_MODE_FAST)
		atomic_fetch_add(&et_fast_count, 1);
	else if (to != ET_MODE_FAST && from == ET_MODE_FAST)
		atomic_fetch_sub(&et_fast_count, 1);
	atomic_store(&s->mode, to);
}

/* ---- life ---------------------------------------------------------------- */

static void start_over(struct et_sock *s, bool nonblock)
{
	atomic_store(&s->mode, ET_MODE_KERNEL);
	atomic_store(&s->nonblock, nonblock);
	atomic_store(&s->never, !et_policy.promote);
	atomic_store(&s->starved, false);
	atomic_store(&s->asked_room, false);
	s->closing = s->broken = s->observed = s->inherited = s->asked = false;
	s->late = NULL;
	atomic_store(&s->error, 0);
	atomic_store(&s->please, ETRAN_PATH_OK);
	atomic_store(&s->conn, NULL);
	s->lock = (struct et_lock){0};
	s->exchanges = s->next_try = s->unflushed = 0;
	s->back_off = FIRST_BACK_OFF;
	s->bytes = s->next_bytes = 0;
	s->born = atomic_load(&et_fork_epoch);
	for (int i = 0; i < 2; i++) {
		atomic_store(&s->timeout[i], ET_TIMEOUT_UNKNOWN);
		s->spin[i] = (struct et_spin){0};
		atomic_store(&s->reg[i], NULL);
	}
	atomic_store(&s->file.fds, 0);
	/* The last step: from here on it can be pinned. */
	atomic_store(&s->file.users, ET_PIN);
}

bool et_is_standard(int fd)
{
	return fd <= STDERR_FILENO;
}

void et_sock_create(int fd, bool nonblock)
{
	struct et_sock *s;

	if (!et_config.active || (uint32_t)fd >= ET_FD_MAX)
		return;
	/* The number is new: whatever we thought it was is gone. */
	if (et_unlikely(et_fd_entry(fd)))
		et_sock_close(fd, et_entry_kind(et_fd_entry(fd)));
	if (et_is_standard(fd))
		return;
	s = et_pool_get(&pool);
	if (!s)
		return;
	start_over(s, nonblock);
	et_fd_set(fd, &s->file, ET_FD_SOCK);
	et_file_put(&s->file, ET_FD_SOCK, ET_PIN);
}

void et_sock_free(struct et_sock *s)
{
	et_pool_put(&pool, s);
}

static void remove_regs(struct et_sock *s, bool from_kernel)
{
	for (int i = 0; i < ET_SOCK_REGS; i++) {
		struct et_reg *r = atomic_load(&s->reg[i]);

		if (r)
			et_reg_remove(r, from_kernel);
	}
}

static void await_switch_locked(struct et_sock *s);

/* The last descriptor of this process goes. */
static void end_locked(struct et_sock *s)
{
	struct et_conn *c, *last;

	s->closing = true;
	atomic_store(&s->never, true);
	await_switch_locked(s);
	last = atomic_load(&s->conn);
	et_sock_demote_locked(s, ETRAN_PATH_CLOSE);
	c = atomic_load(&s->conn);
	/* The daemon may hold the file a little longer than the program, so the
	 * kernel would not take it out of its sets by itself. */
	remove_regs(s, s->observed);
	if (c) {
		atomic_store(&s->conn, NULL);
		et_conn_release(c);
	}
	/* The program's close() is to be the last one: it lingers, and frees the
	 * port. */
	if (last)
		et_conn_await_gone(last);
}

/* A number goes, the file stays: what epoll knows under this number is the
 * kernel's to say. */
static void lose_number_locked(struct et_sock *s, int fd)
{
	for (int i = 0; i < ET_SOCK_REGS; i++) {
		struct et_reg *r = atomic_load(&s->reg[i]);

		if (!r || r->fd != fd)
			continue;
		atomic_store(&s->never, true);
		await_switch_locked(s);
		et_sock_demote_locked(s, ETRAN_PATH_API);
		et_reg_remove(r, false);
	}
}

static void close_sock(int fd, struct et_sock *s)
{
	bool foreign = et_sock_mode(s) == ET_MODE_FOREIGN;

	if (!foreign && et_lock(&s->lock)) {
		if (atomic_load(&s->file.fds) == 1)
			end_locked(s);
		else
			lose_number_locked(s, fd);
		et_unlock(&s->lock);
	}
	if (et_fd_clear(fd, &s->file, ET_FD_SOCK) >= 0)
		et_file_put(&s->file, ET_FD_SOCK, ET_PIN);
}

void et_sock_close(int fd, enum et_kind kind)
{
	struct et_sock *s;

	if (kind == ET_FD_EPOLL) {
		et_epoll_close(fd);
		return;
	}
	if (kind == ET_FD_HIDDEN) {
		et_fd_unhide(fd);
		return;
	}
	s = et_fd_pin(fd, kind, ET_PIN);
	if (!s)
		return;
	if (kind == ET_FD_SOCK)
		close_sock(fd, s);
	else if (et_fd_clear(fd, &s->file, kind) >= 0)
		et_file_put(&s->file, kind, ET_PIN);
	et_file_put(&s->file, kind, ET_PIN);
}

void et_sock_drop_regs(struct et_sock *s)
{
	if (!et_lock(&s->lock))
		return;
	remove_regs(s, false);
	et_unlock(&s->lock);
}

void et_sock_forget(struct et_sock *s)
{
	et_sock_drop_regs(s);
	for (int fd = atomic_load(&s->file.fd); et_fd_clear(fd, &s->file, ET_FD_SOCK) >= 0;
	     fd = atomic_load(&s->file.fd))
		et_file_put(&s->file, ET_FD_SOCK, ET_PIN);
}

/* ---- policy -------------------------------------------------------------- */

static bool lasting(enum etran_path_reason why)
{
	switch (why) {
	case ETRAN_PATH_POLICY:
	case ETRAN_PATH_NOT_IPV4:
	case ETRAN_PATH_LOCAL:
	case ETRAN_PATH_NO_DEVICE:
	case ETRAN_PATH_OPTION:
	case ETRAN_PATH_FILTER:
	case ETRAN_PATH_CLOSE:
	case ETRAN_PATH_PEER_FIN:
	case ETRAN_PATH_PEER_RST:
	case ETRAN_PATH_FORK:
	case ETRAN_PATH_PROTOCOL:
	case ETRAN_PATH_DESTROYED:
	case ETRAN_PATH_NAT:
	case ETRAN_PATH_IPSEC:
		return true;
	default:
		return false;
	}
}

static void settle_down(struct et_sock *s)
{
	atomic_store(&s->never, true);
	for (int i = 0; i < ET_SOCK_REGS; i++) {
		struct et_reg *r = atomic_load(&s->reg[i]);

		if (r)
			et_reg_settle(r);
	}
}

static void postpone(struct et_sock *s)
{
	s->next_try = s->exchanges + s->back_off;
	s->next_bytes = s->bytes + (uint64_t)s->back_off * BYTES_PER_EXCHANGE;
}

/* After a refusal or a demotion: when to try again. Lock held. */
static void back_off(struct et_sock *s, enum etran_path_reason why)
{
	if (lasting(why)) {
		settle_down(s);
		return;
	}
	postpone(s);
	if (s->back_off < LAST_BACK_OFF)
		s->back_off *= 2;
}

static bool due(const struct et_sock *s)
{
	uint32_t exchanges = s->next_try ? s->next_try : et_policy.promote_after;
	uint64_t bytes = s->next_bytes ? s->next_bytes : et_policy.promote_bytes;

	return s->exchanges >= exchanges || s->bytes >= bytes;
}

static bool regs_promotable(struct et_sock *s)
{
	for (int i = 0; i < ET_SOCK_REGS; i++) {
		struct et_reg *r = atomic_load(&s->reg[i]);

		if (r && !et_reg_promotable(r))
			return false;
	}
	return true;
}

static bool registered(const struct et_sock *s)
{
	for (int i = 0; i < ET_SOCK_REGS; i++)
		if (atomic_load(&s->reg[i]))
			return true;
	return false;
}

static void open_locked(struct et_sock *s)
{
	enum etran_path_reason why = ETRAN_PATH_OK;
	int fd = atomic_load(&s->file.fd);
	struct et_conn *c;

	/* The daemon looks who has it; what forks from now on we know ourselves. */
	if (s->inherited)
		s->born = atomic_load(&et_fork_epoch);
	if (s->late || !regs_promotable(s) || et_process_shares(fd, s->born)) {
		postpone(s);
		return;
	}
	if (!et_config_allows(fd))
		why = ETRAN_PATH_POLICY;
	else if (s->inherited)
		why = ETRAN_PATH_FORK;
	c = et_conn_open(fd, s, why);
	if (!c) {
		back_off(s, ETRAN_PATH_LIMIT);
		return;
	}
	s->observed = true;
	atomic_store(&s->conn, c);
}

/* ---- to the fast path ---------------------------------------------------- */

static bool moving_add(struct et_sock *s)
{
	for (int i = 0; i < MAX_MOVING; i++) {
		struct et_sock *none = NULL;

		if (atomic_load(&moving[i]) ||
		    !atomic_compare_exchange_strong(&moving[i], &none, s))
			continue;
		atomic_fetch_add(&s->file.users, ET_PIN);
		atomic_fetch_add(&et_moving_count, 1);
		return true;
	}
	return false;
}

static void moving_remove(struct et_sock *s)
{
	for (int i = 0; i < MAX_MOVING; i++) {
		struct et_sock *expected = s;

		if (atomic_load(&moving[i]) != s ||
		    !atomic_compare_exchange_strong(&moving[i], &expected, NULL))
			continue;
		atomic_fetch_sub(&et_moving_count, 1);
		et_file_put(&s->file, ET_FD_SOCK, ET_PIN);
		return;
	}
}

/*
 * Begin the switch, unless somebody is inside. Pairs with et_sock_enter: they
 * count themselves and then read the mode, we set the mode and then count.
 */
static void switch_locked(struct et_sock *s, struct et_conn *c)
{
	if (!moving_add(s))
		return;
	set_mode(s, ET_MODE_SWITCHING);
	atomic_thread_fence(memory_order_seq_cst);
	if (et_file_inside(&s->file) == 0 && regs_promotable(s) &&
	    !et_process_shares(atomic_load(&s->file.fd), s->born) && et_conn_switch(c) == 0)
		return;
	set_mode(s, ET_MODE_KERNEL);
	moving_remove(s);
}

/* As after a reset. Its socket still sleeps: make the kernel report an end. */
static void break_locked(struct et_sock *s)
{
	s->broken = true;
	atomic_store(&s->error, ECONNRESET);
	et_sys3(SYS_shutdown, atomic_load(&s->file.fd), SHUT_RDWR, 0);
}

/* Refused for good by something that a strict program wants to know of. Its own
 * rules are none. */
static bool fails_strict(struct et_sock *s, enum etran_path_reason why)
{
	switch (why) {
	case ETRAN_PATH_POLICY:
		return et_config_allows(atomic_load(&s->file.fd));
	case ETRAN_PATH_LOCAL:
	case ETRAN_PATH_NO_DEVICE:
	case ETRAN_PATH_OPTION:
	case ETRAN_PATH_FILTER:
	case ETRAN_PATH_DEVICE_BUSY:
	case ETRAN_PATH_LIMIT:
	case ETRAN_PATH_NAT:
	case ETRAN_PATH_IPSEC:
	case ETRAN_PATH_MULTIPATH:
		return true;
	default:
		return false;
	}
}

static void gone_locked(struct et_sock *s, struct et_conn *c)
{
	enum etran_path_reason why = et_conn_reason(c);

	if (et_unlikely(et_config.strict) && fails_strict(s, why)) {
		et_log("fd %d: strict, reset, reason %d", atomic_load(&s->file.fd), (int)why);
		break_locked(s);
	}
	if (et_conn_lost(c)) {
		break_locked(s);
		why = ETRAN_PATH_PEER_RST;
	}
	atomic_store(&s->conn, NULL);
	et_conn_release(c);
	back_off(s, why);
}

void et_let_go(void)
{
	struct et_sock *s;
	uint32_t next = 0;

	while ((s = et_sock_next(&next))) {
		if (!et_file_pin(&s->file, ET_PIN))
			continue;
		if (et_trylock(&s->lock)) {
			struct et_conn *c = atomic_load(&s->conn);

			if (c && et_sock_mode(s) == ET_MODE_KERNEL && !s->closing)
				gone_locked(s, c);
			et_unlock(&s->lock);
		}
		et_file_put(&s->file, ET_FD_SOCK, ET_PIN);
	}
}

static void regs_rearm(struct et_sock *s)
{
	for (int i = 0; i < ET_SOCK_REGS; i++) {
		struct et_reg *r = atomic_load(&s->reg[i]);

		if (r)
			et_reg_rearm(r);
	}
}

/* The daemon has decided: true when the mode is no longer SWITCHING. */
static bool finish_locked(struct et_sock *s)
{
	struct et_conn *c = atomic_load(&s->conn);

	switch (et_conn_progress(c)) {
	case ET_COMMIT:
		et_conn_commit(c);
		if (et_conn_progress(c) != ET_FAST)
			return false;
		set_mode(s, ET_MODE_FAST);
		for (int i = 0; i < ET_SOCK_REGS; i++) {
			struct et_reg *r = atomic_load(&s->reg[i]);

			if (r)
				et_reg_to_user(r);
		}
		break;
	case ET_GONE:
		gone_locked(s, c);
		set_mode(s, ET_MODE_KERNEL);
		break;
	case ET_CAN_SWITCH: /* the request was withdrawn */
		set_mode(s, ET_MODE_KERNEL);
		break;
	default:
		return false;
	}
	if (atomic_exchange(&s->starved, false))
		regs_rearm(s);
	moving_remove(s);
	et_wake_all();
	return true;
}

static void await_switch_locked(struct et_sock *s)
{
	while (et_sock_mode(s) == ET_MODE_SWITCHING) {
		et_conn_await(atomic_load(&s->conn), UINT_MAX);
		if (!finish_locked(s))
			et_pause();
	}
}

/* Nobody that knew the slot of the past is inside any more. */
static void late_locked(struct et_sock *s)
{
	struct et_conn *c = s->late;

	if (!c || et_file_inside(&s->file))
		return;
	s->late = NULL;
	et_conn_release(c);
	moving_remove(s);
}

void et_moving_run(void)
{
	for (int i = 0; i < MAX_MOVING; i++) {
		struct et_sock *s = atomic_load(&moving[i]);

		if (!s || !et_file_pin(&s->file, ET_PIN))
			continue;
		if (et_trylock(&s->lock)) {
			if (et_sock_mode(s) == ET_MODE_SWITCHING)
				finish_locked(s);
			else
				late_locked(s);
			et_unlock(&s->lock);
		}
		et_file_put(&s->file, ET_FD_SOCK, ET_PIN);
	}
}

static bool kernel_queue_empty(struct et_sock *s)
{
	int n = 0;

	return et_sys3(SYS_ioctl, atomic_load(&s->file.fd), FIONREAD, (long)&n) == 0 && n == 0;
}

/* Perhaps a quiet moment: this thread is outside, with a pin. */
static void step(struct et_sock *s, bool quiet)
{
	struct et_conn *c = atomic_load_explicit(&s->conn, memory_order_acquire);

	if (!c && !due(s))
		return;
	if (c && et_up() && et_conn_progress(c) == ET_WAIT)
		return;
	if (!quiet && !kernel_queue_empty(s))
		return;
	if (!et_trylock(&s->lock))
		return;
	c = atomic_load(&s->conn);
	if (et_sock_mode(s) != ET_MODE_KERNEL || s->closing || s->broken) {
		/* another thread was faster */
	} else if (!c) {
		open_locked(s);
	} else if (!et_up() || et_conn_progress(c) == ET_GONE) {
		/* Without a session nobody would answer a request either. */
		gone_locked(s, c);
	} else if (et_conn_progress(c) == ET_CAN_SWITCH) {
		switch_locked(s, c);
	}
	et_unlock(&s->lock);
}

void et_sock_received(struct et_sock *s, size_t n, bool quiet)
{
	if (et_up())
		et_count_kernel(atomic_load(&s->conn), n, 0);
	s->bytes += n;
	s->sends = 0;
	if (s->asked) {
		s->asked = false;
		s->exchanges++;
	}
	et_sock_leave_quiet(s, quiet);
}

void et_sock_sent(struct et_sock *s, size_t n)
{
	if (et_up())
		et_count_kernel(atomic_load(&s->conn), 0, n);
	s->bytes += n;
	s->asked = true;
	/* The best moment is when an answer has come: nothing is in flight then.
	 * But some programs only send. */
	if (++s->sends < ONE_WAY_SENDS)
		et_sock_leave(s);
	else
		et_sock_leave_quiet(s, false);
}

void et_sock_leave_quiet(struct et_sock *s, bool quiet)
{
	et_sock_step_out(s);
	if (s->exchanges >= FIRST_EXCHANGES || s->bytes >= FIRST_BYTES)
		et_process_use();
	if (et_sock_movable(s) || atomic_load_explicit(&s->conn, memory_order_relaxed))
		step(s, quiet);
	et_file_put(&s->file, ET_FD_SOCK, ET_PIN);
}

/* ---- back to the kernel -------------------------------------------------- */

/* Nobody else uses the connection any more; bounded. */
static bool drain(struct et_sock *s)
{
	uint64_t end = et_now_ns() + DRAIN_NS;

	while (et_file_inside(&s->file)) {
		if (et_now_ns() > end)
			return false;
		et_pause();
	}
	return true;
}

int et_sock_demote_locked(struct et_sock *s, enum etran_path_reason why)
{
	struct et_conn *c = atomic_load(&s->conn);
	int err;

	if (et_sock_mode(s) != ET_MODE_FAST)
		return 0;
	set_mode(s, ET_MODE_DEMOTING);
	err = et_conn_demote(c, why);
	if (err == -EAGAIN) {
		set_mode(s, ET_MODE_FAST);
		return err;
	}
	atomic_store(&s->conn, NULL);
	/* A slot that is still in use is given up later (without room to
	 * remember it: never). */
	if (drain(s))
		et_conn_release(c);
	else if (moving_add(s))
		s->late = c;
	if (err) {
		break_locked(s);
		why = ETRAN_PATH_PEER_RST;
	}
	et_log("fd %d: back to the kernel, reason %d, result %d", atomic_load(&s->file.fd),
	       (int)why, err);
	for (int i = 0; i < ET_SOCK_REGS && !s->closing; i++) {
		struct et_reg *r = atomic_load(&s->reg[i]);

		if (r)
			et_reg_to_kernel(r);
	}
	atomic_store(&s->please, ETRAN_PATH_OK);
	back_off(s, why);
	set_mode(s, ET_MODE_KERNEL);
	et_wake_all();
	return 0;
}

int et_sock_demote(struct et_sock *s, enum etran_path_reason why)
{
	int err = -EAGAIN;

	et_sock_step_out(s);
	if (et_lock(&s->lock)) {
		err = et_sock_demote_locked(s, why);
		et_unlock(&s->lock);
	}
	et_sock_step_in(s);
	return err;
}

/* The connection is the parent's: have it given back. */
static void reclaim_locked(struct et_sock *s, int fd)
{
	int err = et_demote_foreign(fd);

	et_log("fd %d: the parent's connection, result %d", fd, err);
	for (int i = 0; i < ET_SOCK_REGS; i++) {
		struct et_reg *r = atomic_load(&s->reg[i]);

		if (r)
			et_reg_to_kernel(r);
	}
	settle_down(s);
	set_mode(s, ET_MODE_KERNEL);
}

int et_sock_settle(struct et_sock *s, int fd, uint32_t timeout_us)
{
	struct et_conn *c;
	int err = 0;

	switch (et_sock_mode(s)) {
	case ET_MODE_SWITCHING:
		c = atomic_load(&s->conn);
		/* A moment before the request is out, progress is not WAIT. */
		if (c && et_conn_await(c, timeout_us) == ET_WAIT) {
			/* Whoever ends the switch changes the mode and then
			 * looks at this word. */
			atomic_store(&s->starved, true);
			if (et_sock_mode(s) == ET_MODE_SWITCHING)
				return -EAGAIN;
			return 0;
		}
		et_sock_step_out(s);
		if (!et_lock(&s->lock)) {
			err = -EAGAIN;
		} else {
			if (et_sock_mode(s) == ET_MODE_SWITCHING)
				finish_locked(s);
			et_unlock(&s->lock);
		}
		et_sock_step_in(s);
		return err;
	case ET_MODE_DEMOTING:
	case ET_MODE_FOREIGN:
		et_sock_step_out(s);
		if (!et_lock(&s->lock)) {
			err = -EAGAIN;
		} else {
			if (et_sock_mode(s) == ET_MODE_FOREIGN)
				reclaim_locked(s, fd);
			et_unlock(&s->lock);
		}
		et_sock_step_in(s);
		return err;
	default:
		return 0;
	}
}

struct et_conn *et_sock_steady(struct et_sock *s, int fd)
{
	struct et_conn *c;

	while (!(c = et_sock_fast(s)) && et_sock_mode(s) != ET_MODE_KERNEL)
		if (et_sock_settle(s, fd, UINT32_MAX))
			break;
	return c;
}

void et_sock_catch_up(struct et_sock *s, int fd)
{
	struct et_conn *c = et_sock_fast(s);
	enum etran_path_reason why;

	if (!c)
		return;
	et_rx_poll();
	why = et_sock_wants_demote(s, c);
	if (why != ETRAN_PATH_OK)
		et_sock_to_kernel(s, fd, why);
}

void et_sock_to_kernel(struct et_sock *s, int fd, enum etran_path_reason why)
{
	for (;;) {
		enum et_mode mode = et_sock_mode(s);

		if (mode == ET_MODE_KERNEL)
			return;
		if (mode == ET_MODE_FAST ? et_sock_demote(s, why)
					 : et_sock_settle(s, fd, UINT32_MAX))
			return;
	}
}

void et_sock_pin_down(struct et_sock *s, int fd, enum etran_path_reason why)
{
	struct et_conn *c;

	atomic_store(&s->never, true);
	et_sock_to_kernel(s, fd, why);
	et_sock_step_out(s);
	if (et_lock(&s->lock)) {
		settle_down(s);
		c = et_sock_mode(s) == ET_MODE_KERNEL ? atomic_exchange(&s->conn, NULL) : NULL;
		if (c)
			et_conn_release(c);
		et_unlock(&s->lock);
	}
	et_sock_step_in(s);
}

/* ---- readiness ------------------------------------------------------------ */

void et_sock_ask_room(struct et_sock *s, struct et_conn *c)
{
	if (!atomic_exchange(&s->asked_room, true))
		et_conn_want_room(c);
}

short et_sock_ready(struct et_sock *s, struct et_conn *c, short events)
{
	const short in = POLLIN | POLLRDNORM, out = POLLOUT | POLLWRNORM;
	short ready = 0;

	if (events & in && et_conn_readable(c))
		ready |= (short)(events & in);
	if (events & out) {
		size_t room = et_conn_writable(c);

		if (!room) {
			et_sock_ask_room(s, c);
			room = et_conn_writable(c);
		}
		if (room)
			ready |= (short)(events & out);
	}
	return ready;
}

struct et_sock *et_sock_next(uint32_t *i)
{
	while (*i < atomic_load(&pool.used)) {
		struct et_sock *s = et_pool_at(&pool, (*i)++);

		if ((uint32_t)atomic_load(&s->file.users))
			return s;
	}
	return NULL;
}

/* ---- processes ----------------------------------------------------------- */

void et_sock_after_fork(void)
{
	struct et_sock *s;
	uint32_t next = 0;

	while ((s = et_sock_next(&next))) {
		s->lock = (struct et_lock){0};
		s->inherited = true;
		s->back_off = INHERITED_BACK_OFF;
		s->late = NULL;
		atomic_store(&s->conn, NULL);
		/* The epoll sets, too, are the parent's. */
		if (atomic_load(&s->mode) != ET_MODE_KERNEL || registered(s))
			atomic_store(&s->never, true);
		if (atomic_load(&s->mode) != ET_MODE_KERNEL)
			atomic_store(&s->mode, ET_MODE_FOREIGN);
	}
	for (int i = 0; i < MAX_MOVING; i++)
		atomic_store(&moving[i], NULL);
	atomic_store(&et_fast_count, 0);
	atomic_store(&et_moving_count, 0);
}
