/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection that is taken from the library (ETRAN_LOCK_SEIZED) while threads
 * send, receive and take what the rings bring, stopped wherever they happen to
 * be. The daemon's part is played here as runtime/internal/handover does it.
 * Whatever the moment: what the calls say was moved is exactly what the daemon
 * found moved, and the daemon has every octet of both streams.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>

#include "core.h"
#include "unit.h"

#define ROUNDS 600
#define SLOT (ETRAN_FIRST_SLOT + 5)
#define START 0xffffff00u /* the streams wrap around */
#define TOTAL 200000u     /* octets that either stream may have */
#define CHUNKS 400u
#define CHUNK (TOTAL / CHUNKS)
#define SHUFFLE 4u /* chunks that come in any order */

static struct etran_aconn shared;
static struct etran_pub pub[ETRAN_APP_SLOTS];
static uint8_t stream[TOTAL], snd[ETRAN_SND_BUF], rcv[ETRAN_RCV_BUF], copy[ETRAN_RCV_BUF];
static struct et_conn *const c = &et_core.conn[SLOT];

/* The ring, chunks of the stream as numbers. */
static uint32_t ring[CHUNKS], taken;

void et_ready(void *user)
{
	(void)user;
}

void et_please(void *user, bool promote, enum etran_path_reason why)
{
	(void)user, (void)promote, (void)why;
}

/* ---- threads that can be stopped ------------------------------------------ */

enum { SENDER, RECEIVER, TAKER, THREADS };

static __thread int self = -1;
static _Atomic bool stopped[THREADS], stop_ended;
static _Atomic int running;
static size_t moved[THREADS];
static unsigned wrong;

static void rest(void)
{
	const struct timespec nap = {.tv_nsec = 20000};

	while (!stop_ended)
		nanosleep(&nap, NULL);
}

static void stop_handler(int sig)
{
	(void)sig;
	stopped[self] = true;
	rest();
}

static uint32_t random_below(uint32_t n)
{
	static __thread uint64_t state;

	if (!state)
		state = (uintptr_t)&state ^ et_now_ns();
	state = state * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(state >> 33) % n;
}

static void *send_all(void *arg)
{
	ssize_t n;

	self = *(int *)arg;
	running++;
	while (moved[self] < TOTAL) {
		struct iovec iov = {stream + moved[self], 1 + random_below(3000)};

		if (iov.iov_len > TOTAL - moved[self])
			iov.iov_len = TOTAL - moved[self];
		n = et_conn_send(c, &iov, 1);
		if (n == ET_KERNEL)
			break;
		if (n < 0 && n != -EAGAIN)
			wrong++;
		if (n > 0)
			moved[self] += (size_t)n;
	}
	rest();
	return NULL;
}

static void *receive_all(void *arg)
{
	uint8_t buf[3000];
	ssize_t n;

	self = *(int *)arg;
	running++;
	while (moved[self] < TOTAL) {
		struct iovec iov = {buf, 1 + random_below(sizeof(buf))};
		bool peek = random_below(8) == 0;

		n = et_conn_recv(c, &iov, 1, peek);
		if (n == ET_KERNEL)
			break;
		if (n == -EAGAIN)
			continue;
		if (n <= 0 || memcmp(buf, stream + moved[self], (size_t)n))
			wrong++;
		else if (!peek)
			moved[self] += (size_t)n;
	}
	rest();
	return NULL;
}

/* As poll_queue: the index is published after what was stored. */
static void *take_all(void *arg)
{
	self = *(int *)arg;
	running++;
	for (uint32_t at = 0; at < CHUNKS && et_phase(c) == ETRAN_PHASE_FAST;) {
		uint32_t n = 1 + random_below(8);

		for (; n && at < CHUNKS; n--, at++)
			rcv_insert(&shared.rcv, rcv, sizeof(rcv), START + ring[at] * CHUNK,
				   stream + ring[at] * CHUNK, CHUNK);
		__atomic_store_n(&taken, at, __ATOMIC_RELEASE);
	}
	rest();
	return NULL;
}

/* ---- the daemon's part ----------------------------------------------------- */

static void setup(void)
{
	static struct etran_arena arena = {.snd_size = ETRAN_SND_BUF, .rcv_size = ETRAN_RCV_BUF};
	static struct etran_stash stash[ETRAN_STASH_SIZE];

	memset(&shared, 0, sizeof(shared));
	memset(c, 0, sizeof(*c));
	memset(moved, 0, sizeof(moved));
	et_core.arena = &arena;
	et_core.stash = stash;
	et_core.pub = pub;
	et_core.tap = et_core.tap > 0 ? et_core.tap : open("/dev/null", O_WRONLY);
	et_core.control = -1;
	c->slot = SLOT;
	c->shared = &shared;
	c->pub = &pub[SLOT];
	c->snd_ring = snd;
	c->rcv_ring = rcv;
	c->committed = true;
	shared.phase = ETRAN_PHASE_FAST;
	shared.mss = 1448;
	shared.rcv_window = 65536;
	shared.snd.base = shared.snd.una = shared.snd.nxt = shared.snd.end = START;
	rcv_init(&shared.rcv, START);
	/* The egress program refuses all: the flow is in HOLD. */
	pub[SLOT].snd_una = pub[SLOT].snd_nxt = START;
	pub[SLOT].snd_limit = START + TOTAL;
	pub[SLOT].tx_reason = ETRAN_DROP_TX_STATE;
	for (uint32_t i = 0; i < CHUNKS; i++)
		ring[i] = i;
	for (uint32_t i = 0; i < CHUNKS; i++) {
		uint32_t other = i - i % SHUFFLE + random_below(SHUFFLE), first = ring[i];

		ring[i] = ring[other];
		ring[other] = first;
	}
	taken = 0;
	stop_ended = false;
	running = 0;
}

static void seize(void)
{
	uint32_t owner;

	__atomic_store_n(&shared.phase, ETRAN_PHASE_FROZEN, __ATOMIC_RELEASE);
	do {
		owner = __atomic_load_n(&shared.owner, __ATOMIC_ACQUIRE);
		__atomic_store_n(&shared.displaced, owner, __ATOMIC_RELEASE);
	} while (!__atomic_compare_exchange_n(&shared.owner, &owner, ETRAN_LOCK_SEIZED, false,
					      __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
}

static void check_octets(const uint8_t *buffer, uint32_t size, uint32_t base, uint32_t from,
			 uint32_t to, uint8_t *seen)
{
	for (uint32_t s = from; s != to; s++) {
		if (buffer[(s - base) & (size - 1)] != stream[s - START])
			wrong++;
		if (seen)
			seen[s - START] = 1;
	}
}

/* Copies what was sent and received, and compares. */
static struct etran_aconn take_over(void)
{
	static uint8_t seen[TOTAL];
	struct etran_aconn w;
	uint32_t at = __atomic_load_n(&taken, __ATOMIC_ACQUIRE), tries = 0;

	do {
		memcpy(&w, &shared, sizeof(w));
		memcpy(copy, rcv, sizeof(copy));
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
	} while ((memcmp(&w.rcv, &shared.rcv, sizeof(w.rcv)) ||
		  memcmp(&w.snd, &shared.snd, sizeof(w.snd))) &&
		 ++tries < 1000);
	CHECK(tries < 1000);
	memset(seen, 0, sizeof(seen));
	memset(seen, 1, w.rcv.read - START);
	check_octets(copy, sizeof(copy), w.rcv.base, w.rcv.read, w.rcv.nxt, seen);
	for (uint32_t i = 0; i < w.rcv.ranges; i++)
		if (!seq_before(w.rcv.range[i].start, w.rcv.nxt))
			check_octets(copy, sizeof(copy), w.rcv.base, w.rcv.range[i].start,
				     w.rcv.range[i].end, seen);
	for (; at < CHUNKS; at++)
		memset(seen + ring[at] * CHUNK, 1, CHUNK);
	CHECK(memchr(seen, 0, sizeof(seen)) == NULL);
	check_octets(snd, sizeof(snd), w.snd.base, w.snd.una, w.snd.end, NULL);
	shared.taken_read = w.rcv.read;
	shared.taken_end = w.snd.end;
	return w;
}

static void yield_lock(void)
{
	__atomic_store_n(&shared.phase, ETRAN_PHASE_DEMOTED, __ATOMIC_RELEASE);
	et_futex_wake(&shared.phase, INT32_MAX);
	__atomic_store_n(&shared.owner, 0, __ATOMIC_RELEASE);
	et_futex_wake(&shared.owner, INT32_MAX);
}

/* Some threads, or all as by SIGSTOP, or none: then they are just slow. */
static void stop_some(pthread_t *thread)
{
	bool all = random_below(2), stop[THREADS];

	for (int i = 0; i < THREADS; i++) {
		stopped[i] = false;
		stop[i] = all || random_below(2);
		if (stop[i])
			pthread_kill(thread[i], SIGUSR1);
	}
	for (int i = 0; i < THREADS; i++)
		while (stop[i] && !stopped[i])
			sched_yield();
}

TEST(nothing_is_lost_or_doubled_wherever_threads_are_stopped)
{
	static int number[THREADS] = {SENDER, RECEIVER, TAKER};
	void *(*const run[THREADS])(void *) = {send_all, receive_all, take_all};
	unsigned displaced = 0;

	for (unsigned round = 0; round < ROUNDS && !unit_failures; round++) {
		pthread_t thread[THREADS];
		struct etran_aconn w;
		uint64_t until;

		setup();
		for (int i = 0; i < THREADS; i++)
			REQUIRE(pthread_create(&thread[i], NULL, run[i], &number[i]) == 0);
		while (running < THREADS)
			sched_yield();
		until = et_now_ns() + random_below(120000);
		while (et_now_ns() < until)
			et_pause();
		stop_some(thread);
		seize();
		displaced += shared.displaced != 0;
		w = take_over();
		yield_lock();
		stop_ended = true;
		for (int i = 0; i < THREADS; i++)
			pthread_join(thread[i], NULL);
		CHECK_EQ(moved[SENDER], w.snd.end - START);
		CHECK_EQ(moved[RECEIVER], w.rcv.read - START);
		CHECK_EQ(shared.displaced, 0);
		CHECK_EQ(shared.owner, 0);
		CHECK_EQ(wrong, 0);
	}
	/* Else the test shows nothing. */
	CHECK(displaced > ROUNDS / 50);
	printf("%u of %d rounds took the lock from a thread\n", displaced, ROUNDS);
}

/* The slot is let go by whoever is last: the releaser, or the displaced thread. */
TEST(slot_is_not_used_again_before_the_displaced_thread_is_done)
{
	setup();
	shared.owner = 4711;
	seize();
	CHECK_EQ(shared.displaced, 4711);
	yield_lock();
	CHECK_EQ(et_conn_demote(c, ETRAN_PATH_REQUEST), 0);
	et_conn_release(c);
	CHECK_EQ(et_phase(c), ETRAN_PHASE_DEMOTED);
	et_conn_step_aside(c);
	CHECK_EQ(et_phase(c), ETRAN_PHASE_REINJECT_REQ);

	setup();
	shared.owner = 4711;
	seize();
	yield_lock();
	et_conn_step_aside(c);
	CHECK_EQ(et_phase(c), ETRAN_PHASE_DEMOTED);
	et_conn_release(c);
	CHECK_EQ(et_phase(c), ETRAN_PHASE_REINJECT_REQ);
}

TEST(seized_connection_asks_to_be_given_back)
{
	struct iovec iov = {stream, 10};

	setup();
	CHECK_EQ(et_conn_wants_demote(c), ETRAN_PATH_OK);
	CHECK_EQ(et_conn_progress(c), ET_FAST);
	seize();
	CHECK(et_conn_wants_demote(c) != ETRAN_PATH_OK);
	CHECK_EQ(et_conn_progress(c), ET_WAIT);
	shared.reason = ETRAN_PATH_DEATH;
	yield_lock();
	CHECK_EQ(et_conn_wants_demote(c), ETRAN_PATH_DEATH);
	CHECK_EQ(et_conn_progress(c), ET_GONE);
	CHECK_EQ(et_conn_send(c, &iov, 1), ET_KERNEL);
	CHECK_EQ(et_conn_recv(c, &iov, 1, false), ET_KERNEL);
}

int main(void)
{
	struct sigaction a = {.sa_handler = stop_handler, .sa_flags = SA_RESTART};

	REQUIRE(sigaction(SIGUSR1, &a, NULL) == 0);
	for (uint32_t i = 0; i < TOTAL; i++)
		stream[i] = (uint8_t)(i * 2654435761u >> 13);
	RUN(nothing_is_lost_or_doubled_wherever_threads_are_stopped);
	RUN(slot_is_not_used_again_before_the_displaced_thread_is_done);
	RUN(seized_connection_asks_to_be_given_back);
	return unit_result();
}
