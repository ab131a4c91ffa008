// SPDX-License-Identifier: Apache-2.0
/*
 * A Redis client that checks every byte it gets back.
 *
 * It opens connections that stay open for the whole run and sends batches of
 * pipelined commands on them: SETs of random values and GETs of what it set.
 * Sizes are log-uniform from one byte to a megabyte, pipelines one to sixteen
 * commands deep. Everything is derived from a seed. It prints one line of JSON
 * and exits with 0 only if every reply was right and nothing failed.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "pattern.h"

#define MAX_DEPTH 16
#define KEYS 8 /* per connection */
#define CHUNK 65536

struct options {
	const char *host;
	uint16_t port;
	unsigned int connections;
	double seconds;       /* 0: no limit */
	uint64_t ops;       /* 0: no limit */
	uint64_t max_value;   /* bytes */
	unsigned int depth;   /* commands in a pipeline, at most */
	unsigned int timeout; /* seconds without a byte that are an error */
	unsigned int linger;  /* seconds in epoll_wait after the work */
	uint64_t seed;
};

/* A request or a reply: some text, then perhaps a value and a line end. */
struct message {
	char head[128];
	size_t head_length;
	bool has_value;
	uint64_t value_seed;
	size_t value_length;
};

struct command {
	struct message request;
	struct message reply;
};

struct value {
	uint64_t seed;
	size_t length;
	bool set;
};

struct connection {
	int fd;
	unsigned int index;
	uint64_t random;
	struct value values[KEYS];

	/* The batch in flight; empty if answered == count. */
	struct command batch[MAX_DEPTH];
	unsigned int count;
	unsigned int sent;     /* requests that went out entirely */
	size_t sent_bytes;     /* of the next one */
	unsigned int answered; /* replies that were checked entirely */
	size_t answered_bytes; /* of the next one */
	unsigned int calls;    /* which of the calls to send with comes next */
	bool wants_out;        /* registered for EPOLLOUT */
};

struct totals {
	uint64_t ops;
	uint64_t bytes; /* both ways */
	uint64_t errors;
	uint64_t mismatches;
	unsigned int open;
};

static struct options opt = {
	.host = "127.0.0.1",
	.port = 6379,
	.connections = 50,
	.max_value = 1 << 20,
	.depth = MAX_DEPTH,
	.timeout = 20,
	.seed = 1,
};
static struct totals total;
static int epoll_fd;
static uint64_t started_ns;
static uint64_t run_id; /* keeps the keys of two runs apart */

static size_t message_length(const struct message *m)
{
	return m->head_length + (m->has_value ? m->value_length + 2 : 0);
}

/* Writes a message's bytes from offset on; returns how many fitted. */
static size_t render(const struct message *m, size_t offset, char *to, size_t room)
{
	size_t length = message_length(m);
	size_t end = offset + room < length ? offset + room : length;
	size_t at = offset;

	while (at < end) {
		size_t value_at = at - m->head_length;
		size_t n;

		if (at < m->head_length) {
			n = m->head_length - at;
			n = n < end - at ? n : end - at;
			memcpy(to, m->head + at, n);
		} else if (value_at < m->value_length) {
			n = m->value_length - value_at;
			n = n < end - at ? n : end - at;
			pattern_fill(to, n, m->value_seed, value_at);
		} else {
			n = 1;
			*to = "\r\n"[value_at - m->value_length];
		}
		to += n;
		at += n;
	}
	return at - offset;
}

static void make_command(struct connection *c, struct command *cmd)
{
	unsigned int number = pattern_random(&c->random) % KEYS;
	struct value *v = &c->values[number];
	char key[48];
	int key_length = snprintf(key, sizeof(key), "verify:%llx:%u:%u", (unsigned long long)run_id,
				  c->index, number);
	struct message *request = &cmd->request, *reply = &cmd->reply;

	memset(cmd, 0, sizeof(*cmd));
	if (v->set && pattern_random(&c->random) % 2) {
		request->head_length =
			(size_t)snprintf(request->head, sizeof(request->head),
					 "*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n", key_length, key);
		reply->head_length =
			(size_t)snprintf(reply->head, sizeof(reply->head), "$%zu\r\n", v->length);
		reply->has_value = true;
		reply->value_seed = v->seed;
		reply->value_length = v->length;
		return;
	}
	v->set = true;
	v->seed = pattern_random(&c->random);
	v->length = pattern_log_uniform(&c->random, opt.max_value);
	request->head_length = (size_t)snprintf(request->head, sizeof(request->head),
						"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%zu\r\n",
						key_length, key, v->length);
	request->has_value = true;
	request->value_seed = v->seed;
	request->value_length = v->length;
	reply->head_length = (size_t)snprintf(reply->head, sizeof(reply->head), "+OK\r\n");
}

static bool time_is_up(void)
{
	if (opt.ops && total.ops >= opt.ops)
		return true;
	return opt.seconds > 0 && (double)(pattern_now_ns() - started_ns) >= opt.seconds * 1e9;
}

static void make_batch(struct connection *c)
{
	c->count = 1 + pattern_random(&c->random) % opt.depth;
	c->sent = c->answered = 0;
	c->sent_bytes = c->answered_bytes = 0;
	for (unsigned int i = 0; i < c->count; i++)
		make_command(c, &c->batch[i]);
}

static void finish(struct connection *c)
{
	if (!opt.linger)
		close(c->fd);
	c->fd = -1;
	total.open--;
}

static void fail(struct connection *c, const char *what)
{
	fprintf(stderr, "verify: connection %u: %s: %s\n", c->index, what, strerror(errno));
	total.errors++;
	finish(c);
}

/* Programs send with different calls; so do we, in turn. */
static ssize_t send_somehow(struct connection *c, char *data, size_t length)
{
	struct iovec parts[2] = {
		{data, length / 2},
		{data + length / 2, length - length / 2},
	};

	switch (c->calls++ % 3) {
	case 0:
		return send(c->fd, data, length, MSG_NOSIGNAL);
	case 1:
		return write(c->fd, data, length);
	default:
		return writev(c->fd, parts, 2);
	}
}

static ssize_t receive_somehow(struct connection *c, char *data, size_t length)
{
	struct iovec parts[2] = {
		{data, length / 2},
		{data + length / 2, length - length / 2},
	};

	switch (c->calls++ % 3) {
	case 0:
		return recv(c->fd, data, length, 0);
	case 1:
		return read(c->fd, data, length);
	default:
		return readv(c->fd, parts, 2);
	}
}

/* Fills a buffer with what is to be sent next, from several requests. */
static size_t collect(const struct connection *c, char *buffer, size_t room)
{
	size_t filled = 0, offset = c->sent_bytes;

	for (unsigned int i = c->sent; i < c->count && filled < room; i++) {
		filled += render(&c->batch[i].request, offset, buffer + filled, room - filled);
		offset = 0;
	}
	return filled;
}

static void advance_sent(struct connection *c, size_t n)
{
	total.bytes += n;
	c->sent_bytes += n;
	while (c->sent < c->count) {
		size_t length = message_length(&c->batch[c->sent].request);

		if (c->sent_bytes < length)
			break;
		c->sent_bytes -= length;
		c->sent++;
	}
}

static void want_out(struct connection *c, bool wanted)
{
	struct epoll_event event = {
		.events = EPOLLIN | (wanted ? EPOLLOUT : 0),
		.data.ptr = c,
	};

	if (c->wants_out == wanted)
		return;
	c->wants_out = wanted;
	if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event))
		fail(c, "epoll_ctl");
}

/* Sends until everything is out or the socket takes no more. */
static void send_batch(struct connection *c)
{
	static char buffer[CHUNK];

	while (c->sent < c->count) {
		size_t room = pattern_log_uniform(&c->random, CHUNK);
		size_t length = collect(c, buffer, room);
		ssize_t n = send_somehow(c, buffer, length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0) {
			fail(c, "sending");
			return;
		}
		advance_sent(c, (size_t)n);
	}
	want_out(c, c->sent < c->count);
}

static void report_mismatch(struct connection *c, const char *got, size_t length,
			    const char *expected)
{
	size_t at = 0;

	while (at < length && got[at] == expected[at])
		at++;
	fprintf(stderr,
		"verify: connection %u: reply %u of %u, byte %zu (of %zu): got 0x%02x, expected "
		"0x%02x; text %.60s\n",
		c->index, c->answered + 1, c->count, c->answered_bytes + at,
		message_length(&c->batch[c->answered].reply), (unsigned char)got[at],
		(unsigned char)expected[at], got[0] == '-' ? got : "");
	total.mismatches++;
	finish(c);
}

/* Compares received bytes with the replies that are due; false if they differ. */
static bool check(struct connection *c, const char *got, size_t length)
{
	static char expected[CHUNK];

	while (length) {
		const struct message *reply = &c->batch[c->answered].reply;
		size_t n;

		if (c->answered == c->count) {
			fprintf(stderr, "verify: connection %u: %zu bytes too many\n", c->index,
				length);
			total.mismatches++;
			finish(c);
			return false;
		}
		n = render(reply, c->answered_bytes, expected, length);
		if (memcmp(got, expected, n)) {
			report_mismatch(c, got, n, expected);
			return false;
		}
		got += n;
		length -= n;
		c->answered_bytes += n;
		if (c->answered_bytes == message_length(reply)) {
			c->answered_bytes = 0;
			c->answered++;
			total.ops++;
		}
	}
	return true;
}

static void receive(struct connection *c)
{
	/* One byte more, so that a mismatch can be printed as text. */
	static char buffer[CHUNK + 1];
	ssize_t n = receive_somehow(c, buffer, CHUNK);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		errno = n ? errno : ECONNRESET;
		fail(c, n ? "receiving" : "the server closed the connection");
		return;
	}
	buffer[n] = '\0';
	total.bytes += (uint64_t)n;
	if (!check(c, buffer, (size_t)n) || c->answered < c->count)
		return;
	if (time_is_up()) {
		finish(c);
		return;
	}
	make_batch(c);
	send_batch(c);
}

static bool open_connection(struct connection *c, unsigned int index)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(opt.port)};
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
	int one = 1;

	c->index = index;
	c->random = pattern_mix(opt.seed) + ((uint64_t)index << 40);
	if (inet_pton(AF_INET, opt.host, &to.sin_addr) != 1) {
		fprintf(stderr, "verify: %s is not an IPv4 address\n", opt.host);
		return false;
	}
	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&to, sizeof(to)) ||
	    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) ||
	    fcntl(c->fd, F_SETFL, O_NONBLOCK) ||
	    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event)) {
		fprintf(stderr, "verify: connecting to %s:%u: %s\n", opt.host, opt.port,
			strerror(errno));
		return false;
	}
	total.open++;
	return true;
}

/* Serves the connections until all have ended, or none moved for too long. */
static void serve(void)
{
	while (total.open) {
		struct epoll_event events[64];
		int n = epoll_wait(epoll_fd, events, 64, (int)opt.timeout * 1000);

		if (n < 0 && errno != EINTR) {
			perror("verify: epoll_wait");
			total.errors++;
			return;
		}
		if (n == 0) {
			fprintf(stderr, "verify: nothing moved on %u connections for %u s\n",
				total.open, opt.timeout);
			total.errors++;
			return;
		}
		for (int i = 0; i < n; i++) {
			struct connection *c = events[i].data.ptr;

			if (events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP))
				receive(c);
			if (c->fd >= 0 && events[i].events & EPOLLOUT)
				send_batch(c);
		}
	}
}

static void usage(void)
{
	fputs("usage: verify [--host ADDRESS] [--port N] [--connections N] [--seconds S] [--ops N]\n"
	      "              [--max-value BYTES] [--depth N] [--timeout S] [--seed N] [--linger S]\n"
	      "--linger: keep the silent connections open for so long before the end.\n"
	      "Without --seconds and --ops it runs for 5 seconds.\n",
	      stderr);
	exit(2);
}

static void parse(int argc, char **argv)
{
	static const struct option names[] = {
		{"host", 1, NULL, 'h'},    {"port", 1, NULL, 'p'},    {"connections", 1, NULL, 'c'},
		{"seconds", 1, NULL, 's'}, {"ops", 1, NULL, 'o'},     {"max-value", 1, NULL, 'm'},
		{"depth", 1, NULL, 'd'},   {"timeout", 1, NULL, 't'}, {"seed", 1, NULL, 'r'},
		{"linger", 1, NULL, 'l'},  {NULL, 0, NULL, 0},
	};
	int which;

	while ((which = getopt_long(argc, argv, "", names, NULL)) != -1) {
		switch (which) {
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
		case 'o':
			opt.ops = strtoull(optarg, NULL, 0);
			break;
		case 'm':
			opt.max_value = strtoull(optarg, NULL, 0);
			break;
		case 'd':
			opt.depth = (unsigned int)atoi(optarg);
			break;
		case 't':
			opt.timeout = (unsigned int)atoi(optarg);
			break;
		case 'r':
			opt.seed = strtoull(optarg, NULL, 0);
			break;
		case 'l':
			opt.linger = (unsigned int)atoi(optarg);
			break;
		default:
			usage();
		}
	}
	if (optind < argc || !opt.connections || !opt.depth || opt.depth > MAX_DEPTH ||
	    !opt.max_value || !opt.timeout)
		usage();
	if (opt.seconds <= 0 && !opt.ops)
		opt.seconds = 5;
}

int main(int argc, char **argv)
{
	struct connection *connections;

	parse(argc, argv);
	/* write() and writev() have no MSG_NOSIGNAL. */
	signal(SIGPIPE, SIG_IGN);
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	connections = calloc(opt.connections, sizeof(*connections));
	if (epoll_fd < 0 || !connections) {
		perror("verify: starting");
		return 1;
	}
	started_ns = pattern_now_ns();
	run_id = pattern_mix(started_ns ^ (uint64_t)getpid());
	for (unsigned int i = 0; i < opt.connections; i++)
		if (!open_connection(&connections[i], i))
			return 1;
	for (unsigned int i = 0; i < opt.connections; i++) {
		make_batch(&connections[i]);
		send_batch(&connections[i]);
	}
	serve();
	printf("{\"ops\": %llu, \"bytes\": %llu, \"errors\": %llu, \"mismatches\": %llu, "
	       "\"seconds\": %.3f}\n",
	       (unsigned long long)total.ops, (unsigned long long)total.bytes,
	       (unsigned long long)total.errors, (unsigned long long)total.mismatches,
	       (double)(pattern_now_ns() - started_ns) / 1e9);
	fflush(stdout);
	if (opt.linger) {
		struct epoll_event event;

		epoll_wait(epoll_fd, &event, 1, (int)opt.linger * 1000);
	}
	return total.errors || total.mismatches;
}
