// SPDX-License-Identifier: Apache-2.0
/*
 * Live streams in both directions at once, with every byte checked.
 *
 * A server and a client share a number of connections. On each, either side
 * sends a stream of bytes that depends on the connection, the direction and
 * the position, in pieces of random size, for some time or for some bytes, and
 * then shuts its direction down; it checks what it receives until the other's
 * end of stream, and closes. Each side prints one line of JSON. Nothing was
 * lost if neither saw a mismatch or an error and each received as many bytes
 * as the other sent.
 *
 * The stall of a connection is the longest time between two receptions; what
 * a switch between two paths costs shows there. With --rate it is known when a
 * piece should have come, if each is one segment (--piece): those that came
 * late are listed, with the client's port, the time and by how much.
 *
 * SIGUSR1 ends the sending early.
 *
 * One thread serves all with epoll, or, with --blocking or --mixed, a sending
 * and a receiving thread serve each connection: with blocking calls, some of the
 * receivers waiting in recv() and some in poll(); with --mixed, some of them in
 * epoll_wait().
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pattern.h"

#define CHUNK 65536
#define LATE_NS 500000
#define MAX_LATE 200000
#define CONNECT_PATIENCE_NS 5000000000u
#define HELLO_MAGIC 0x6574737472656d31u /* "etstrem1" */

enum waiting { WAIT_EPOLL, WAIT_BLOCKING, WAIT_MIXED };

struct options {
	bool server;
	enum waiting waiting;
	const char *host;
	uint16_t port;
	unsigned int connections;
	double seconds;       /* how long to send; 0: until bytes were sent */
	uint64_t bytes;       /* how many to send per connection; 0: no limit */
	uint64_t rate;       /* bytes per second and connection; 0: no limit */
	size_t piece;         /* most bytes of a piece */
	unsigned int timeout; /* seconds without a byte that are an error */
	uint64_t seed;
};

/* The client's first bytes on a connection; not part of the stream. */
struct hello {
	uint64_t magic;
	uint64_t seed;
};

struct stream {
	int fd;
	unsigned int index;
	uint64_t random;
	uint64_t out_seed, in_seed;
	uint64_t sent;    /* written by the sending thread */
	uint64_t received; /* this and what follows by the receiving thread */
	uint64_t last_received_ns;
	uint64_t last_received; /* bytes */
	uint64_t longest_gap_ns;
	atomic_bool out_done, in_done;
	uint16_t port;   /* the client's */
	bool wants_out;  /* registered for EPOLLOUT */
	uint64_t due_ns; /* when the rate allows the next piece */
};

static struct options opt = {
	.host = "0.0.0.0",
	.port = 7000,
	.connections = 8,
	.piece = CHUNK,
	.timeout = 20,
	.seed = 1,
};
static uint64_t started_ns;
static atomic_ullong progress; /* bytes moved; tells whether something moves */
static atomic_uint mismatches, errors, open_streams;
static struct late {
	uint16_t port;
	uint64_t at_ns, by_ns;
} late[MAX_LATE];
static atomic_uint late_count;
static atomic_bool stopped; /* by SIGUSR1 */

/* A thread of its own takes the signal: it interrupts no call. */
static void *await_stop(void *signals)
{
	int got;

	if (sigwait(signals, &got) == 0)
		stopped = true;
	return NULL;
}

static void fail(struct stream *s, const char *what)
{
	fprintf(stderr, "streams: %s, connection %u (sent %llu, received %llu): %s: %s\n",
		opt.server ? "server" : "client", s->index, (unsigned long long)s->sent,
		(unsigned long long)s->received, what, strerror(errno));
	errors++;
	s->out_done = s->in_done = true;
}

/* How many bytes the next piece may have; 0 if the stream is complete. */
static size_t next_piece(struct stream *s)
{
	size_t n = 1 + pattern_random(&s->random) % opt.piece;

	if (opt.bytes && opt.bytes - s->sent < n)
		n = opt.bytes - s->sent;
	if (stopped ||
	    (opt.seconds > 0 && (double)(pattern_now_ns() - started_ns) >= opt.seconds * 1e9))
		n = 0;
	return n;
}

/*
 * Sends one piece, or ends the direction. Returns send()'s result; what
 * wasn't taken is made again, as the bytes depend on the position only.
 */
static ssize_t send_piece(struct stream *s, char *buffer)
{
	size_t length = next_piece(s);
	ssize_t n;

	if (!length) {
		if (shutdown(s->fd, SHUT_WR))
			fail(s, "shutdown");
		s->out_done = true;
		return 0;
	}
	pattern_fill(buffer, length, s->out_seed, s->sent);
	n = send(s->fd, buffer, length, MSG_NOSIGNAL);
	if (n > 0) {
		s->sent += (uint64_t)n;
		progress += (uint64_t)n;
		if (opt.rate)
			s->due_ns =
				started_ns + (uint64_t)((double)s->sent * 1e9 / (double)opt.rate);
	}
	return n;
}

static void report_mismatch(struct stream *s, const char *got, const char *expected)
{
	size_t at = 0;

	while (got[at] == expected[at])
		at++;
	fprintf(stderr, "streams: %s, connection %u, byte %llu: got 0x%02x, expected 0x%02x\n",
		opt.server ? "server" : "client", s->index, (unsigned long long)(s->received + at),
		(unsigned char)got[at], (unsigned char)expected[at]);
	mismatches++;
	s->out_done = s->in_done = true;
}

/* The sender waits after a piece for as long as the rate gives its bytes. */
static void note_lateness(const struct stream *s, uint64_t gap_ns)
{
	uint64_t due_ns = (uint64_t)((double)s->last_received * 1e9 / (double)opt.rate);
	unsigned int i;

	if (gap_ns < due_ns + LATE_NS)
		return;
	i = atomic_fetch_add(&late_count, 1);
	if (i < MAX_LATE)
		late[i] = (struct late){s->port, s->last_received_ns + gap_ns, gap_ns - due_ns};
}

static void note_reception(struct stream *s, uint64_t n)
{
	uint64_t now = pattern_now_ns(), gap = now - s->last_received_ns;

	if (s->received && gap > s->longest_gap_ns)
		s->longest_gap_ns = gap;
	if (s->received && opt.rate)
		note_lateness(s, gap);
	s->last_received_ns = now;
	s->last_received = n;
}

/* Receives once and checks it. Returns recv()'s result. */
static ssize_t receive_piece(struct stream *s, int flags, char *buffer, char *expected)
{
	ssize_t n = recv(s->fd, buffer, CHUNK, flags);

	if (n <= 0) {
		s->in_done = s->in_done || n == 0;
		return n;
	}
	note_reception(s, (uint64_t)n);
	pattern_fill(expected, (size_t)n, s->in_seed, s->received);
	if (memcmp(buffer, expected, (size_t)n))
		report_mismatch(s, buffer, expected);
	s->received += (uint64_t)n;
	progress += (uint64_t)n;
	return n;
}

static void derive_seeds(struct stream *s, uint64_t seed)
{
	uint64_t to_server = pattern_mix(seed), to_client = pattern_mix(~seed);

	s->random = pattern_mix(seed + opt.server);
	s->out_seed = opt.server ? to_client : to_server;
	s->in_seed = opt.server ? to_server : to_client;
}

static bool learn_port(struct stream *s)
{
	struct sockaddr_in client;
	socklen_t n = sizeof(client);

	if (opt.server ? getpeername(s->fd, (struct sockaddr *)&client, &n)
		       : getsockname(s->fd, (struct sockaddr *)&client, &n))
		return false;
	s->port = ntohs(client.sin_port);
	return true;
}

static struct sockaddr_in address(void)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(opt.port)};

	if (inet_pton(AF_INET, opt.host, &a.sin_addr) != 1) {
		fprintf(stderr, "streams: %s is not an IPv4 address\n", opt.host);
		exit(2);
	}
	return a;
}

/* Connects, waiting for a server that is just being started. */
static bool connect_one(struct stream *s)
{
	struct sockaddr_in to = address();
	struct hello hello = {HELLO_MAGIC, pattern_mix(opt.seed) + s->index};
	uint64_t deadline = pattern_now_ns() + CONNECT_PATIENCE_NS;

	for (;;) {
		s->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (s->fd < 0)
			return false;
		if (!connect(s->fd, (struct sockaddr *)&to, sizeof(to)))
			break;
		close(s->fd);
		if (errno != ECONNREFUSED || pattern_now_ns() > deadline)
			return false;
		usleep(20000);
	}
	derive_seeds(s, hello.seed);
	return send(s->fd, &hello, sizeof(hello), MSG_NOSIGNAL) == sizeof(hello);
}

static bool accept_one(struct stream *s, int listener)
{
	struct hello hello;

	s->fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (s->fd < 0 || recv(s->fd, &hello, sizeof(hello), MSG_WAITALL) != sizeof(hello))
		return false;
	if (hello.magic != HELLO_MAGIC) {
		errno = EPROTO;
		return false;
	}
	derive_seeds(s, hello.seed);
	return true;
}

static int listen_here(void)
{
	struct sockaddr_in here = address();
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int one = 1;

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) ||
	    bind(fd, (struct sockaddr *)&here, sizeof(here)) || listen(fd, 1024))
		return -1;
	return fd;
}

/* Pieces that are due shall not wait for acknowledgements (Nagle). */
static bool set_pace(const struct stream *s)
{
	int on = opt.rate != 0;

	return !setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

static bool open_all(struct stream *streams)
{
	int listener = opt.server ? listen_here() : -1;

	if (opt.server && listener < 0) {
		fprintf(stderr, "streams: listening on %s:%u: %s\n", opt.host, opt.port,
			strerror(errno));
		return false;
	}
	for (unsigned int i = 0; i < opt.connections; i++) {
		streams[i].index = i;
		if ((opt.server ? accept_one(&streams[i], listener) : connect_one(&streams[i])) &&
		    learn_port(&streams[i]) && set_pace(&streams[i]))
			continue;
		fprintf(stderr, "streams: %s connection %u, %s:%u: %s\n",
			opt.server ? "accepting" : "making", i, opt.host, opt.port,
			strerror(errno));
		return false;
	}
	if (listener >= 0)
		close(listener);
	open_streams = opt.connections;
	return true;
}

/* Closes a stream that is done both ways; says whether it is. */
static bool close_if_done(struct stream *s)
{
	if (!s->out_done || !s->in_done)
		return false;
	close(s->fd);
	s->fd = -1;
	open_streams--;
	return true;
}

/* --- one thread, epoll --- */

static void want_out(int epoll_fd, struct stream *s, bool wanted)
{
	struct epoll_event event = {
		.events = (s->in_done ? 0 : EPOLLIN) | (wanted ? EPOLLOUT : 0),
		.data.ptr = s,
	};

	s->wants_out = wanted;
	if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, s->fd, &event))
		fail(s, "epoll_ctl");
}

static void serve_event(int epoll_fd, struct stream *s, uint32_t events)
{
	static char buffer[CHUNK], expected[CHUNK];
	bool in_was_done = s->in_done;

	if (!s->in_done && events & (EPOLLIN | EPOLLERR | EPOLLHUP) &&
	    receive_piece(s, 0, buffer, expected) < 0 && errno != EAGAIN && errno != EINTR)
		fail(s, "receiving");
	if (!s->out_done && events & EPOLLOUT && send_piece(s, buffer) < 0 && errno != EAGAIN &&
	    errno != EINTR)
		fail(s, "sending");
	if (close_if_done(s))
		return;
	if (s->out_done || s->in_done != in_was_done || s->due_ns > pattern_now_ns())
		want_out(epoll_fd, s, !s->out_done && s->due_ns <= pattern_now_ns());
}

/* Wakes streams whose rate allows sending again; returns ms until the next. */
static int release_due(int epoll_fd, struct stream *streams)
{
	uint64_t now = pattern_now_ns(), next = now + 1000000000u;

	for (unsigned int i = 0; i < opt.connections; i++) {
		struct stream *s = &streams[i];

		if (s->fd < 0 || s->out_done || s->wants_out)
			continue;
		if (s->due_ns <= now)
			want_out(epoll_fd, s, true);
		else if (s->due_ns < next)
			next = s->due_ns;
	}
	return (int)((next - now) / 1000000) + 1;
}

static bool register_all(int epoll_fd, struct stream *streams)
{
	for (unsigned int i = 0; i < opt.connections; i++) {
		struct epoll_event event = {EPOLLIN | EPOLLOUT, {.ptr = &streams[i]}};

		streams[i].wants_out = true;
		if (fcntl(streams[i].fd, F_SETFL, O_NONBLOCK) ||
		    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, streams[i].fd, &event))
			return false;
	}
	return true;
}

static void run_epoll(struct stream *streams)
{
	int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	uint64_t moved = 0, moved_ns = pattern_now_ns();

	if (epoll_fd < 0 || !register_all(epoll_fd, streams)) {
		perror("streams: epoll");
		errors++;
		return;
	}
	while (open_streams) {
		struct epoll_event events[64];
		int wait_ms = opt.rate ? release_due(epoll_fd, streams) : 1000;
		int n = epoll_wait(epoll_fd, events, 64, wait_ms);

		for (int i = 0; i < n; i++)
			serve_event(epoll_fd, events[i].data.ptr, events[i].events);
		if (progress != moved || !open_streams) {
			moved = progress;
			moved_ns = pattern_now_ns();
		} else if (pattern_now_ns() - moved_ns > opt.timeout * 1000000000ull) {
			fprintf(stderr, "streams: nothing moved on %u connections for %u s\n",
				open_streams, opt.timeout);
			errors++;
			return;
		}
	}
	close(epoll_fd);
}

/* --- two threads per connection --- */

static void *send_thread(void *argument)
{
	struct stream *s = argument;
	char *buffer = malloc(CHUNK);

	while (buffer && !s->out_done) {
		uint64_t now = pattern_now_ns();

		if (s->due_ns > now)
			usleep((useconds_t)((s->due_ns - now) / 1000) + 1);
		else if (send_piece(s, buffer) < 0 && errno != EINTR)
			fail(s, "sending");
	}
	free(buffer);
	return NULL;
}

/* How a receiving thread waits: in recv() if both are unused. */
struct waiter {
	bool polls;
	int epoll_fd; /* -1: none */
};

static bool open_waiter(struct waiter *w, struct stream *s)
{
	struct epoll_event event = {EPOLLIN, {.ptr = s}};

	w->polls = s->index % 3 == 1;
	w->epoll_fd = -1;
	if (opt.waiting != WAIT_MIXED || s->index % 3 != 2)
		return true;
	w->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	return w->epoll_fd >= 0 && !epoll_ctl(w->epoll_fd, EPOLL_CTL_ADD, s->fd, &event);
}

static ssize_t await_piece(struct waiter *w, struct stream *s, char *buffer)
{
	struct pollfd p = {.fd = s->fd, .events = POLLIN};
	struct epoll_event event;

	if (!w->polls && w->epoll_fd < 0)
		return receive_piece(s, 0, buffer, buffer + CHUNK);
	if ((w->polls ? poll(&p, 1, -1) : epoll_wait(w->epoll_fd, &event, 1, -1)) < 0)
		return -1;
	return receive_piece(s, MSG_DONTWAIT, buffer, buffer + CHUNK);
}

static void *receive_thread(void *argument)
{
	struct stream *s = argument;
	char *buffer = malloc(2 * CHUNK);
	struct waiter w;

	if (!open_waiter(&w, s))
		fail(s, "epoll");
	while (buffer && !s->in_done)
		if (await_piece(&w, s, buffer) < 0 && errno != EINTR && errno != EAGAIN)
			fail(s, "receiving");
	if (w.epoll_fd >= 0)
		close(w.epoll_fd);
	free(buffer);
	return NULL;
}

/* Ends the program when nothing has moved for too long. */
static void *watch_thread(void *unused)
{
	uint64_t moved = 0;

	(void)unused;
	for (unsigned int idle = 0; idle < opt.timeout; idle++) {
		sleep(1);
		if (progress != moved)
			idle = 0;
		moved = progress;
	}
	fprintf(stderr, "streams: nothing moved for %u s\n", opt.timeout);
	_exit(1);
}

static void run_threads(struct stream *streams)
{
	pthread_t *threads = calloc(2 * opt.connections, sizeof(*threads));
	pthread_t watch;

	if (!threads || pthread_create(&watch, NULL, watch_thread, NULL)) {
		perror("streams: starting threads");
		errors++;
		return;
	}
	for (unsigned int i = 0; i < opt.connections; i++) {
		if (pthread_create(&threads[2 * i], NULL, send_thread, &streams[i]) ||
		    pthread_create(&threads[2 * i + 1], NULL, receive_thread, &streams[i])) {
			perror("streams: starting threads");
			_exit(1);
		}
	}
	for (unsigned int i = 0; i < opt.connections; i++) {
		pthread_join(threads[2 * i], NULL);
		pthread_join(threads[2 * i + 1], NULL);
		close_if_done(&streams[i]);
	}
	free(threads);
}

/* --- report --- */

static int compare_gaps(const void *a, const void *b)
{
	const struct stream *x = a, *y = b;

	return x->longest_gap_ns < y->longest_gap_ns ? -1 : x->longest_gap_ns > y->longest_gap_ns;
}

static void report_lateness(void)
{
	for (unsigned int i = 0; i < late_count && i < MAX_LATE; i++)
		printf("%s{\"port\": %u, \"at_us\": %llu, \"by_us\": %llu}", i ? ", " : "",
		       late[i].port, (unsigned long long)late[i].at_ns / 1000,
		       (unsigned long long)late[i].by_ns / 1000);
}

static void report(struct stream *streams)
{
	unsigned long long sent = 0, received = 0;
	unsigned int last = opt.connections - 1;

	for (unsigned int i = 0; i < opt.connections; i++) {
		sent += streams[i].sent;
		received += streams[i].received;
	}
	qsort(streams, opt.connections, sizeof(*streams), compare_gaps);
	printf("{\"role\": \"%s\", \"connections\": %u, \"sent\": %llu, \"received\": %llu, "
	       "\"mismatches\": %u, \"errors\": %u, \"seconds\": %.3f, "
	       "\"stall_us\": {\"p50\": %.1f, \"p99\": %.1f, \"max\": %.1f}, \"late\": [",
	       opt.server ? "server" : "client", opt.connections, sent, received, mismatches,
	       errors, (double)(pattern_now_ns() - started_ns) / 1e9,
	       (double)streams[last / 2].longest_gap_ns / 1e3,
	       (double)streams[last * 99 / 100].longest_gap_ns / 1e3,
	       (double)streams[last].longest_gap_ns / 1e3);
	report_lateness();
	puts("]}");
}

static void usage(void)
{
	fputs("usage: streams --server [--host ADDRESS] [options]\n"
	      "       streams --host ADDRESS [options]\n"
	      "options, with their defaults:\n"
	      "  --port 7000  --connections 8  --seed 1\n"
	      "  --seconds S    send for S seconds (5)\n"
	      "  --bytes N      send N bytes per connection (no limit)\n"
	      "  --rate N       send at most N bytes per second and connection (no limit)\n"
	      "  --piece 65536  most bytes of one send\n"
	      "  --timeout 20   fail if no byte moves for so many seconds\n"
	      "  --blocking     threads and blocking calls instead of epoll\n"
	      "  --mixed        threads that wait in recv(), poll() or epoll_wait()\n",
	      stderr);
	exit(2);
}

static void parse(int argc, char **argv)
{
	static const struct option names[] = {
		{"server", 0, NULL, 'S'},
		{"blocking", 0, NULL, 'B'},
		{"mixed", 0, NULL, 'M'},
		{"piece", 1, NULL, 'P'},
		{"host", 1, NULL, 'h'},
		{"port", 1, NULL, 'p'},
		{"connections", 1, NULL, 'c'},
		{"seconds", 1, NULL, 's'},
		{"bytes", 1, NULL, 'b'},
		{"rate", 1, NULL, 'r'},
		{"timeout", 1, NULL, 't'},
		{"seed", 1, NULL, 'e'},
		{NULL, 0, NULL, 0},
	};
	int which;

	while ((which = getopt_long(argc, argv, "", names, NULL)) != -1) {
		switch (which) {
		case 'S':
			opt.server = true;
			break;
		case 'B':
			opt.waiting = WAIT_BLOCKING;
			break;
		case 'M':
			opt.waiting = WAIT_MIXED;
			break;
		case 'P':
			opt.piece = strtoul(optarg, NULL, 0);
			break;
		case 'h':
			opt.host = optarg;
			break;
		case 'p':
			opt.port = (uint16_t)atoi(optarg);
			break;
		case 'c':
			opt.connections = (unsigned int)atoi(optarg);
			break;
		case 's':
			opt.seconds = atof(optarg);
			break;
		case 'b':
			opt.bytes = strtoull(optarg, NULL, 0);
			break;
		case 'r':
			opt.rate = strtoull(optarg, NULL, 0);
			break;
		case 't':
			opt.timeout = (unsigned int)atoi(optarg);
			break;
		case 'e':
			opt.seed = strtoull(optarg, NULL, 0);
			break;
		default:
			usage();
		}
	}
	if (optind < argc || !opt.connections || !opt.timeout || !opt.piece || opt.piece > CHUNK)
		usage();
	if (opt.seconds <= 0 && !opt.bytes)
		opt.seconds = 5;
}

int main(int argc, char **argv)
{
	static sigset_t signals;
	struct stream *streams;
	pthread_t waiter;

	parse(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&signals);
	sigaddset(&signals, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);
	if (pthread_create(&waiter, NULL, await_stop, &signals) != 0)
		return 1;
	streams = calloc(opt.connections, sizeof(*streams));
	if (!streams || !open_all(streams))
		return 1;
	started_ns = pattern_now_ns();
	if (opt.waiting == WAIT_EPOLL)
		run_epoll(streams);
	else
		run_threads(streams);
	report(streams);
	return mismatches || errors;
}
