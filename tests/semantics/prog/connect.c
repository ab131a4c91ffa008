/* SPDX-License-Identifier: Apache-2.0 */
/* How connections begin. The case's own connection is not used. */
#include "semantics.h"

#include <arpa/inet.h>

static int tcp(int flags)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);

	if (fd < 0)
		give_up("no socket");
	return fd;
}

static int to(int fd, const struct sockaddr_in *a)
{
	return connect(fd, (const struct sockaddr *)a, sizeof(*a));
}

static void show_error(int fd)
{
	int err = -1;
	socklen_t n = sizeof(err);

	getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &n);
	say("SO_ERROR %s", errno_name(err));
}

static void show_events(int fd, int timeout)
{
	struct pollfd p = {.fd = fd, .events = POLLIN | POLLOUT | POLLRDHUP};

	poll(&p, 1, timeout);
	say("poll: %s", event_names((uint32_t)p.revents));
}

static void show_state(int fd)
{
	struct tcp_info info;
	socklen_t n = sizeof(info);

	getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &n);
	say("state %d", info.tcpi_state);
}

/* Nobody listens there any more. */
static struct sockaddr_in closed_port(void)
{
	struct sockaddr_in a = peer_listen(1);

	peer_stop_listening();
	return a;
}

static void before_connect(int fd)
{
	int s = tcp(0);

	(void)fd;
	show_events(s, 0);
	show_state(s);
	CALL(read(s, in, 1));
	CALL(write(s, in, 1));
	say("%d signals", handled);
	CALL(send(s, in, 1, MSG_NOSIGNAL));
	CALL(recv(s, in, 1, MSG_DONTWAIT));
	CALL(shutdown(s, SHUT_WR));
	CALL(getpeername(s, (struct sockaddr *)in, &(socklen_t){16}));
	CALL(accept(s, NULL, NULL));
	show_error(s);
	close(s);
}

static void connect_blocking(int fd)
{
	struct sockaddr_in a = peer_listen(5);
	int s = tcp(0);

	(void)fd;
	CALL(to(s, &a));
	show_events(s, 0);
	CALL(to(s, &a));
	peer_accept();
	SENT(write(s, OUT, 5));
	peer_receive(5);
	close(s);
	peer_drain();
}

static void connect_nonblocking(int fd)
{
	struct sockaddr_in a = peer_listen(5);
	int s = tcp(SOCK_NONBLOCK);

	(void)fd;
	CALL(to(s, &a));
	show_events(s, 2000);
	show_error(s);
	CALL(to(s, &a));
	CALL(to(s, &a));
	peer_accept();
	SENT(write(s, OUT, 5));
	peer_receive(5);
	CALL(read(s, in, 5));
	close(s);
}

static void connect_refused(int fd)
{
	struct sockaddr_in a = closed_port();
	int s = tcp(0);

	(void)fd;
	CALL(to(s, &a));
	show_error(s);
	show_events(s, 0);
	CALL(write(s, in, 1));
	CALL(read(s, in, 1));
	CALL(to(s, &a));
	close(s);
}

static void connect_refused_nonblocking(int fd)
{
	struct sockaddr_in a = closed_port();
	int s = tcp(SOCK_NONBLOCK);

	(void)fd;
	CALL(to(s, &a));
	show_events(s, 2000);
	show_error(s);
	show_error(s);
	show_events(s, 0);
	close(s);
	s = tcp(SOCK_NONBLOCK);
	CALL(to(s, &a));
	show_events(s, 2000);
	CALL(to(s, &a));
	close(s);
}

static void connect_refused_in_a_set(int fd)
{
	struct sockaddr_in a = closed_port();
	int s = tcp(SOCK_NONBLOCK), ep = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event e = {.events = EPOLLOUT | EPOLLET};

	(void)fd;
	to(s, &a);
	CALL(epoll_ctl(ep, EPOLL_CTL_ADD, s, &e));
	CALL(epoll_wait(ep, &e, 1, 2000));
	say("%s", event_names(e.events));
	show_error(s);
	close(s);
	close(ep);
}

static void connect_in_a_set(int fd)
{
	struct sockaddr_in a = peer_listen(5);
	int s = tcp(SOCK_NONBLOCK), ep = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event e = {.events = EPOLLOUT | EPOLLIN | EPOLLET};

	(void)fd;
	CALL(epoll_ctl(ep, EPOLL_CTL_ADD, s, &e));
	CALL(epoll_wait(ep, &e, 1, 20));
	say("%s", event_names(e.events));
	CALL(to(s, &a));
	CALL(epoll_wait(ep, &e, 1, 2000));
	say("%s", event_names(e.events));
	close(s);
	close(ep);
}

static void connect_to_bad_addresses(int fd)
{
	struct sockaddr_in a = own_address();
	struct sockaddr_in6 six = {.sin6_family = AF_INET6};
	int s = tcp(0);

	(void)fd;
	CALL(connect(s, NULL, sizeof(a)));
	CALL(connect(s, (struct sockaddr *)&a, 3));
	CALL(connect(s, (struct sockaddr *)&six, sizeof(six)));
	a.sin_addr.s_addr = htonl(INADDR_BROADCAST);
	CALL(to(s, &a));
	a.sin_addr.s_addr = htonl(0xe0000001);
	CALL(to(s, &a));
	close(s);
}

static void connect_to_itself(int fd)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t n = sizeof(a);
	int s = tcp(0);

	(void)fd;
	bind(s, (struct sockaddr *)&a, sizeof(a));
	getsockname(s, (struct sockaddr *)&a, &n);
	CALL(to(s, &a));
	CALL(write(s, "abc", 3));
	CALL(read(s, in, 10));
	close(s);
}

static void unspec_before_connect(int fd)
{
	struct sockaddr a = {.sa_family = AF_UNSPEC};
	int s = tcp(0);

	(void)fd;
	CALL(connect(s, &a, sizeof(a)));
	show_state(s);
	close(s);
}

static void reconnect_after_unspec(int fd)
{
	struct sockaddr none = {.sa_family = AF_UNSPEC};
	struct sockaddr_in a = peer_listen(5);

	CALL(connect(fd, &none, sizeof(none)));
	CALL(to(fd, &a));
	peer_accept();
	sent = received = 0;
	SENT(write(fd, OUT, 5));
	peer_receive(5);
}

static void send_timeout_for_connect(int fd)
{
	struct timeval t = {0, 60000};
	struct sockaddr_in a = own_address();
	uint64_t start;
	int s = tcp(0);

	(void)fd;
	/* Nobody has that address on this wire. */
	a.sin_addr.s_addr = htonl((ntohl(a.sin_addr.s_addr) & ~0xffu) | 200);
	a.sin_port = htons(9);
	setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof(t));
	start = now_ms();
	CALL(to(s, &a));
	say("%s", punctual(start, 60));
	CALL(to(s, &a));
	close(s);
}

static void connect_interrupted(int fd)
{
	struct sockaddr_in a = own_address();
	int s = tcp(0);

	(void)fd;
	a.sin_addr.s_addr = htonl((ntohl(a.sin_addr.s_addr) & ~0xffu) | 201);
	a.sin_port = htons(9);
	handle(SIGUSR1, count_signal, 0);
	interrupt_in(50, SIGUSR1);
	CALL(to(s, &a));
	show_events(s, 0);
	close(s);
}

/* ---- listening ---------------------------------------------------------------- */

static int listener(int flags, struct sockaddr_in *a)
{
	socklen_t n = sizeof(*a);
	int s = tcp(flags);

	*a = own_address();
	if (bind(s, (struct sockaddr *)a, sizeof(*a)) || listen(s, 5) ||
	    getsockname(s, (struct sockaddr *)a, &n))
		give_up("not listening");
	return s;
}

static void accept_variants(int fd)
{
	struct sockaddr_in a, from = {0};
	socklen_t n = sizeof(from);
	int s = listener(0, &a), c;

	(void)fd;
	peer_connect(&a);
	c = accept(s, (struct sockaddr *)&from, &n);
	say("accepted: %d, length %u, family %d, flags %d %d", c >= 0, n, from.sin_family,
	    fcntl(c, F_GETFL) & O_NONBLOCK, fcntl(c, F_GETFD));
	close(c);
	peer_connect(&a);
	c = accept4(s, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	say("accepted: %d, flags %d %d", c >= 0, (fcntl(c, F_GETFL) & O_NONBLOCK) != 0,
	    fcntl(c, F_GETFD));
	CALL(read(c, in, 1));
	close(c);
	CALL(accept4(s, NULL, NULL, 0x7777));
	close(s);
}

static void accept_bad_address(int fd)
{
	struct sockaddr_in a, from = {0};
	socklen_t n = 4;
	int s = listener(0, &a), c;

	(void)fd;
	peer_connect(&a);
	c = accept(s, (struct sockaddr *)&from, &n);
	say("accepted: %d, length %u", c >= 0, n);
	close(c);
	peer_connect(&a);
	n = (socklen_t)-1;
	CALL(accept(s, (struct sockaddr *)&from, &n));
	close(s);
}

static void accept_nonblocking(int fd)
{
	struct sockaddr_in a;
	int s = listener(SOCK_NONBLOCK, &a), c;

	(void)fd;
	CALL(accept(s, NULL, NULL));
	show_events(s, 0);
	peer_connect(&a);
	show_events(s, 2000);
	c = accept(s, NULL, NULL);
	say("accepted: %d, nonblocking: %d", c >= 0, (fcntl(c, F_GETFL) & O_NONBLOCK) != 0);
	close(c);
	close(s);
}

static long accept_one(int fd)
{
	int c = accept(fd, NULL, NULL);

	if (c < 0)
		return -1;
	close(c);
	return 0;
}

static void accept_blocks(int fd)
{
	struct sockaddr_in a;
	struct blocked b;
	int s = listener(0, &a);

	(void)fd;
	block_in(&b, accept_one, s, "accept");
	peer_connect(&a);
	unblocked(&b, "accept");
	close(s);
}

static void accept_ends_by_shutdown(int fd)
{
	struct sockaddr_in a;
	struct blocked b;
	int s = listener(0, &a);

	(void)fd;
	block_in(&b, accept_one, s, "accept");
	CALL(shutdown(s, SHUT_RD));
	unblocked(&b, "accept");
	CALL(accept(s, NULL, NULL));
	close(s);
}

static void accept_interrupted(int fd)
{
	struct sockaddr_in a;
	int s = listener(0, &a);

	(void)fd;
	handle(SIGUSR1, count_signal, 0);
	interrupt_in(40, SIGUSR1);
	CALL(accept(s, NULL, NULL));
	setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){0, 40000}, sizeof(struct timeval));
	CALL(accept(s, NULL, NULL));
	close(s);
}

static void listener_is_no_connection(int fd)
{
	struct sockaddr_in a;
	int s = listener(0, &a);

	(void)fd;
	CALL(read(s, in, 1));
	CALL(write(s, in, 1));
	CALL(to(s, &a));
	CALL(getpeername(s, (struct sockaddr *)&a, &(socklen_t){sizeof(a)}));
	CALL(listen(s, 7));
	close(s);
}

static void accepted_after_reset(int fd)
{
	struct sockaddr_in a;
	int s = listener(0, &a), c;

	(void)fd;
	peer_connect(&a);
	peer_reset();
	settle();
	c = accept(s, NULL, NULL);
	say("accepted: %d", c >= 0);
	CALL(read(c, in, 1));
	close(c);
	close(s);
}

static void accepted_inherits_options(int fd)
{
	struct sockaddr_in a;
	int s = listener(0, &a), c, on = 0;
	socklen_t n = sizeof(on);

	(void)fd;
	setsockopt(s, SOL_SOCKET, SO_KEEPALIVE, &(int){1}, sizeof(int));
	setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
	peer_connect(&a);
	c = accept(s, NULL, NULL);
	CALL(getsockopt(c, SOL_SOCKET, SO_KEEPALIVE, &on, &n));
	say("%d", on);
	CALL(getsockopt(c, IPPROTO_TCP, TCP_NODELAY, &on, &n));
	say("%d", on);
	close(c);
	close(s);
}

static void address_in_use(int fd)
{
	struct sockaddr_in a;
	int s = listener(0, &a), other = tcp(0);

	(void)fd;
	CALL(bind(other, (struct sockaddr *)&a, sizeof(a)));
	CALL(bind(s, (struct sockaddr *)&a, sizeof(a)));
	close(s);
	CALL(bind(other, (struct sockaddr *)&a, sizeof(a)));
	CALL(listen(other, 1));
	close(other);
}

static void socket_arguments(int fd)
{
	(void)fd;
	CALL(socket(AF_INET, SOCK_STREAM, 9999));
	CALL(socket(9999, SOCK_STREAM, 0));
	CALL(socket(AF_INET, 9999, 0));
	CALL(socket(AF_INET, SOCK_STREAM | 0x40000000, 0));
	CALL(close(socket(AF_INET, SOCK_STREAM, IPPROTO_TCP)));
	CALL(close(socket(AF_INET, SOCK_DGRAM, 0)));
	CALL(close(socket(AF_INET6, SOCK_STREAM, 0)));
}

static void port_again_after_close(int fd)
{
	struct sockaddr_in a = peer_listen(5), own;
	socklen_t n = sizeof(own);
	int s = tcp(0);

	(void)fd;
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
	CALL(to(s, &a));
	peer_accept();
	getsockname(s, (struct sockaddr *)&own, &n);
	peer_close();
	settle();
	CALL(close(s));
	settle();
	s = tcp(0);
	CALL(bind(s, (struct sockaddr *)&own, sizeof(own)));
	close(s);
}

const struct test_case connect_cases[] = {
	COLD(before_connect),
	COLD(connect_blocking),
	COLD(connect_nonblocking),
	COLD(connect_refused),
	COLD(connect_refused_nonblocking),
	COLD(connect_refused_in_a_set),
	COLD(connect_in_a_set),
	COLD(connect_to_bad_addresses),
	COLD(connect_to_itself),
	COLD(unspec_before_connect),
	CASE(reconnect_after_unspec),
	COLD(send_timeout_for_connect),
	COLD(connect_interrupted),
	COLD(accept_variants),
	COLD(accept_bad_address),
	COLD(accept_nonblocking),
	COLD(accept_blocks),
	COLD(accept_ends_by_shutdown),
	COLD(accept_interrupted),
	COLD(listener_is_no_connection),
	COLD(accepted_after_reset),
	COLD(accepted_inherits_options),
	COLD(address_in_use),
	COLD(socket_arguments),
	COLD(port_again_after_close),
	END_OF_CASES,
};
