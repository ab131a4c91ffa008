// SPDX-License-Identifier: Apache-2.0
/*
 * A connection that is used for a while and then rests, with keepalive or a
 * user timeout as the arguments say.
 *
 * The server echoes. The client exchanges messages until it is told to stop by
 * a line on its standard input, checking every byte; says "resting" with what
 * getsockopt() tells, and then either waits for the connection's end or, with
 * --send, sends once more and waits. It prints how long that took and with
 * which error it ended; a second line on the standard input makes it exchange
 * again instead and end well.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pattern.h"

#define MESSAGE 700
/* Between two messages, so that there are quiet moments. */
#define PAUSE_US 2000
/* Time for the peer to fall silent. */
#define SEND_AFTER_US 900000

struct options {
	bool server, send;
	const char *host;
	int port, keepalive, idle, interval, count, timeout;
};

static void die(const char *what)
{
	perror(what);
	exit(2);
}

static void set(int fd, int level, int name, int value)
{
	if (value && setsockopt(fd, level, name, &value, sizeof(value)))
		die("setsockopt");
}

static int get(int fd, int level, int name)
{
	int value = -1;
	socklen_t length = sizeof(value);

	if (getsockopt(fd, level, name, &value, &length))
		die("getsockopt");
	return value;
}

static void set_all(int fd, const struct options *o)
{
	set(fd, IPPROTO_TCP, TCP_KEEPIDLE, o->idle);
	set(fd, IPPROTO_TCP, TCP_KEEPINTVL, o->interval);
	set(fd, IPPROTO_TCP, TCP_KEEPCNT, o->count);
	set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, o->timeout);
	set(fd, SOL_SOCKET, SO_KEEPALIVE, o->keepalive);
}

static void tell(int fd)
{
	printf("\"keepalive\": %d, \"idle\": %d, \"interval\": %d, \"count\": %d, \"timeout\": %d",
	       get(fd, SOL_SOCKET, SO_KEEPALIVE), get(fd, IPPROTO_TCP, TCP_KEEPIDLE),
	       get(fd, IPPROTO_TCP, TCP_KEEPINTVL), get(fd, IPPROTO_TCP, TCP_KEEPCNT),
	       get(fd, IPPROTO_TCP, TCP_USER_TIMEOUT));
}

static void exchange(int fd, uint64_t position)
{
	char out[MESSAGE], in[MESSAGE];

	pattern_fill(out, sizeof(out), 1, position);
	if (send(fd, out, sizeof(out), MSG_NOSIGNAL) != sizeof(out))
		die("send");
	if (recv(fd, in, sizeof(in), MSG_WAITALL) != sizeof(in))
		die("recv");
	if (memcmp(out, in, sizeof(in))) {
		fprintf(stderr, "patient: the echo differs\n");
		exit(2);
	}
}

/* Exchanges until there is a line on the standard input. */
static uint64_t work(int fd, uint64_t position)
{
	struct pollfd told = {.fd = 0, .events = POLLIN};
	char line[8];

	while (poll(&told, 1, 0) == 0) {
		exchange(fd, position);
		position += MESSAGE;
		usleep(PAUSE_US);
	}
	if (read(0, line, sizeof(line)) < 0)
		die("read");
	return position;
}

static void client(const struct options *o, struct sockaddr_in *to)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), err = 0;
	struct pollfd p[2] = {{.fd = fd, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
	uint64_t position, start;
	char byte;

	if (fd < 0 || connect(fd, (struct sockaddr *)to, sizeof(*to)))
		die("connect");
	set_all(fd, o);
	position = work(fd, 0);
	printf("{\"resting\": true, ");
	tell(fd);
	printf("}\n");
	fflush(stdout);
	if (o->send) {
		usleep(SEND_AFTER_US);
		if (send(fd, &position, 1, MSG_NOSIGNAL) != 1)
			die("send");
	}
	start = pattern_now_ns();
	if (poll(p, 2, -1) < 0)
		die("poll");
	if (p[1].revents) {
		exchange(fd, position);
		printf("{\"ended\": false, ");
	} else {
		if (recv(fd, &byte, 1, 0) < 0)
			err = errno;
		printf("{\"ended\": true, \"errno\": %d, ", err);
	}
	printf("\"ms\": %llu, ", (unsigned long long)(pattern_now_ns() - start) / 1000000);
	tell(fd);
	printf("}\n");
}

static void server(struct sockaddr_in *at)
{
	int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1, fd;
	char buffer[MESSAGE];
	ssize_t n;

	if (l < 0 || setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) ||
	    bind(l, (struct sockaddr *)at, sizeof(*at)) || listen(l, 1))
		die("listen");
	printf("{\"listening\": true}\n");
	fflush(stdout);
	fd = accept(l, NULL, NULL);
	while ((n = recv(fd, buffer, sizeof(buffer), 0)) > 0)
		if (send(fd, buffer, (size_t)n, MSG_NOSIGNAL) != n)
			break;
}

int main(int argc, char **argv)
{
	static const struct option names[] = {
		{"server", no_argument, NULL, 's'},
		{"send", no_argument, NULL, 'x'},
		{"host", required_argument, NULL, 'h'},
		{"port", required_argument, NULL, 'p'},
		{"keepalive", required_argument, NULL, 'k'},
		{"timeout", required_argument, NULL, 't'},
		{0},
	};
	struct options o = {.host = "0.0.0.0", .port = 7100};
	struct sockaddr_in a = {.sin_family = AF_INET};
	int which;

	while ((which = getopt_long(argc, argv, "", names, NULL)) != -1) {
		switch (which) {
		case 's':
			o.server = true;
			break;
		case 'x':
			o.send = true;
			break;
		case 'h':
			o.host = optarg;
			break;
		case 'p':
			o.port = atoi(optarg);
			break;
		case 'k':
			o.keepalive = 1;
			if (sscanf(optarg, "%d/%d/%d", &o.idle, &o.interval, &o.count) != 3)
				return 2;
			break;
		case 't':
			o.timeout = atoi(optarg);
			break;
		default:
			return 2;
		}
	}
	a.sin_port = htons((uint16_t)o.port);
	if (inet_pton(AF_INET, o.host, &a.sin_addr) != 1)
		return 2;
	if (o.server)
		server(&a);
	else
		client(&o, &a);
	return 0;
}
