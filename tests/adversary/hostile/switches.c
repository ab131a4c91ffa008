// SPDX-License-Identifier: Apache-2.0
/* Switches in wild order, with shared memory and sockets that change meanwhile. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/tcp.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hostile.h"

#define CONNS 8

struct spoiler {
	struct hostile h; /* a copy: random numbers of its own */
	struct conn *conns;
	atomic_bool stop;
	pthread_t thread;
};

/* A held frame that never came: of our connection, or of somebody else's. */
static void plant_frame(struct hostile *h, const struct conn *c)
{
	struct etran_stash *s = stash(h, (unsigned)(rnd(h) % ETRAN_STASH_SIZE));
	struct sockaddr_in us = {0}, victim = {.sin_addr = h->victim, .sin_port = h->victim_port};
	uint64_t addr = (rnd(h) % h->rings.frames) * h->rings.frame_size + 256;
	socklen_t size = sizeof(us);

	getsockname(c->fd, (void *)&us, &size);
	s->length = forge(h, h->umem + addr, h->peer, rnd(h) & 1 ? us : victim);
	s->addr =
		rnd(h) % 4 ? addr : (uint64_t)NEAR(h, 0, UINT32_MAX, (uint32_t)addr) << rnd(h) % 32;
	s->length = rnd(h) % 4 ? s->length : NEAR(h, 0, 60, 2048, UINT32_MAX);
	s->slot = (uint16_t)c->slot;
	s->generation = c->a->generation;
	s->order = (uint32_t)rnd(h);
	__atomic_store_n(&s->state, 1, __ATOMIC_RELEASE);
}

static void spoil_words(struct hostile *h, const struct conn *c)
{
	uint32_t *word = (uint32_t *)c->a, una = c->p->snd_una, rcv = c->p->rcv_nxt;
	uint32_t i = (uint32_t)(rnd(h) % (sizeof(*c->a) / sizeof(*word)));
	const uint32_t phase = offsetof(struct etran_aconn, phase) / sizeof(*word);
	const uint32_t generation = offsetof(struct etran_aconn, generation) / sizeof(*word);

	if (i == generation)
		return; /* or no request would ever fit again */
	if (i == phase)
		__atomic_store_n(&word[i], NEAR(h, 12, 13, 6, 0), __ATOMIC_RELEASE);
	else
		word[i] =
			NEAR(h, una, rcv, una + ETRAN_SND_BUF, rcv - ETRAN_RCV_BUF, 0, UINT32_MAX);
}

static void *spoil(void *arg)
{
	struct spoiler *s = arg;

	while (!s->stop) {
		struct conn *c = &s->conns[rnd(&s->h) % CONNS];

		spoil_words(&s->h, c);
		/* Or the daemon waits for a second, and we with it. */
		if (c->a->phase == ETRAN_PHASE_FROZEN && rnd(&s->h) % 64)
			set_phase(c, ETRAN_PHASE_DRAINED);
		if (s->h.has_rings && !(rnd(&s->h) % 8))
			plant_frame(&s->h, c);
		if (!(rnd(&s->h) % 64)) /* the header, which the daemon wrote once */
			((uint64_t *)s->h.arena)[rnd(&s->h) % 32] = rnd(&s->h);
	}
	return NULL;
}

static void any_request(struct hostile *h, struct conn *c)
{
	static const uint16_t types[] = {ETRAN_MSG_OBSERVE,       ETRAN_MSG_SWITCH,
					 ETRAN_MSG_SWITCH,        ETRAN_MSG_DEMOTE,
					 ETRAN_MSG_REINJECT,      ETRAN_MSG_CANCEL,
					 ETRAN_MSG_DEMOTE_FOREIGN};
	uint16_t type = types[rnd(h) % 7];
	bool has_fd = type == ETRAN_MSG_OBSERVE || type == ETRAN_MSG_DEMOTE_FOREIGN;

	tell(h, type, c->slot, (uint32_t)rnd(h), has_fd ? c->fd : -1);
	if (rnd(h) & 1)
		(void)!send(c->fd, "hello", 5, MSG_DONTWAIT | MSG_NOSIGNAL);
	(void)!recv(c->fd, (char[64]){0}, 64, MSG_DONTWAIT);
}

/* The daemon's answers must be read, or it could not send any. */
static void read_answers(struct hostile *h)
{
	char answer[256];

	while (recv(h->control, answer, sizeof(answer), MSG_DONTWAIT) > 0)
		;
}

static uint64_t arena_words(struct hostile *h)
{
	static struct spoiler s;
	struct conn c[CONNS];
	uint64_t tries = 0;

	if (!make_fast(h, &c[0], ETRAN_FIRST_SLOT) && h->app.app)
		note("no fast connection");
	for (unsigned i = c[0].fd ? 1 : 0; i < CONNS; i++) {
		c[i] = (struct conn){
			dial(h, 0), ETRAN_FIRST_SLOT + i, aconn(h, ETRAN_FIRST_SLOT + i),
			(const void *)(h->pub + (ETRAN_FIRST_SLOT + i) * sizeof(*c[i].p))};
		tell(h, ETRAN_MSG_OBSERVE, c[i].slot, 0, c[i].fd);
	}
	stash(h, 0);
	s = (struct spoiler){.h = *h, .conns = c};
	s.h.random ^= 77;
	pthread_create(&s.thread, NULL, spoil, &s);
	for (uint64_t start = now_ns(); go_on(h, start); tries++) {
		any_request(h, &c[rnd(h) % CONNS]);
		if (!(tries % 64))
			read_answers(h);
	}
	s.stop = true;
	pthread_join(s.thread, NULL);
	for (unsigned i = 0; i < CONNS; i++)
		give_up(h, &c[i]);
	return tries;
}

/* The kernel socket of a fast connection lets its port go. Whoever takes the
 * same addresses next must get the segments. */
static uint64_t stale_tuple(struct hostile *h)
{
	struct sockaddr none = {.sa_family = AF_UNSPEC};
	struct sockaddr_in us = {0};
	socklen_t size = sizeof(us);
	uint64_t tries;

	for (tries = 0; tries < 2; tries++) {
		struct conn c;
		int heir;

		if (!make_fast(h, &c, ETRAN_FIRST_SLOT)) {
			broken("no fast connection to attack with");
			return tries;
		}
		getsockname(c.fd, (void *)&us, &size);
		connect(c.fd, &none, sizeof(none));
		usleep(700000); /* the daemon looks at its peer twice a second */
		heir = dial(h, us.sin_port);
		if (heir < 0 || !echo(heir, 100))
			broken("addresses of a connection that has ended are dead (%s)",
			       strerrorname_np(errno));
		close(heir);
		give_up(h, &c);
	}
	return tries;
}

/* Frames for a connection that our socket has no more. */
static uint64_t stale_frames(struct hostile *h)
{
	struct sockaddr none = {.sa_family = AF_UNSPEC};
	struct sockaddr_in us = {0};
	socklen_t size = sizeof(us);
	struct conn c;
	int heir;
	unsigned i;

	if (!make_fast(h, &c, ETRAN_FIRST_SLOT)) {
		broken("no fast connection to attack with");
		return 0;
	}
	getsockname(c.fd, (void *)&us, &size);
	tell(h, ETRAN_MSG_DEMOTE, c.slot, c.a->generation, -1);
	await(&c, ETRAN_PHASE_FAST, 1000);
	set_phase(&c, ETRAN_PHASE_DRAINED);
	await(&c, ETRAN_PHASE_DRAINED, 3000);
	connect(c.fd, &none, sizeof(none));
	heir = dial(h, us.sin_port);
	for (i = 0; i < 64; i++) {
		struct etran_stash *s = stash(h, i);
		uint64_t addr = (uint64_t)i * h->rings.frame_size + 256;

		s->length = forge(h, h->umem + addr, h->peer, us);
		h->umem[addr + 47] = 0x04; /* RST with every number there is: none fits, but */
		s->addr = addr;
		s->slot = (uint16_t)c.slot;
		s->generation = c.a->generation;
		s->state = 1;
	}
	tell(h, ETRAN_MSG_REINJECT, c.slot, c.a->generation, -1);
	usleep(100000);
	if (heir < 0 || !echo(heir, 100))
		broken("the next connection with these addresses is dead");
	close(heir);
	give_up(h, &c);
	return i;
}

struct racer {
	int fd;
	struct sockaddr_in to;
	atomic_bool stop;
};

/* In repair mode a socket can be connected without a handshake. */
static void *race(void *arg)
{
	struct racer *r = arg;
	struct sockaddr none = {.sa_family = AF_UNSPEC};

	while (!r->stop) {
		int queue = TCP_SEND_QUEUE;

		if (setsockopt(r->fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, &queue, sizeof(queue)))
			continue; /* not now */
		connect(r->fd, &none, sizeof(none));
		connect(r->fd, (void *)&r->to, sizeof(r->to));
	}
	return NULL;
}

static bool established_elsewhere(int fd, const struct sockaddr_in *to)
{
	struct sockaddr_in peer = {0};
	socklen_t size = sizeof(peer);
	struct tcp_info info = {0};
	socklen_t room = sizeof(info);

	if (getpeername(fd, (void *)&peer, &size) || peer.sin_port != to->sin_port ||
	    getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &room))
		return false;
	return info.tcpi_state == 1; /* ESTABLISHED: no handshake made it so */
}

static uint64_t repair_race(struct hostile *h)
{
	uint64_t tries = 0, forged = 0;

	for (uint64_t start = now_ns(); go_on(h, start); tries++) {
		struct racer r = {.fd = dial(h, 0), .to = h->peer};
		pthread_t thread;
		struct conn c;

		r.to.sin_port = htons(9); /* where nobody listens */
		if (!observe(h, &c, r.fd, ETRAN_FIRST_SLOT + (uint32_t)(tries % 100)) ||
		    !echo(r.fd, 50)) {
			give_up(h, &c);
			continue;
		}
		pthread_create(&thread, NULL, race, &r);
		usleep(200);
		tell(h, ETRAN_MSG_SWITCH, c.slot, c.a->generation, -1);
		if (await(&c, ETRAN_PHASE_OBSERVING, 1000) == ETRAN_PHASE_FAST)
			tell(h, ETRAN_MSG_DEMOTE, c.slot, c.a->generation, -1);
		usleep(2000);
		r.stop = true;
		pthread_join(thread, NULL);
		usleep(1000);
		forged += established_elsewhere(r.fd, &r.to);
		give_up(h, &c);
	}
	if (forged)
		broken("%llu of %llu sockets are connected without a handshake",
		       (unsigned long long)forged, (unsigned long long)tries);
	return tries;
}

/* Closing takes as long as the program says; the last to close is the daemon. */
static uint64_t lingering(struct hostile *h)
{
	struct linger forever = {1, 1000};
	static char data[1 << 16];
	unsigned n;

	for (n = 0; n < 40; n++) {
		struct conn c;
		int fd = dial(h, 0);

		if (fd < 0 || !observe(h, &c, fd, ETRAN_FIRST_SLOT + 200 + n)) {
			note("only %u", n);
			close(fd);
			break;
		}
		(void)!send(fd, "stall", 5, 0); /* the echo server reads no more */
		usleep(1000);
		while (send(fd, data, sizeof(data), MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
			;
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &forever, sizeof(forever));
		close(fd);
		tell(h, ETRAN_MSG_CANCEL, c.slot, c.a->generation, -1);
		/* More of them wait behind it, each with a descriptor. */
		for (int i = 0; i < 50; i++)
			tell(h, ETRAN_MSG_OBSERVE, c.slot, 0, h->wake_fd);
	}
	usleep((useconds_t)(h->seconds * 1e6));
	return n;
}

const struct attack switch_attacks[] = {
	{"arena-words", arena_words}, {"stale-tuple", stale_tuple}, {"stale-frames", stale_frames},
	{"repair-race", repair_race}, {"lingering", lingering},     {NULL, NULL}};
