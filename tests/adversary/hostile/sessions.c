// SPDX-License-Identifier: Apache-2.0
/* The control protocol: floods, nonsense, foreign descriptors, quotas. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hostile.h"

#define STRANGERS 16

/* Descriptors that are no connection of ours. */
static unsigned strangers(struct hostile *h, int *fd)
{
	struct sockaddr_in any = {.sin_family = AF_INET};
	unsigned n = 0;
	int pair[2];

	fd[n++] = open("/", O_RDONLY | O_DIRECTORY);
	fd[n++] = open("/etc/passwd", O_PATH);
	fd[n++] = open("/dev/zero", O_RDWR);
	fd[n++] = memfd_create("stranger", 0);
	fd[n++] = eventfd(0, 0);
	fd[n++] = epoll_create1(0);
	fd[n++] = socket(AF_INET, SOCK_DGRAM, 0);
	fd[n++] = socket(AF_INET6, SOCK_STREAM, 0);
	fd[n++] = socket(AF_INET, SOCK_STREAM, 0); /* not connected */
	fd[n] = socket(AF_INET, SOCK_STREAM, 0);   /* listens */
	bind(fd[n], (void *)&any, sizeof(any));
	listen(fd[n++], 1);
	if (!pipe(pair)) {
		fd[n++] = pair[0];
		fd[n++] = pair[1];
	}
	if (!socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) {
		fd[n++] = pair[0];
		fd[n++] = pair[1];
	}
	fd[n++] = h->control;
	fd[n++] = h->arena_fd;
	return n;
}

/* Any octets, with any number of descriptors. */
static void send_anything(struct hostile *h, int sock, const int *fd, unsigned n)
{
	uint8_t packet[300];
	union {
		struct cmsghdr h;
		char room[CMSG_SPACE(64 * sizeof(int))];
	} c;
	struct etran_msg_slot m = {.h = {ETRAN_ABI_MAGIC, ETRAN_ABI_VERSION, ETRAN_MSG_OBSERVE}};
	unsigned count = (unsigned)(rnd(h) % 3 ? 1 : rnd(h) % 64), length = sizeof(m);
	static const uint16_t types[] = {1, 10, 11, 12, 13, 14, 15, 20, 30, 99};
	struct iovec iov = {packet, 0};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	m.h.type = types[rnd(h) % 10];
	m.slot = NEAR(h, ETRAN_FIRST_SLOT, ETRAN_APP_SLOTS, 0, h->app.slots);
	m.generation = (uint32_t)rnd(h);
	for (unsigned i = 0; i < sizeof(packet); i++)
		packet[i] = (uint8_t)rnd(h);
	if (rnd(h) % 4) {
		memcpy(packet, &m, sizeof(m));
		count = m.h.type == ETRAN_MSG_OBSERVE || m.h.type == ETRAN_MSG_DEMOTE_FOREIGN;
	} else {
		length = (unsigned)(rnd(h) % sizeof(packet));
	}
	iov.iov_len = length;
	if (count) {
		msg.msg_control = &c;
		msg.msg_controllen = CMSG_SPACE(count * sizeof(int));
		c.h.cmsg_level = SOL_SOCKET;
		c.h.cmsg_type = SCM_RIGHTS;
		c.h.cmsg_len = CMSG_LEN(count * sizeof(int));
		for (unsigned i = 0; i < count; i++)
			((int *)CMSG_DATA(&c.h))[i] = fd[rnd(h) % n];
	}
	(void)!sendmsg(sock, &msg, MSG_NOSIGNAL | (rnd(h) % 64 ? 0 : MSG_DONTWAIT));
}

static void forget(struct hostile *another)
{
	munmap(another->arena, another->app.arena_size);
	munmap((void *)another->pub, another->app.pub_size);
	close(another->arena_fd);
	close(another->pub_fd);
	close(another->wake_fd);
}

/* A session of a registered application, or -1. */
static int enlist_briefly(const struct hostile *h)
{
	struct hostile another = *h;

	if (!enlist(&another))
		return -1;
	forget(&another);
	return another.control;
}

/* On many sessions, in turn; a session that the daemon ends is made again. */
static uint64_t nonsense(struct hostile *h)
{
	int fd[STRANGERS], session[8] = {-1, -1, -1, -1, -1, -1, -1, -1};
	unsigned n = strangers(h, fd);
	uint64_t tries = 0;

	for (uint64_t start = now_ns(); go_on(h, start); tries++) {
		int *s = &session[rnd(h) % 8];

		if (*s < 0 || recv(*s, &(char){0}, 1, MSG_DONTWAIT | MSG_PEEK) == 0) {
			if (*s >= 0)
				close(*s);
			*s = rnd(h) & 1 ? enlist_briefly(h) : et_control_connect(h->run_dir);
		}
		if (*s >= 0)
			send_anything(h, *s, fd, n);
	}
	for (unsigned i = 0; i < 8; i++)
		close(session[i]);
	for (unsigned i = 0; i < n; i++)
		if (fd[i] != h->control && fd[i] != h->arena_fd)
			close(fd[i]);
	return tries;
}

/* As many sessions as can be had, none of which says a word. */
static uint64_t many_sessions(struct hostile *h)
{
	struct rlimit most;
	uint64_t tries = 0;
	int first = -1, last = -1;

	getrlimit(RLIMIT_NOFILE, &most);
	most.rlim_cur = most.rlim_max;
	setrlimit(RLIMIT_NOFILE, &most);
	for (; tries < 10000; tries++) {
		int s = et_control_connect(h->run_dir);

		if (s < 0)
			break;
		first = first < 0 ? s : first;
		last = s;
	}
	usleep((useconds_t)(h->seconds * 1e6));
	for (int s = first; s >= 0 && s <= last; s++)
		if (s != h->control && s > h->wake_fd)
			close(s);
	return tries;
}

/* Every application there can be, from one process; then as many taps and slots. */
static uint64_t quotas(struct hostile *h)
{
	static struct hostile extra[2 * ETRAN_MAX_APPS];
	unsigned apps = 0, taps = 0;
	struct conn c;

	for (; apps < 2 * ETRAN_MAX_APPS; apps++) {
		extra[apps] = *h;
		if (!enlist(&extra[apps]))
			break;
		memset(extra[apps].arena, 1, 1 << 20);
	}
	if (make_fast(h, &c, ETRAN_FIRST_SLOT)) {
		for (; taps < 2000; taps++)
			tell(h, ETRAN_MSG_TAP, 0, 0, -1); /* nobody reads the answers */
		give_up(h, &c);
	}
	note("%u applications, %u tap requests", apps, taps);
	usleep((useconds_t)(h->seconds * 1e6));
	for (unsigned i = 0; i < apps; i++) {
		close(extra[i].control);
		forget(&extra[i]);
	}
	return apps + taps;
}

/* A descriptor in every slot, and requests that are heavy and useless. */
static uint64_t slots(struct hostile *owner)
{
	struct hostile another = *owner, *h = &another;
	int fd = dial(owner, 0);
	uint64_t tries = 0;

	/* Its own requests have this one's session to themselves. */
	if (!enlist(h))
		return 0;
	for (uint64_t start = now_ns(); go_on(h, start); tries++) {
		uint32_t slot =
			ETRAN_FIRST_SLOT + (uint32_t)(rnd(h) % (h->app.slots - ETRAN_FIRST_SLOT));

		tell(h, ETRAN_MSG_OBSERVE, slot, 0, fd);
		if (rnd(h) & 1)
			tell(h, ETRAN_MSG_CANCEL, slot, 0, -1);
	}
	for (uint32_t slot = ETRAN_FIRST_SLOT; slot < h->app.slots; slot++)
		tell(h, ETRAN_MSG_CANCEL, slot, 0, -1);
	close(fd);
	return tries;
}

const struct attack control_attacks[] = {{"nonsense", nonsense},
					 {"sessions", many_sessions},
					 {"quotas", quotas},
					 {"slots", slots},
					 {NULL, NULL}};
