// SPDX-License-Identifier: Apache-2.0
/*
 * A program that somebody ends: killed, its sockets closed behind the C
 * library's back, or destroyed by an administrator.
 *
 * It makes connections to a sink and sends on each, from a thread of its own,
 * its number (four octets, network order) and then a stream that depends on
 * the connection and the position. What send() has taken stands in a file, a
 * counter per connection, which outlives the program. The sink checks.
 *
 * SIGUSR1 ends the sending, between two calls; then --action follows:
 *   none    wait
 *   raw     close the sockets by close_range() as a raw system call
 *   fork    make a child that waits for the end of its parent, sends
 *           CHILD_BYTES more on each connection, and exits
 * An error of send() is printed, with the number of the connection.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "raw.h"

#define MAX_CONNECTIONS 64
#define PIECE 20000u
#define CHILD_BYTES 100000u

static int fds[MAX_CONNECTIONS];
static _Atomic uint64_t *ledger; /* octets that send() has taken */
static unsigned count;
static atomic_bool quiet;

static uint8_t octet(unsigned connection, uint64_t at)
{
	return (uint8_t)(((uint32_t)at * 2654435761u >> 13) + connection);
}

/* False: send() failed. */
static bool send_piece(unsigned i, unsigned n)
{
	uint8_t buffer[PIECE];
	ssize_t sent;

	for (unsigned k = 0; k < n; k++)
		buffer[k] = octet(i, ledger[i] + k);
	sent = send(fds[i], buffer, n, MSG_NOSIGNAL);
	if (sent < 0 && errno == EINTR)
		return true;
	if (sent < 0) {
		printf("connection %u: %s\n", i, strerror(errno));
		fflush(stdout);
		return false;
	}
	ledger[i] += (uint64_t)sent;
	return true;
}

static void *run(void *argument)
{
	unsigned i = (unsigned)(uintptr_t)argument, seed = i + 1;

	/* Not so fast that the kernel's send buffer is always full: such a
	 * connection would never become fast. */
	while (!quiet && send_piece(i, 1 + (unsigned)rand_r(&seed) % PIECE))
		usleep((useconds_t)rand_r(&seed) % 1000);
	return NULL;
}

static void connect_all(const char *host, uint16_t port)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};

	inet_pton(AF_INET, host, &to.sin_addr);
	for (unsigned i = 0; i < count; i++) {
		uint32_t number = htonl(i);

		fds[i] = socket(AF_INET, SOCK_STREAM, 0);
		if (fds[i] < 0 || connect(fds[i], (struct sockaddr *)&to, sizeof(to)) ||
		    send(fds[i], &number, sizeof(number), 0) != sizeof(number)) {
			perror("doomed: connecting");
			exit(1);
		}
	}
}

static void child(int parent_lives)
{
	char octet;

	/* The parent's end closes with the parent. */
	while (read(parent_lives, &octet, 1) > 0 || errno == EINTR)
		;
	for (unsigned i = 0; i < count; i++) {
		uint64_t end = ledger[i] + CHILD_BYTES;

		while (ledger[i] < end)
			if (!send_piece(i, end - ledger[i] < PIECE ? (unsigned)(end - ledger[i])
								   : PIECE))
				break;
	}
	_exit(0);
}

static void act(const char *action)
{
	int lives[2];

	if (!strcmp(action, "raw")) {
		for (unsigned i = 0; i < count; i++)
			raw_syscall(SYS_close_range, fds[i], fds[i], 0);
	} else if (!strcmp(action, "fork") && !pipe2(lives, O_CLOEXEC)) {
		if (!fork()) {
			close(lives[1]);
			child(lives[0]);
		}
	}
	printf("done\n");
	fflush(stdout);
}

int main(int argc, char **argv)
{
	pthread_t thread[MAX_CONNECTIONS];
	sigset_t usr1;
	int fd, sig;

	if (argc != 6 || (count = (unsigned)atoi(argv[3])) > MAX_CONNECTIONS) {
		fputs("usage: doomed HOST PORT CONNECTIONS LEDGER none|raw|fork\n", stderr);
		return 2;
	}
	fd = open(argv[4], O_RDWR | O_CREAT | O_TRUNC, 0666);
	if (fd < 0 || ftruncate(fd, MAX_CONNECTIONS * sizeof(*ledger)))
		return 1;
	ledger = mmap(NULL, MAX_CONNECTIONS * sizeof(*ledger), PROT_READ | PROT_WRITE, MAP_SHARED,
		      fd, 0);
	if (ledger == MAP_FAILED)
		return 1;
	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &usr1, NULL);
	connect_all(argv[1], (uint16_t)atoi(argv[2]));
	for (unsigned i = 0; i < count; i++)
		pthread_create(&thread[i], NULL, run, (void *)(uintptr_t)i);
	sigwait(&usr1, &sig);
	quiet = true;
	for (unsigned i = 0; i < count; i++)
		pthread_join(thread[i], NULL);
	act(argv[5]);
	for (;;)
		pause();
}
