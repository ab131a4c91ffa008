/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How connections end: the end of the stream, half closed, closed, reset; and
 * what calls give from then on.
 */
#include "semantics.h"

static void show_events(int fd)
{
	struct pollfd p = {.fd = fd,
			   .events = POLLIN | POLLOUT | POLLPRI | POLLRDHUP | POLLRDNORM |
				     POLLWRNORM};

	poll(&p, 1, 0);
	say("poll: %s", event_names((uint32_t)p.revents));
	p.events = 0;
	poll(&p, 1, 0);
	say("poll for nothing: %s", event_names((uint32_t)p.revents));
}

static void show_error(int fd)
{
	int err = -1;
	socklen_t n = sizeof(err);

	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &n))
		say("no SO_ERROR");
	say("SO_ERROR %s", errno_name(err));
}

static void show_state(int fd)
{
	struct tcp_info info;
	socklen_t n = sizeof(info);

	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &n))
		say("no TCP_INFO");
	say("state %d", info.tcpi_state);
}

/* ---- the peer's end of the stream ------------------------------------------- */

static void end_of_stream(int fd)
{
	peer_send(5);
	peer_close();
	settle();
	GOT(read(fd, in, 100));
	CALL(read(fd, in, 100));
	CALL(read(fd, in, 100));
	CALL(recv(fd, in, 100, MSG_PEEK));
	CALL(recv(fd, in, 100, MSG_DONTWAIT));
	CALL(recv(fd, in, 100, MSG_WAITALL));
	CALL(recv(fd, in, 0, 0));
}

static void end_while_blocked(int fd)
{
	peer_close_later(50);
	CALL(read(fd, in, 100));
}

static void end_while_polling(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	peer_close_later(50);
	CALL(poll(&p, 1, 2000));
	say("%s", event_names((uint32_t)p.revents));
	CALL(read(fd, in, 100));
}

static void end_events(int fd)
{
	show_events(fd);
	peer_shutdown(SHUT_WR);
	settle();
	show_events(fd);
	show_error(fd);
	show_state(fd);
}

static void end_with_data_events(int fd)
{
	peer_send(5);
	peer_shutdown(SHUT_WR);
	settle();
	show_events(fd);
	GOT(read(fd, in, 5));
	show_events(fd);
	CALL(read(fd, in, 5));
	show_events(fd);
}

static void write_after_peers_half_close(int fd)
{
	peer_shutdown(SHUT_WR);
	settle();
	SENT(write(fd, OUT, 1000));
	peer_receive(1000);
	CALL(read(fd, in, 1));
	SENT(write(fd, OUT, 1000));
	CALL(shutdown(fd, SHUT_WR));
	peer_drain();
	show_state(fd);
}

static void write_after_peers_close(int fd)
{
	peer_close();
	settle();
	SENT(write(fd, OUT, 10)); /* is answered by a reset */
	settle();
	CALL(write(fd, OUT, 10));
	say("%d signals", handled);
	CALL(write(fd, OUT, 10));
	say("%d signals", handled);
	CALL(read(fd, in, 10));
	show_events(fd);
	show_error(fd);
}

static void read_after_peers_close_and_write(int fd)
{
	peer_close();
	settle();
	SENT(write(fd, OUT, 10));
	settle();
	CALL(read(fd, in, 10));
	CALL(read(fd, in, 10));
	show_error(fd);
}

static void error_after_peers_close_and_write(int fd)
{
	peer_close();
	settle();
	SENT(write(fd, OUT, 10));
	settle();
	show_events(fd);
	show_error(fd);
	show_error(fd);
	CALL(write(fd, OUT, 10));
}

static void unread_at_the_peers_close(int fd)
{
	SENT(write(fd, OUT, 10));
	peer_send(5);
	settle();
	peer_close(); /* it has unread octets, so this is a reset */
	settle();
	show_events(fd);
	CALL(read(fd, in, 10));
	CALL(read(fd, in, 10));
}

/* ---- resets ------------------------------------------------------------------- */

static void reset_then_read(int fd)
{
	peer_reset();
	settle();
	CALL(read(fd, in, 10));
	CALL(read(fd, in, 10));
	CALL(recv(fd, in, 10, MSG_DONTWAIT));
	show_state(fd);
}

static void reset_then_write(int fd)
{
	peer_reset();
	settle();
	CALL(write(fd, OUT, 10));
	say("%d signals", handled);
	CALL(write(fd, OUT, 10));
	say("%d signals", handled);
	CALL(read(fd, in, 10));
}

static void reset_then_peek(int fd)
{
	peer_reset();
	settle();
	CALL(recv(fd, in, 10, MSG_PEEK));
	CALL(recv(fd, in, 10, MSG_PEEK));
}

static void reset_then_error(int fd)
{
	peer_reset();
	settle();
	show_error(fd);
	show_error(fd);
	CALL(read(fd, in, 10));
	CALL(write(fd, OUT, 10));
}

static void reset_then_state(int fd)
{
	peer_reset();
	settle();
	show_state(fd);
	show_error(fd);
}

static void reset_then_events(int fd)
{
	peer_reset();
	settle();
	show_events(fd);
	show_events(fd);
	show_error(fd);
	show_events(fd);
}

static void reset_then_select(int fd)
{
	fd_set r, w, x;

	FD_ZERO(&r);
	FD_SET(fd, &r);
	w = x = r;
	peer_reset();
	settle();
	CALL(select(fd + 1, &r, &w, &x, &(struct timeval){0, 0}));
	say("%d %d %d", FD_ISSET(fd, &r), FD_ISSET(fd, &w), FD_ISSET(fd, &x));
}

static void reset_with_unread(int fd)
{
	peer_send(10);
	await_octets(fd, 10);
	peer_reset();
	settle();
	show_events(fd);
	CALL(read(fd, in, 10));
	CALL(read(fd, in, 10));
}

static void reset_while_blocked(int fd)
{
	peer_reset_later(50);
	CALL(read(fd, in, 10));
	CALL(read(fd, in, 10));
}

static void reset_while_writing(int fd)
{
	peer_reset_later(50);
	CALL(write(fd, OUT, 8 << 20) < 8 << 20);
	CALL(write(fd, OUT, 10));
	say("%d signals", handled);
}

static void reset_then_calls(int fd)
{
	struct sockaddr_in a;
	socklen_t n = sizeof(a);

	peer_reset();
	settle();
	CALL(getpeername(fd, (struct sockaddr *)&a, &n));
	CALL(getsockname(fd, (struct sockaddr *)&a, &n));
	CALL(shutdown(fd, SHUT_WR));
	CALL(shutdown(fd, SHUT_RD));
	show_error(fd);
	CALL(close(fd));
}

static void reset_by_zero_linger(int fd)
{
	struct linger now = {1, 0};

	CALL(setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now)));
	CALL(close(fd));
	peer_drain();
}

static void reset_by_close_with_unread(int fd)
{
	peer_send(10);
	await_octets(fd, 10);
	GOT(read(fd, in, 5));
	CALL(close(fd));
	peer_drain();
}

static void reset_by_zero_linger_with_unsent(int fd)
{
	struct linger now = {1, 0};

	fill_up(fd);
	CALL(setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now)));
	CALL(close(fd));
}

static void connect_to_unspec(int fd)
{
	struct sockaddr a = {.sa_family = AF_UNSPEC};

	CALL(connect(fd, &a, sizeof(a)));
	peer_drain();
	CALL(write(fd, OUT, 1));
	CALL(read(fd, in, 1));
	show_events(fd);
	show_state(fd);
}

/* ---- our own ends --------------------------------------------------------------- */

static void close_ends_the_stream(int fd)
{
	SENT(write(fd, OUT, 10));
	CALL(close(fd));
	peer_drain();
}

static void close_delivers_all(int fd)
{
	SENT(write(fd, OUT, 60000));
	CALL(close(fd));
	peer_drain();
}

static void close_delivers_what_is_queued(int fd)
{
	fill_up(fd);
	CALL(close(fd));
	peer_receive(sent);
	peer_drain();
}

static void close_with_linger_waits(int fd)
{
	struct linger l = {1, 2};

	CALL(setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof(l)));
	SENT(write(fd, OUT, 10000));
	CALL(close(fd));
	peer_drain();
}

static void close_with_linger_times_out(int fd)
{
	struct linger l = {1, 1};
	uint64_t start;

	fill_up(fd);
	CALL(setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof(l)));
	start = now_ms();
	CALL(close(fd));
	say("%s", punctual(start, 1000));
}

static void half_close(int fd)
{
	SENT(write(fd, OUT, 10));
	CALL(shutdown(fd, SHUT_WR));
	show_events(fd);
	CALL(write(fd, OUT, 10));
	say("%d signals", handled);
	CALL(send(fd, OUT, 10, MSG_NOSIGNAL));
	say("%d signals", handled);
	CALL(write(fd, OUT, 0));
	peer_drain();
	peer_send(20);
	await_octets(fd, 20);
	GOT(read(fd, in, 100));
	show_state(fd);
	peer_close();
	settle();
	CALL(read(fd, in, 100));
	show_events(fd);
	show_state(fd);
}

static void half_close_twice(int fd)
{
	CALL(shutdown(fd, SHUT_WR));
	CALL(shutdown(fd, SHUT_WR));
	peer_drain();
	peer_close();
	settle();
	CALL(shutdown(fd, SHUT_WR));
	CALL(shutdown(fd, SHUT_RDWR));
}

static void half_close_delivers_all(int fd)
{
	SENT(write(fd, OUT, 60000));
	CALL(shutdown(fd, SHUT_WR));
	peer_drain();
}

static void half_close_then_echo(int fd)
{
	SENT(write(fd, OUT, 100));
	CALL(shutdown(fd, SHUT_WR));
	peer_drain();
	peer_send(100000);
	peer_close();
	GOT(recv(fd, in, 200000, MSG_WAITALL));
	CALL(read(fd, in, 100));
}

static void shutdown_of_reading(int fd)
{
	CALL(shutdown(fd, SHUT_RD));
	show_events(fd);
	CALL(read(fd, in, 10));
	SENT(write(fd, OUT, 10));
	peer_receive(10);
	peer_send(10);
	settle();
	GOT(read(fd, in, 10));
	CALL(read(fd, in, 10));
}

static void shutdown_of_reading_with_unread(int fd)
{
	peer_send(10);
	await_octets(fd, 10);
	CALL(shutdown(fd, SHUT_RD));
	GOT(read(fd, in, 100));
	CALL(read(fd, in, 10));
}

static void shutdown_of_both(int fd)
{
	CALL(shutdown(fd, SHUT_RDWR));
	show_events(fd);
	CALL(read(fd, in, 10));
	CALL(write(fd, OUT, 10));
	say("%d signals", handled);
	peer_drain();
	peer_close();
	settle();
	show_events(fd);
	show_state(fd);
}

static void shutdown_after_peers_end(int fd)
{
	peer_shutdown(SHUT_WR);
	settle();
	CALL(shutdown(fd, SHUT_WR));
	settle();
	show_events(fd);
	show_state(fd);
	CALL(read(fd, in, 10));
	CALL(write(fd, OUT, 10));
	CALL(shutdown(fd, SHUT_RDWR));
}

static long read_some(int fd)
{
	static char buf[100];

	return read(fd, buf, sizeof(buf));
}

static void shutdown_wakes_a_reader(int fd)
{
	struct blocked b;

	block_in(&b, read_some, fd, "read");
	CALL(shutdown(fd, SHUT_RD));
	unblocked(&b, "read");
}

static void half_close_wakes_no_reader(int fd)
{
	struct blocked b;

	block_in(&b, read_some, fd, "read");
	CALL(shutdown(fd, SHUT_WR));
	still_blocked(&b, "read");
	peer_send(3);
	unblocked(&b, "read");
}

static void simultaneous_close(int fd)
{
	peer_send(5);
	await_octets(fd, 5);
	GOT(read(fd, in, 5));
	peer_close_later(20);
	sleep_ms(20);
	CALL(close(fd));
	peer_await();
}

static void keepalive_of_a_living_peer(int fd)
{
	int n = 1;

	CALL(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &n, sizeof(n)));
	CALL(setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &n, sizeof(n)));
	CALL(setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &n, sizeof(n)));
	SENT(write(fd, OUT, 1));
	peer_receive(1);
	sleep_ms(1300);
	SENT(write(fd, OUT, 1));
	peer_receive(1);
	show_state(fd);
}

const struct test_case ending_cases[] = {
	CASE(end_of_stream),
	CASE(end_while_blocked),
	CASE(end_while_polling),
	CASE(end_events),
	CASE(end_with_data_events),
	CASE(write_after_peers_half_close),
	CASE(write_after_peers_close),
	CASE(read_after_peers_close_and_write),
	CASE(error_after_peers_close_and_write),
	CASE(unread_at_the_peers_close),
	CASE(reset_then_read),
	CASE(reset_then_write),
	CASE(reset_then_peek),
	CASE(reset_then_error),
	CASE(reset_then_state),
	CASE(reset_then_events),
	CASE(reset_then_select),
	CASE(reset_with_unread),
	CASE(reset_while_blocked),
	CASE(reset_while_writing),
	CASE(reset_then_calls),
	CASE(reset_by_zero_linger),
	CASE(reset_by_close_with_unread),
	CASE(reset_by_zero_linger_with_unsent),
	CASE(connect_to_unspec),
	CASE(close_ends_the_stream),
	CASE(close_delivers_all),
	CASE(close_delivers_what_is_queued),
	CASE(close_with_linger_waits),
	CASE(close_with_linger_times_out),
	CASE(half_close),
	CASE(half_close_twice),
	CASE(half_close_delivers_all),
	CASE(half_close_then_echo),
	CASE(shutdown_of_reading),
	CASE(shutdown_of_reading_with_unread),
	CASE(shutdown_of_both),
	CASE(shutdown_after_peers_end),
	CASE(shutdown_wakes_a_reader),
	CASE(half_close_wakes_no_reader),
	CASE(simultaneous_close),
	CASE(keepalive_of_a_living_peer),
	END_OF_CASES,
};
