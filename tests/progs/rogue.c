// SPDX-License-Identifier: Apache-2.0
/*
 * A bad neighbour. It serves one connection as an echo server for some time, so
 * that it gets on the fast path, and then misbehaves until it is killed:
 *
 *   idle   reads no more
 *   flood  writes rubbish to every tap that it finds among its descriptors, as
 *          fast as it can
 *   rings  reads on, but fills the fill rings and the consumer words of its
 *          AF_XDP sockets with rubbish, again and again
 *
 * It prints a line when it begins to. What it tampers with was put into this
 * process by libetran.so; raw system calls reach it.
 */
#include <arpa/inet.h>
#include <linux/if_xdp.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pattern.h"

#define MAX_FD 65536
#define MAX_FOUND 16
#define ENTRIES 2048 /* of a fill ring */
#define FLOOD_NS 2000000000u /* of 4: pauses let the others be measured */

struct found {
	int fd[MAX_FOUND];
	unsigned int count;
};

static int serve(const char *port)
{
	const struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
	int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (const void *)&at, sizeof(at)) || listen(listener, 1)) {
		perror("listen");
		exit(1);
	}
	return accept(listener, NULL, NULL);
}

/* Sends back what comes until the time is over. */
static void echo(int fd, double seconds)
{
	const uint64_t end = pattern_now_ns() + (uint64_t)(seconds * 1e9);
	char buffer[65536];

	while (pattern_now_ns() < end) {
		ssize_t n = recv(fd, buffer, sizeof(buffer), 0);

		if (n <= 0 || send(fd, buffer, (size_t)n, MSG_NOSIGNAL) != n) {
			fprintf(stderr, "the client has left\n");
			exit(1);
		}
	}
}

static bool is_tap(int fd)
{
	char path[64], target[64] = "";

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return readlink(path, target, sizeof(target) - 1) > 0 && !strcmp(target, "/dev/net/tun");
}

static bool xdp_offsets(int fd, struct xdp_mmap_offsets *o)
{
	socklen_t n = sizeof(*o);

	return syscall(SYS_getsockopt, fd, SOL_XDP, XDP_MMAP_OFFSETS, o, &n) == 0;
}

static bool is_xdp(int fd)
{
	struct xdp_mmap_offsets o;

	return xdp_offsets(fd, &o);
}

static struct found find(bool (*wanted)(int))
{
	struct found f = {.count = 0};

	for (int fd = 0; fd < MAX_FD && f.count < MAX_FOUND; fd++)
		if (wanted(fd))
			f.fd[f.count++] = fd;
	return f;
}

static void announce(const char *what, unsigned int count)
{
	printf("%s %u\n", what, count);
	fflush(stdout);
	if (count == 0)
		exit(1);
}

static void flood(void)
{
	const struct found taps = find(is_tap);
	uint64_t random = 1;
	char frame[1600];

	announce("taps", taps.count);
	for (;;) {
		uint64_t end = pattern_now_ns() + FLOOD_NS;

		while (pattern_now_ns() < end)
			for (unsigned int i = 0; i < taps.count; i++) {
				random = pattern_mix(random);
				pattern_fill(frame, sizeof(frame), random, 0);
				syscall(SYS_write, taps.fd[i], frame, 60 + random % 1500);
			}
		usleep(FLOOD_NS / 1000);
	}
}

/* Rubbish descriptors and producer, and a consumer that runs ahead or behind. */
static void spoil(int fd, uint64_t random)
{
	struct xdp_mmap_offsets o;
	size_t size;
	char *fill, *rx;

	if (!xdp_offsets(fd, &o))
		return;
	size = o.fr.desc + ENTRIES * sizeof(uint64_t);
	fill = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, XDP_UMEM_PGOFF_FILL_RING);
	rx = mmap(NULL, o.rx.desc, PROT_READ | PROT_WRITE, MAP_SHARED, fd, XDP_PGOFF_RX_RING);
	if (fill == MAP_FAILED || rx == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	for (size_t i = 0; i < ENTRIES; i++)
		((uint64_t *)(fill + o.fr.desc))[i] = random = pattern_mix(random);
	*(volatile uint32_t *)(fill + o.fr.producer) += (uint32_t)random % (2 * ENTRIES);
	*(volatile uint32_t *)(rx + o.rx.consumer) = (uint32_t)(random >> 32);
	munmap(fill, size);
	munmap(rx, o.rx.desc);
}

static void spoil_rings(int fd)
{
	const struct found sockets = find(is_xdp);
	char buffer[65536];

	announce("sockets", sockets.count);
	for (uint64_t round = 0;; round++) {
		for (unsigned int i = 0; i < sockets.count; i++)
			spoil(sockets.fd[i], pattern_mix(round));
		while (recv(fd, buffer, sizeof(buffer), MSG_DONTWAIT) > 0)
			;
		usleep(1000);
	}
}

int main(int argc, char **argv)
{
	int fd;

	if (argc != 4) {
		fprintf(stderr, "usage: rogue PORT SECONDS idle|flood|rings\n");
		return 2;
	}
	fd = serve(argv[1]);
	echo(fd, atof(argv[2]));
	if (!strcmp(argv[3], "flood"))
		flood();
	if (!strcmp(argv[3], "rings"))
		spoil_rings(fd);
	announce("idle", 1);
	for (;;)
		pause();
}
