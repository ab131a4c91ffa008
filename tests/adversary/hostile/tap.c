// SPDX-License-Identifier: Apache-2.0
/* What can be done with a tap's descriptor. */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "hostile.h"

#define FRAME_MAX 65600u
static uint8_t frame[FRAME_MAX];

static uint16_t payload_sum(const uint8_t *p, unsigned n)
{
	uint32_t s = 0;

	for (unsigned i = 0; i + 1 < n; i += 2)
		s += p[i] | (uint32_t)p[i + 1] << 8;
	s += n & 1 ? p[n - 1] : 0;
	while (s >> 16)
		s = (s & 0xffff) + (s >> 16);
	return (uint16_t)s;
}

/* A request to send on a connection, each field near what is right. */
static unsigned request(struct hostile *h, const struct conn *c, uint8_t *f)
{
	uint32_t nxt = c->p->snd_nxt, una = c->p->snd_una, limit = c->p->snd_limit;
	uint32_t ack = c->p->rcv_nxt, kinds[] = {0, 1, 100, 1448, 1460};
	unsigned n = near_value(h, kinds, 5) % 2000;
	struct etran_tx_header t = {
		.magic = NEAR(h, ETRAN_ABI_MAGIC ^ ETRAN_ABI_VERSION),
		.slot = NEAR(h, c->slot, c->slot, ETRAN_FIRST_SLOT, ETRAN_APP_SLOTS, 0),
		.generation = NEAR(h, c->a->generation, c->a->generation, 0),
		.flags = (uint32_t)rnd(h) & (rnd(h) & 1 ? 0x3f : 0x10),
		.seq = NEAR(h, nxt, nxt, una, limit),
		.ack = NEAR(h, ack, ack + 1448),
		.wnd = NEAR(h, 65536, 0, 1 << 30, UINT32_MAX),
		.ring = NEAR(h, h->rings.first_ring, ETRAN_MAX_RINGS),
		.consumed = NEAR(h, 0, *h->rx.producer, 1u << 31),
		.length = (uint16_t)n,
	};

	if (t.flags & ETRAN_TX_SACK && rnd(h) & 3) {
		struct etran_tx_sack s = {.count = NEAR(h, 1, 2, 3, 0, UINT32_MAX)};

		for (unsigned i = 0; i < ETRAN_SACK_BLOCKS; i++)
			s.block[i] =
				(struct etran_range){NEAR(h, ack + 10, ack), NEAR(h, ack + 20)};
		t.length = 0;
		memcpy(f + ETRAN_HEADER_ROOM, &s, sizeof(s));
		n = sizeof(s);
	}
	/* Mostly the right sum, or the peer would not even look. */
	t.csum = rnd(h) % 8 ? payload_sum(f + ETRAN_HEADER_ROOM, t.length) : (uint16_t)rnd(h);
	memset(f, (int)rnd(h), ETRAN_HEADER_ROOM);
	memcpy(f, &t, sizeof(t));
	return ETRAN_HEADER_ROOM + n;
}

/* As a network device sees it: Ethernet to everybody, from somebody else. */
static unsigned raw_frame(struct hostile *h, uint8_t *f)
{
	struct sockaddr_in victim = {.sin_addr = h->victim, .sin_port = h->victim_port};
	unsigned n = forge(h, f, victim, h->peer);

	switch (rnd(h) % 4) {
	case 0: /* ARP */
		f[12] = 8;
		f[13] = 6;
		return 42;
	case 1: /* any type, padded or long */
		f[12] = (uint8_t)rnd(h);
		return n + (unsigned)(rnd(h) % 1400);
	default:
		return n;
	}
}

static void write_somehow(struct hostile *h, int tap, unsigned n)
{
	struct iovec v[3] = {{frame, rnd(h) % (n + 1)}, {frame, 0}, {NULL, 0}};

	if (rnd(h) & 3) {
		(void)!write(tap, frame, n);
		return;
	}
	v[2].iov_base = frame + v[0].iov_len;
	v[2].iov_len = n - v[0].iov_len;
	(void)!writev(tap, v, 3);
}

static uint64_t write_all_kinds(struct hostile *h, struct conn *c)
{
	uint64_t tries = 0;

	for (uint64_t start = now_ns(); go_on(h, start); tries++) {
		unsigned n;

		switch (rnd(h) % 16) {
		case 0:
			n = raw_frame(h, frame);
			break;
		case 1: /* runt */
			n = request(h, c, frame) % ETRAN_HEADER_ROOM;
			break;
		case 2: /* giant: the kernel takes another way for those */
			request(h, c, frame);
			n = (unsigned)(rnd(h) % FRAME_MAX);
			if (rnd(h) & 1)
				((struct etran_tx_header *)frame)->length =
					(uint16_t)(n - ETRAN_HEADER_ROOM);
			break;
		default:
			n = request(h, c, frame);
		}
		write_somehow(h, h->tap, n);
	}
	return tries;
}

static uint64_t tap_frames(struct hostile *h)
{
	struct conn c;
	uint64_t tries;

	if (!make_fast(h, &c, ETRAN_FIRST_SLOT)) {
		broken("no fast connection to attack with");
		return 0;
	}
	tries = write_all_kinds(h, &c);
	note("%u sent, %u refused", c.p->snd_nxt, c.p->tx_refused);
	give_up(h, &c);
	return tries;
}

/* Each request is right, there are just too many: acknowledgements and again
 * and again the same segment. */
static uint64_t tap_flood(struct hostile *h)
{
	struct conn c;
	uint64_t tries = 0;

	if (!make_fast(h, &c, ETRAN_FIRST_SLOT)) {
		broken("no fast connection to attack with");
		return 0;
	}
	for (uint64_t start = now_ns(); go_on(h, start); tries++) {
		struct etran_tx_header t = {.magic = ETRAN_ABI_MAGIC ^ ETRAN_ABI_VERSION,
					    .slot = c.slot,
					    .generation = c.a->generation,
					    .seq = c.p->snd_nxt,
					    .ack = c.p->rcv_nxt,
					    .wnd = 65536,
					    .length = tries % 2 * 100};

		memset(frame, 0, 200);
		memcpy(frame, &t, sizeof(t));
		(void)!write(h->tap, frame, ETRAN_HEADER_ROOM + t.length);
	}
	give_up(h, &c);
	return tries;
}

static void ioctl_told(int fd, const char *name, unsigned long request, void *arg)
{
	note("%s %s", name, ioctl(fd, request, arg) < 0 ? strerrorname_np(errno) : "ok");
}

static void harmless_ioctls(int tap)
{
	struct sock_filter pass = {BPF_RET | BPF_K, 0, 0, 0};
	struct sock_fprog filter = {1, &pass};
	struct ifreq r = {0};
	int one = 1, size = 64, minus = -1;

	ioctl_told(tap, "TUNSETPERSIST", TUNSETPERSIST, (void *)1);
	ioctl_told(tap, "TUNSETOWNER", TUNSETOWNER, (void *)65534);
	ioctl_told(tap, "TUNSETGROUP", TUNSETGROUP, (void *)65534);
	ioctl_told(tap, "TUNSETOFFLOAD", TUNSETOFFLOAD, (void *)(TUN_F_CSUM | TUN_F_TSO4));
	ioctl_told(tap, "TUNSETVNETHDRSZ", TUNSETVNETHDRSZ, &size);
	ioctl_told(tap, "TUNSETVNETLE", TUNSETVNETLE, &one);
	ioctl_told(tap, "TUNSETVNETBE", TUNSETVNETBE, &one);
	ioctl_told(tap, "TUNSETNOCSUM", TUNSETNOCSUM, (void *)1);
	ioctl_told(tap, "TUNSETLINK", TUNSETLINK, (void *)1);
	ioctl_told(tap, "TUNATTACHFILTER", TUNATTACHFILTER, &filter);
	ioctl_told(tap, "TUNSETSTEERINGEBPF", TUNSETSTEERINGEBPF, &minus);
	ioctl_told(tap, "TUNSETFILTEREBPF", TUNSETFILTEREBPF, &minus);
	r.ifr_hwaddr.sa_family = 1;
	r.ifr_hwaddr.sa_data[5] = 7;
	ioctl_told(tap, "SIOCSIFHWADDR", SIOCSIFHWADDR, &r);
	ioctl_told(tap, "TUNSETCARRIER", TUNSETCARRIER, &one);
}

static uint64_t tap_ioctls(struct hostile *h)
{
	struct ifreq r = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
	struct conn c;
	uint64_t tries;
	int size = 1, old = 0;

	if (!make_fast(h, &c, ETRAN_FIRST_SLOT)) {
		broken("no fast connection to attack with");
		return 0;
	}
	MUST_FAIL(ioctl(h->tap, TUNSETIFF, &r));
	r.ifr_flags = IFF_DETACH_QUEUE;
	MUST_FAIL(ioctl(h->tap, TUNSETQUEUE, &r));
	r.ifr_flags = IFF_ATTACH_QUEUE;
	MUST_FAIL(ioctl(h->tap, TUNSETQUEUE, &r));
	MUST_FAIL(ioctl(h->tap, TUNGETDEVNETNS, 0));
	MUST_FAIL(ioctl(h->xsk, SIOCGSKNS, 0));
	harmless_ioctls(h->tap);
	tries = write_all_kinds(h, &c);
	/* Other ways through the kernel: no XDP buffer, no page of its own. */
	ioctl(h->tap, TUNGETSNDBUF, &old);
	ioctl_told(h->tap, "TUNSETSNDBUF", TUNSETSNDBUF, &(int){1 << 20});
	tries += write_all_kinds(h, &c);
	ioctl(h->tap, TUNSETSNDBUF, &size);
	fcntl(h->tap, F_SETFL, 0);
	size = old;
	ioctl(h->tap, TUNSETSNDBUF, &size);
	tries += write_all_kinds(h, &c);
	fcntl(h->tap, F_SETFL, O_NONBLOCK);
	give_up(h, &c);
	return tries;
}

const struct attack tap_attacks[] = {{"tap-frames", tap_frames},
				     {"tap-flood", tap_flood},
				     {"tap-ioctls", tap_ioctls},
				     {NULL, NULL}};
