/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What Linux sockets do, case by case.
 *
 * The program runs on two hosts. One end is active: it makes the calls that a
 * case is about and writes down what they gave, its transcript. The other is
 * the active one's peer and does what it is told over a control connection.
 * Every case has a fresh connection between them, first used for a while, so
 * that a fast path can take it. Whatever is written down must not depend on
 * chance: a transcript of the same program on any transport must be the same.
 */
#ifndef ETRAN_SEMANTICS_H
#define ETRAN_SEMANTICS_H

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct test_case {
	const char *name;
	/* fd: the case's connection, the function's to use up. */
	void (*run)(int fd);
	/* The connection must be one of the kernel's: it is not warmed up. */
	bool cold;
};
#define CASE(function) {.name = #function, .run = function}
#define COLD(function) {.name = #function, .run = function, .cold = true}
#define END_OF_CASES {.name = NULL}

extern const struct test_case bad_cases[], blocking_cases[], calls_cases[], connect_cases[],
	ending_cases[], epoll_cases[], fds_cases[], ioctl_cases[], options_cases[], poll_cases[],
	process_cases[], select_cases[], signal_cases[], stdio_cases[], threads_cases[],
	transfer_cases[], vector_cases[];

/* ---- the transcript (report.c) ------------------------------------------- */

/* A line of the transcript. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* What the program itself could not do: to standard error, and exit. */
void give_up(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

/* errno before each call; a call that succeeds leaves it alone. */
#define UNTOUCHED EXFULL
/* Make a call and write down what it gave. */
#define CALL(expr)                                                                                 \
	({                                                                                         \
		errno = UNTOUCHED;                                                                 \
		reported(#expr, (long)(expr));                                                     \
	})
/* The same for a call that sends octets OUT, and one that receives into `in`;
 * what comes is compared with what the peer sent. */
#define SENT(expr) did_send(CALL(expr))
#define GOT(expr) did_receive(CALL(expr), true)
#define PEEKED(expr) did_receive(CALL(expr), false)
/* A call whose result says nothing or may differ; only failure is written down. */
#define QUIETLY(expr)                                                                              \
	({                                                                                         \
		errno = UNTOUCHED;                                                                 \
		unreported(#expr, (long)(expr));                                                   \
	})
long reported(const char *text, long result);
long unreported(const char *text, long result);
long did_send(long n);
long did_receive(long n, bool consumed);
/* n octets at p are the next ones that the peer sent. */
void expect_octets(const void *p, size_t n);
/* "IN|OUT" of POLL* or, as they have the same values, EPOLL*. */
const char *event_names(uint32_t events);
const char *errno_name(int err);

/* ---- octets --------------------------------------------------------------- */

#define STREAM_OCTETS (8u << 20)
extern char stream[];           /* what either end sends */
extern size_t sent, received;   /* of it, by this end */
extern char in[1 << 20];
#define OUT (stream + sent)

/* ---- time and signals (report.c) ------------------------------------------ */

void sleep_ms(int ms);
uint64_t now_ms(void);
/* "early", "in time" or "late" for something that was to last `ms`. */
const char *punctual(uint64_t start, int ms);

extern volatile sig_atomic_t handled; /* signals seen by count_signal() */
void count_signal(int sig);
/* Install a handler; flags as of sigaction(). */
void handle(int sig, void (*handler)(int), int flags);
/* Send the calling thread a signal in a while. */
void interrupt_in(int ms, int sig);

/* A thread in a call that may block, and what became of it. */
struct blocked {
	pthread_t thread;
	int fd;
	long result;
	int err;
	_Atomic bool done;
};
/* Start f(b->fd), and find out whether it blocks. */
void block_in(struct blocked *b, long (*f)(int fd), int fd, const char *what);
/* It returns: write down what. */
void unblocked(struct blocked *b, const char *what);
void still_blocked(struct blocked *b, const char *what);

/* ---- the peer (peer.c) ---------------------------------------------------- */

/* The peer does something and has done it when these return. */
void peer_send(size_t n);
/* Reads n octets, or what comes until the end or for two seconds. */
void peer_receive(size_t n);
/* Reads to the end of the stream, or to an error. */
void peer_drain(void);
void peer_close(void);
void peer_reset(void);
void peer_shutdown(int how);
void peer_send_urgent(void);
void peer_option(int level, int name, int value);
/* Sends back the next n octets, each by itself; returns at once. */
void peer_echo(int n);
/* Fills what buffers there are. */
void peer_stuff(void);
/* Returns at once; the peer does it after a while. */
void peer_send_later(int ms, size_t n);
void peer_close_later(int ms);
void peer_shutdown_later(int ms, int how);
void peer_reset_later(int ms);
void peer_receive_later(int ms, size_t n);
/* The peer is done with what it was to do later. */
void peer_await(void);
/* Listens on a port of its address, which is returned. What it accepts, or a
 * connection it makes, takes the place of the case's on its side. */
struct sockaddr_in peer_listen(int backlog);
void peer_accept(void);
void peer_connect(const struct sockaddr_in *to);
void peer_stop_listening(void);
/* This end's address on the wire under test, with port 0. */
struct sockaddr_in own_address(void);

/* Send until there is no room at all. */
void fill_up(int fd);
/* n octets from the peer can be read. */
void await_octets(int fd, int n);
/* What the peer did has arrived. */
void settle(void);

#endif
