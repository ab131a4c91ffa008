/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A program that attacks the daemon, the data path and other programs with
 * everything that an application is given. It speaks the control protocol
 * itself and is not under libetran.so.
 */
#ifndef ETRAN_TESTS_HOSTILE_H
#define ETRAN_TESTS_HOSTILE_H

#include <linux/if_xdp.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <etran/abi.h>

#include "control.h"

struct ring {
	uint32_t *producer, *consumer;
	void *desc;
	uint32_t size;
};

/* What one registration brings. */
struct hostile {
	const char *run_dir;
	struct sockaddr_in peer; /* an echo server on another host */
	struct in_addr victim;   /* of other programs' connections, for forged frames */
	in_port_t victim_port;
	double seconds; /* for attacks that go on for a while */
	uint64_t random;

	int control;
	struct etran_msg_registered app;
	int arena_fd, pub_fd, wake_fd;
	uint8_t *arena;
	const uint8_t *pub;
	bool has_rings;
	struct etran_msg_rings rings;
	int umem_fd, tap, xsk;
	uint8_t *umem;
	struct ring rx, fill;
};

/* One connection with a slot. */
struct conn {
	int fd;
	uint32_t slot;
	volatile struct etran_aconn *a;
	const volatile struct etran_pub *p;
};

/* An attack returns how many times it tried something. */
struct attack {
	const char *name;
	uint64_t (*run)(struct hostile *h);
};
extern const struct attack tap_attacks[], handle_attacks[], control_attacks[], switch_attacks[];

/* Something was possible that must not be: told to the test, which fails. */
void broken(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Something for the reader of the results. */
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
#define MUST_FAIL(call)                                                                            \
	do {                                                                                       \
		if ((call) >= 0)                                                                   \
			broken("%s succeeded", #call);                                             \
	} while (0)

uint64_t rnd(struct hostile *h);
/* One of the values or near it, rarely anything: as the fuzzers draw. */
uint32_t near_value(struct hostile *h, const uint32_t *values, unsigned n);
#define NEAR(h, ...)                                                                               \
	near_value(h, (const uint32_t[]){__VA_ARGS__},                                             \
		   sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t))
/* False once `seconds` have passed since `start`. */
bool go_on(const struct hostile *h, uint64_t start);
uint64_t now_ns(void);

/* Register; false if refused. Further sessions: in a copy of `h`. */
bool enlist(struct hostile *h);
/* An echo connection; -1 if none. local_port 0: any. */
int dial(const struct hostile *h, in_port_t local_port);
/* Send octets and take the echo; false if it does not come within 3 s. */
bool echo(int fd, unsigned n);
/* A connection in OBSERVING, or on the fast path; false if the daemon does not. */
bool observe(struct hostile *h, struct conn *c, int fd, uint32_t slot);
bool make_fast(struct hostile *h, struct conn *c, uint32_t slot);
/* Without a word about what became of it. */
void tell(struct hostile *h, uint16_t type, uint32_t slot, uint32_t generation, int fd);
uint32_t await(struct conn *c, uint32_t from, unsigned ms);
void set_phase(struct conn *c, uint32_t phase);
/* Free a slot in whatever phase it is. */
void give_up(struct hostile *h, struct conn *c);
struct etran_aconn *aconn(const struct hostile *h, uint32_t slot);
struct etran_stash *stash(const struct hostile *h, unsigned i);
/* A segment that the peer of a connection might have sent; returns its length. */
unsigned forge(struct hostile *h, uint8_t *frame, struct sockaddr_in from, struct sockaddr_in to);

#endif
