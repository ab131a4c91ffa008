// SPDX-License-Identifier: Apache-2.0
/* What can be done with the other handles: published map, memories, AF_XDP. */
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "hostile.h"

static long bpf(int op, union bpf_attr *attr)
{
	return syscall(SYS_bpf, op, attr, sizeof(*attr));
}

static uint64_t map_descriptor(struct hostile *h)
{
	static uint8_t value[sizeof(struct etran_pub)];
	uint32_t key = ETRAN_FIRST_SLOT;
	union bpf_attr a = {.map_fd = (uint32_t)h->pub_fd};
	void *p;

	a.key = (uintptr_t)&key;
	a.value = (uintptr_t)value;
	MUST_FAIL(bpf(BPF_MAP_UPDATE_ELEM, &a));
	MUST_FAIL(bpf(BPF_MAP_DELETE_ELEM, &a));
	MUST_FAIL(bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &a));
	memset(&a, 0, sizeof(a));
	a.batch.map_fd = (uint32_t)h->pub_fd;
	a.batch.keys = (uintptr_t)&key;
	a.batch.values = (uintptr_t)value;
	a.batch.count = 1;
	MUST_FAIL(bpf(BPF_MAP_UPDATE_BATCH, &a));
	MUST_FAIL(bpf(BPF_MAP_DELETE_BATCH, &a));
	memset(&a, 0, sizeof(a));
	a.pathname = (uintptr_t)"/sys/fs/bpf/hostile";
	a.bpf_fd = (uint32_t)h->pub_fd;
	MUST_FAIL(bpf(BPF_OBJ_PIN, &a));
	p = mmap(NULL, h->app.pub_size, PROT_READ | PROT_WRITE, MAP_SHARED, h->pub_fd, 0);
	if (p != MAP_FAILED)
		broken("published map is writable");
	MUST_FAIL(mprotect((void *)h->pub, h->app.pub_size, PROT_READ | PROT_WRITE));
	MUST_FAIL(ftruncate(h->pub_fd, 0));
	return 10;
}

static uint64_t one_memory(int fd, size_t size)
{
	MUST_FAIL(ftruncate(fd, 0));
	MUST_FAIL(ftruncate(fd, (off_t)size / 2));
	MUST_FAIL(ftruncate(fd, (off_t)size * 2));
	MUST_FAIL(fallocate(fd, 0, (off_t)size, 4096));
	MUST_FAIL(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
	MUST_FAIL(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
	MUST_FAIL(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, 4096));
	note("punch hole %s",
	     fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)size)
		     ? strerrorname_np(errno)
		     : "ok");
	return 8;
}

static uint64_t memory_descriptors(struct hostile *h)
{
	struct conn c;
	uint64_t tries;

	if (!make_fast(h, &c, ETRAN_FIRST_SLOT)) {
		broken("no fast connection to attack with");
		return 0;
	}
	tries = one_memory(h->umem_fd, (size_t)h->rings.frames * h->rings.frame_size);
	tries += one_memory(h->arena_fd, h->app.arena_size);
	give_up(h, &c);
	return tries;
}

static void xsk_options(int xsk)
{
	struct sockaddr_xdp again = {.sxdp_family = AF_XDP, .sxdp_ifindex = 1};
	static uint8_t memory[1 << 16] __attribute__((aligned(4096)));
	struct xdp_umem_reg reg = {
		.addr = (uintptr_t)memory, .len = sizeof(memory), .chunk_size = 2048};
	int entries = 64;

	MUST_FAIL(setsockopt(xsk, SOL_XDP, XDP_UMEM_REG, &reg, sizeof(reg)));
	MUST_FAIL(setsockopt(xsk, SOL_XDP, XDP_TX_RING, &entries, sizeof(entries)));
	MUST_FAIL(setsockopt(xsk, SOL_XDP, XDP_RX_RING, &entries, sizeof(entries)));
	MUST_FAIL(setsockopt(xsk, SOL_XDP, XDP_UMEM_FILL_RING, &entries, sizeof(entries)));
	MUST_FAIL(setsockopt(xsk, SOL_XDP, XDP_UMEM_COMPLETION_RING, &entries, sizeof(entries)));
	MUST_FAIL(bind(xsk, (void *)&again, sizeof(again)));
	again.sxdp_flags = XDP_ZEROCOPY;
	MUST_FAIL(bind(xsk, (void *)&again, sizeof(again)));
	MUST_FAIL(send(xsk, memory, 64, MSG_DONTWAIT));
	if (mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, xsk, XDP_PGOFF_TX_RING) !=
	    MAP_FAILED)
		broken("a transmit ring");
}

/* Other sockets by way of our memory would need the right to make one. */
static void another_socket(int xsk)
{
	struct sockaddr_xdp a = {.sxdp_family = AF_XDP,
				 .sxdp_ifindex = 1,
				 .sxdp_flags = XDP_SHARED_UMEM,
				 .sxdp_shared_umem_fd = (uint32_t)xsk};
	int s = socket(AF_XDP, SOCK_RAW, 0);

	if (s < 0)
		return;
	if (!bind(s, (void *)&a, sizeof(a)))
		broken("another AF_XDP socket on our memory");
	close(s);
}

/* Data on a fast connection, which the peer answers with as much. */
static void provoke(struct hostile *h, const struct conn *c)
{
	uint8_t f[ETRAN_HEADER_ROOM + 1000] = {0};
	struct etran_tx_header t = {.magic = ETRAN_ABI_MAGIC ^ ETRAN_ABI_VERSION,
				    .slot = c->slot,
				    .generation = c->a->generation,
				    .seq = c->p->snd_nxt,
				    .ack = c->p->rcv_nxt + 1000,
				    .wnd = 65536,
				    .ring = h->rings.first_ring,
				    .consumed = *h->rx.producer,
				    .length = 1000};

	memcpy(f, &t, sizeof(t));
	(void)!write(h->tap, f, sizeof(f));
}

static void spoil_rings(struct hostile *h)
{
	uint32_t producer = *h->rx.producer;
	uint64_t end = (uint64_t)h->rings.frames * h->rings.frame_size;
	uint64_t *addr = h->fill.desc;

	for (int i = 0; i < 64; i++) {
		uint64_t r = rnd(h),
			 edge[] = {0, end,        end - 1,    end - 2048,      end - 255,
				   r, UINT64_MAX, 1ull << 48, 2048 * (r % 64), 255};

		addr[r % h->fill.size] = edge[(r >> 32) % 10] + (r >> 40) % 3;
	}
	__atomic_store_n(h->fill.producer, NEAR(h, *h->fill.consumer + 64, *h->fill.producer),
			 __ATOMIC_RELEASE);
	if (!(rnd(h) % 8))
		__atomic_store_n(h->fill.consumer, (uint32_t)rnd(h), __ATOMIC_RELEASE);
	__atomic_store_n(h->rx.consumer, NEAR(h, producer, producer - 100), __ATOMIC_RELEASE);
	if (!(rnd(h) % 64))
		__atomic_store_n(h->rx.producer, (uint32_t)rnd(h), __ATOMIC_RELEASE);
}

static uint64_t xsk_rings(struct hostile *h)
{
	struct conn c;
	uint64_t tries = 0;
	uint32_t came;

	if (!make_fast(h, &c, ETRAN_FIRST_SLOT)) {
		broken("no fast connection to attack with");
		return 0;
	}
	xsk_options(h->xsk);
	another_socket(h->xsk);
	came = ((const struct etran_pub_ring *)h->pub)->delivered;
	for (uint64_t start = now_ns(); go_on(h, start); tries++) {
		provoke(h, &c);
		spoil_rings(h);
	}
	came = ((const struct etran_pub_ring *)h->pub)->delivered - came;
	/* Few or none: XDP gives nothing to a socket whose fill ring is spoilt. */
	note("%u frames delivered meanwhile", came);
	give_up(h, &c);
	return tries;
}

const struct attack handle_attacks[] = {{"map", map_descriptor},
					{"memory", memory_descriptors},
					{"xsk-rings", xsk_rings},
					{NULL, NULL}};
