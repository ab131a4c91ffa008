// SPDX-License-Identifier: Apache-2.0
/*
 * usage: hostile RUN_DIR PEER:PORT VICTIM:PORT SECONDS SEED ATTACK...
 *
 * Prints one line of JSON per attack: what was tried how often, and what was
 * possible that must not be. Whether other programs were disturbed, and what
 * left the host, is for the test to see.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "hostile.h"

static char told[4096];
static unsigned breaches;

static void tell_reader(const char *format, va_list args)
{
	size_t used = strlen(told);

	if (used)
		used += (size_t)snprintf(told + used, sizeof(told) - used, "; ");
	if (used < sizeof(told))
		vsnprintf(told + used, sizeof(told) - used, format, args);
}

void broken(const char *format, ...)
{
	va_list args;

	breaches++;
	va_start(args, format);
	tell_reader(format, args);
	va_end(args);
}

void note(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	tell_reader(format, args);
	va_end(args);
}

uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

bool go_on(const struct hostile *h, uint64_t start)
{
	return (double)(now_ns() - start) < h->seconds * 1e9;
}

/* splitmix64 */
uint64_t rnd(struct hostile *h)
{
	uint64_t x = (h->random += 0x9e3779b97f4a7c15u);

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

uint32_t near_value(struct hostile *h, const uint32_t *values, unsigned n)
{
	uint64_t r = rnd(h);
	uint32_t v = values[(r >> 8) % n];

	switch (r & 15) {
	case 0:
		return (uint32_t)(r >> 32);
	case 1:
	case 2:
		return v + (uint32_t)(int32_t)(int16_t)(r >> 32);
	case 3:
	case 4:
	case 5:
		return v + (uint32_t)(int32_t)(int8_t)(r >> 32);
	default:
		return v;
	}
}

bool enlist(struct hostile *h)
{
	struct etran_msg_register m = {
		.h = {ETRAN_ABI_MAGIC, ETRAN_ABI_VERSION, ETRAN_MSG_REGISTER}, .comm = "hostile"};
	int fds[ET_CONTROL_MAX_FDS], nfds = ET_CONTROL_MAX_FDS;
	long n;

	h->has_rings = false;
	h->control = et_control_connect(h->run_dir);
	if (h->control < 0 || et_control_send(h->control, &m, sizeof(m), -1))
		return false;
	n = et_control_recv(h->control, &h->app, sizeof(h->app), fds, &nfds);
	if (n <= 0 || !et_control_valid(&h->app, (size_t)n, sizeof(h->app), ETRAN_MSG_REGISTERED) ||
	    nfds != 3) {
		close(h->control);
		return false;
	}
	h->arena_fd = fds[0];
	h->pub_fd = fds[1];
	h->wake_fd = fds[2];
	h->arena = mmap(NULL, h->app.arena_size, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
	h->pub = mmap(NULL, h->app.pub_size, PROT_READ, MAP_SHARED, fds[1], 0);
	return h->arena != MAP_FAILED && h->pub != MAP_FAILED;
}

static void map_ring(int xsk, struct ring *r, const struct xdp_ring_offset *o, uint32_t size,
		     size_t entry, uint64_t where)
{
	uint8_t *mem = mmap(NULL, o->desc + size * entry, PROT_READ | PROT_WRITE, MAP_SHARED, xsk,
			    (off_t)where);

	if (mem == MAP_FAILED)
		return;
	r->producer = (void *)(mem + o->producer);
	r->consumer = (void *)(mem + o->consumer);
	r->desc = mem + o->desc;
	r->size = size;
}

/* Take the RINGS message that comes with the first OBSERVE. */
static bool take_rings(struct hostile *h)
{
	int fds[ET_CONTROL_MAX_FDS], nfds = ET_CONTROL_MAX_FDS;
	struct pollfd p = {h->control, POLLIN, 0};
	struct xdp_mmap_offsets o;
	socklen_t size = sizeof(o);
	long n;

	if (h->has_rings)
		return true;
	if (poll(&p, 1, 3000) != 1)
		return false;
	n = et_control_recv(h->control, &h->rings, sizeof(h->rings), fds, &nfds);
	if (n <= 0 || !et_control_valid(&h->rings, (size_t)n, sizeof(h->rings), ETRAN_MSG_RINGS) ||
	    nfds < 3)
		return false;
	h->umem_fd = fds[0];
	h->tap = fds[1];
	h->xsk = fds[2];
	h->umem = mmap(NULL, (size_t)h->rings.frames * h->rings.frame_size, PROT_READ | PROT_WRITE,
		       MAP_SHARED, h->umem_fd, 0);
	if (h->umem == MAP_FAILED || getsockopt(h->xsk, SOL_XDP, XDP_MMAP_OFFSETS, &o, &size))
		return false;
	map_ring(h->xsk, &h->rx, &o.rx, h->rings.ring_size, sizeof(struct xdp_desc),
		 XDP_PGOFF_RX_RING);
	map_ring(h->xsk, &h->fill, &o.fr, h->rings.fill_size, sizeof(uint64_t),
		 XDP_UMEM_PGOFF_FILL_RING);
	if (!h->rx.size || !h->fill.size)
		return false;
	for (uint32_t i = 0; i < 1024; i++)
		((uint64_t *)h->fill.desc)[i] = (uint64_t)i * h->rings.frame_size;
	__atomic_store_n(h->fill.producer, 1024, __ATOMIC_RELEASE);
	return h->has_rings = true;
}

int dial(const struct hostile *h, in_port_t local_port)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
	struct sockaddr_in us = {.sin_family = AF_INET, .sin_port = local_port};
	struct timeval patience = {3, 0};

	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (fd >= 0 && (!local_port || !bind(fd, (void *)&us, sizeof(us))) &&
	    !connect(fd, (const void *)&h->peer, sizeof(h->peer)))
		return fd;
	close(fd);
	return -1;
}

bool echo(int fd, unsigned n)
{
	char out[256], in[256];

	memset(out, (int)n, sizeof(out));
	n = n < sizeof(out) ? n : sizeof(out);
	return send(fd, out, n, MSG_NOSIGNAL) == (ssize_t)n &&
	       recv(fd, in, n, MSG_WAITALL) == (ssize_t)n && !memcmp(in, out, n);
}

struct etran_aconn *aconn(const struct hostile *h, uint32_t slot)
{
	/* The header is ours to spoil: where things lie is known. */
	static uint64_t offset, stride;

	if (!offset) {
		offset = ((struct etran_arena *)h->arena)->conns_offset;
		stride = ((struct etran_arena *)h->arena)->conn_stride;
	}
	return (void *)(h->arena + offset + slot * stride);
}

struct etran_stash *stash(const struct hostile *h, unsigned i)
{
	static uint64_t offset;

	if (!offset)
		offset = ((struct etran_arena *)h->arena)->stash_offset;
	return (struct etran_stash *)(h->arena + offset) + i;
}

void tell(struct hostile *h, uint16_t type, uint32_t slot, uint32_t generation, int fd)
{
	struct etran_msg_slot m = {.h = {ETRAN_ABI_MAGIC, ETRAN_ABI_VERSION, type},
				   .slot = slot,
				   .generation = generation,
				   .reason = (uint32_t)rnd(h)};

	while (et_control_send(h->control, &m, sizeof(m), fd) == -EAGAIN)
		usleep(100);
}

void set_phase(struct conn *c, uint32_t phase)
{
	__atomic_store_n(&c->a->phase, phase, __ATOMIC_RELEASE);
	syscall(SYS_futex, &c->a->phase, FUTEX_WAKE, 1 << 30, NULL, NULL, 0);
}

uint32_t await(struct conn *c, uint32_t from, unsigned ms)
{
	for (uint64_t end = now_ns() + ms * 1000000ull; now_ns() < end; usleep(50))
		if (__atomic_load_n(&c->a->phase, __ATOMIC_ACQUIRE) != from)
			break;
	return __atomic_load_n(&c->a->phase, __ATOMIC_ACQUIRE);
}

bool observe(struct hostile *h, struct conn *c, int fd, uint32_t slot)
{
	*c = (struct conn){fd, slot, aconn(h, slot), (const void *)(h->pub + slot * sizeof(*c->p))};
	set_phase(c, ETRAN_PHASE_OBSERVE_REQ);
	tell(h, ETRAN_MSG_OBSERVE, slot, 0, fd);
	return await(c, ETRAN_PHASE_OBSERVE_REQ, 5000) == ETRAN_PHASE_OBSERVING && take_rings(h);
}

bool make_fast(struct hostile *h, struct conn *c, uint32_t slot)
{
	int fd = dial(h, 0);

	for (int turn = 0; fd >= 0 && turn < 20; turn++) {
		if (!observe(h, c, fd, slot))
			break;
		if (!echo(fd, 100) || !echo(fd, 1))
			break;
		set_phase(c, ETRAN_PHASE_SWITCH_REQ);
		tell(h, ETRAN_MSG_SWITCH, slot, c->a->generation, -1);
		if (await(c, ETRAN_PHASE_SWITCH_REQ, 3000) == ETRAN_PHASE_FAST)
			return true;
		set_phase(c, ETRAN_PHASE_REINJECT_REQ);
		tell(h, ETRAN_MSG_REINJECT, slot, c->a->generation, -1);
		await(c, ETRAN_PHASE_REINJECT_REQ, 3000);
	}
	if (fd >= 0)
		close(fd);
	return false;
}

/* Requests that do not fit the phase are ignored: one of these frees it. */
void give_up(struct hostile *h, struct conn *c)
{
	uint32_t generation = c->a->generation;

	tell(h, ETRAN_MSG_DEMOTE, c->slot, generation, -1);
	await(c, ETRAN_PHASE_FAST, 50);
	set_phase(c, ETRAN_PHASE_DRAINED);
	tell(h, ETRAN_MSG_REINJECT, c->slot, generation, -1);
	tell(h, ETRAN_MSG_CANCEL, c->slot, generation, -1);
	close(c->fd);
	usleep(10000);
}

static uint16_t sum(const uint8_t *p, unsigned n, uint32_t s)
{
	for (unsigned i = 0; i + 1 < n; i += 2)
		s += (uint32_t)p[i] << 8 | p[i + 1];
	s += n & 1 ? (uint32_t)p[n - 1] << 8 : 0;
	while (s >> 16)
		s = (s & 0xffff) + (s >> 16);
	return (uint16_t)~s;
}

unsigned forge(struct hostile *h, uint8_t *f, struct sockaddr_in from, struct sockaddr_in to)
{
	static const uint8_t flags[] = {0x02, 0x04, 0x10, 0x11, 0x14, 0x18, 0x29};
	unsigned n = (unsigned)(rnd(h) % 100), at = 14 + 20 + 20 + n;
	uint32_t numbers[2] = {(uint32_t)rnd(h), (uint32_t)rnd(h)};
	uint16_t total = htons((uint16_t)(40 + n)), check;

	memset(f, 0, at);
	memset(f, 0xff, 6);
	f[12] = 8;
	f[14] = 0x45;
	memcpy(f + 16, &total, 2);
	f[22] = 64;
	f[23] = IPPROTO_TCP;
	memcpy(f + 26, &from.sin_addr, 4);
	memcpy(f + 30, &to.sin_addr, 4);
	check = htons(sum(f + 14, 20, 0));
	memcpy(f + 24, &check, 2);
	memcpy(f + 34, &from.sin_port, 2);
	memcpy(f + 36, &to.sin_port, 2);
	memcpy(f + 38, numbers, 8);
	f[46] = 5 << 4;
	f[47] = flags[rnd(h) % sizeof(flags)];
	f[48] = 0x40;
	check = htons(sum(f + 34, 20 + n, (uint32_t)(uint16_t)~sum(f + 26, 8, 6 + 20 + n)));
	memcpy(f + 50, &check, 2);
	return at;
}

/* Until the daemon has done with what the last attack asked for: an answer
 * comes after those before it. */
static void catch_up(struct hostile *h)
{
	char answer[256];
	uint64_t start = now_ns();
	int fds[ET_CONTROL_MAX_FDS], nfds = 0;

	while (recv(h->control, answer, sizeof(answer), MSG_DONTWAIT) > 0)
		;
	tell(h, ETRAN_MSG_TAP, 0, 0, -1);
	for (struct pollfd p = {h->control, POLLIN, 0}; poll(&p, 1, 20000) == 1; nfds = 0) {
		long n = et_control_recv(h->control, answer, sizeof(answer), fds, &nfds);

		if (n <= 0 || et_control_valid(answer, (size_t)n, sizeof(struct etran_msg_done),
					       ETRAN_MSG_TAP_READY))
			break;
	}
	if (now_ns() - start > 100000000)
		note("after %llu ms", (unsigned long long)(now_ns() - start) / 1000000);
}

static void run(struct hostile *h, const char *name)
{
	static const struct attack *const all[] = {tap_attacks, handle_attacks, control_attacks,
						   switch_attacks};

	for (unsigned i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		for (const struct attack *a = all[i]; a->name; a++) {
			uint64_t tries;

			if (strcmp(a->name, name))
				continue;
			told[0] = 0;
			breaches = 0;
			catch_up(h);
			tries = a->run(h);
			printf("{\"attack\":\"%s\",\"tries\":%llu,\"breaches\":%u,\"told\":\"%s\"}\n",
			       name, (unsigned long long)tries, breaches, told);
			fflush(stdout);
			return;
		}
	}
	printf("{\"attack\":\"%s\",\"told\":\"no such attack\",\"breaches\":1}\n", name);
}

static struct sockaddr_in address(char *text)
{
	struct sockaddr_in a = {.sin_family = AF_INET};
	char *port = strchr(text, ':');

	if (port) {
		*port = 0;
		a.sin_port = htons((uint16_t)atoi(port + 1));
	}
	inet_pton(AF_INET, text, &a.sin_addr);
	return a;
}

int main(int argc, char **argv)
{
	struct hostile h = {.tap = -1, .xsk = -1};
	struct sockaddr_in victim;

	if (argc < 7)
		return 2;
	signal(SIGPIPE, SIG_IGN);
	h.run_dir = argv[1];
	h.peer = address(argv[2]);
	victim = address(argv[3]);
	h.victim = victim.sin_addr;
	h.victim_port = victim.sin_port;
	h.seconds = atof(argv[4]);
	h.random = strtoull(argv[5], NULL, 0);
	if (!enlist(&h)) {
		printf("{\"attack\":\"register\",\"breaches\":1,\"told\":\"not registered\"}\n");
		return 1;
	}
	for (int i = 6; i < argc; i++)
		run(&h, argv[i]);
	return 0;
}
