/* SPDX-License-Identifier: Apache-2.0 */
/* Descriptors: copies of them, and closing them in all ways. */
#include "semantics.h"

#include <linux/close_range.h>

static void exchange(int fd)
{
	SENT(write(fd, OUT, 5));
	peer_receive(5);
	peer_send(5);
	GOT(read(fd, in, 10));
}

static void dup_shares(int fd)
{
	int copy = dup(fd);

	peer_send(10);
	await_octets(fd, 10);
	GOT(read(fd, in, 5));
	GOT(read(copy, in, 10));
	exchange(copy);
	say("close on exec: %d", fcntl(copy, F_GETFD));
	CALL(close(copy));
	exchange(fd);
}

static void dup_outlives(int fd)
{
	int copy = dup(fd);

	CALL(close(fd));
	exchange(copy);
	CALL(close(copy));
	peer_drain();
}

static void dup_shares_flags(int fd)
{
	int copy = dup(fd);

	fcntl(copy, F_SETFL, O_NONBLOCK);
	CALL(read(fd, in, 10));
	fcntl(fd, F_SETFL, 0);
	say("O_NONBLOCK %d", fcntl(copy, F_GETFL) & O_NONBLOCK);
	close(copy);
}

static void dup_shares_options(int fd)
{
	int copy = dup(fd), value = -1;
	socklen_t n = sizeof(value);

	setsockopt(copy, SOL_SOCKET, SO_KEEPALIVE, &(int){1}, sizeof(int));
	CALL(getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &value, &n));
	say("%d", value);
	close(copy);
}

static void dup2_to_a_number(int fd)
{
	CALL(dup2(fd, 200));
	exchange(200);
	CALL(close(fd));
	exchange(200);
	CALL(close(200));
	peer_drain();
}

static void dup2_to_itself(int fd)
{
	CALL(dup2(fd, fd) == fd);
	exchange(fd);
	CALL(close(fd));
	CALL(dup2(fd, fd));
}

static void dup2_over_the_socket(int fd)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	SENT(write(fd, OUT, 5));
	CALL(dup2(null, fd) == fd);
	peer_drain();
	CALL(write(fd, in, 5));
	CALL(read(fd, in, 5));
	close(null);
}

static void dup2_of_a_file_onto_a_copy(int fd)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC), copy = dup(fd);

	CALL(dup2(null, copy) == copy);
	CALL(write(copy, in, 5));
	exchange(fd);
	close(copy);
	close(null);
}

static void dup3_with_flag(int fd)
{
	CALL(dup3(fd, 200, O_CLOEXEC));
	CALL(fcntl(200, F_GETFD));
	exchange(200);
	CALL(close(200));
	CALL(dup3(fd, 200, 0));
	CALL(fcntl(200, F_GETFD));
	CALL(close(200));
	exchange(fd);
}

static void duplicate_above(int fd)
{
	CALL(fcntl(fd, F_DUPFD, 300));
	CALL(fcntl(fd, F_DUPFD_CLOEXEC, 300));
	CALL(fcntl(300, F_GETFD));
	CALL(fcntl(301, F_GETFD));
	exchange(300);
	exchange(301);
	CALL(close(300));
	CALL(close(301));
	CALL(fcntl(fd, F_DUPFD, -1));
	exchange(fd);
}

static void many_copies(int fd)
{
	int copies[20];

	for (int i = 0; i < 20; i++)
		copies[i] = dup(i ? copies[i - 1] : fd);
	close(fd);
	for (int i = 0; i < 19; i++)
		close(copies[i]);
	exchange(copies[19]);
	close(copies[19]);
	peer_drain();
}

static void closed_by_range(int fd)
{
	int copy = fcntl(fd, F_DUPFD, 300);

	CALL(close_range(300, 310, 0));
	CALL(fcntl(copy, F_GETFD));
	exchange(fd);
	CALL(fcntl(fd, F_DUPFD, 300));
	CALL(close(fd));
	CALL(close_range(300, 310, 0));
	peer_drain();
}

static void range_to_close_on_exec(int fd)
{
	CALL(fcntl(fd, F_DUPFD, 300));
	CALL(close_range(300, 310, CLOSE_RANGE_CLOEXEC));
	CALL(fcntl(300, F_GETFD));
	exchange(300);
	CALL(close(300));
	exchange(fd);
}

static void bad_ranges(int fd)
{
	CALL(close_range(10, 5, 0));
	CALL(close_range(300, 310, 0x7777));
	exchange(fd);
}

static void closed_from(int fd)
{
	CALL(dup2(fd, 660));
	CALL(dup2(fd, 900));
	closefrom(650);
	CALL(fcntl(660, F_GETFD));
	CALL(fcntl(900, F_GETFD));
	exchange(fd);
}

static void close_twice(int fd)
{
	CALL(close(fd));
	CALL(close(fd));
	peer_drain();
}

static void number_becomes_a_connection(int fd)
{
	struct sockaddr_in a = peer_listen(5);
	int next;

	CALL(close(fd));
	next = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	say("the same number: %d", next == fd);
	CALL(connect(next, (struct sockaddr *)&a, sizeof(a)));
	peer_accept();
	sent = received = 0;
	exchange(next);
	close(next);
	peer_drain();
}

static void socket_options_that_say_what_it_is(int fd)
{
	static const int names[] = {SO_TYPE, SO_DOMAIN, SO_PROTOCOL, SO_ACCEPTCONN};

	for (int i = 0; i < 4; i++) {
		int value = -1;
		socklen_t n = sizeof(value);

		CALL(getsockopt(fd, SOL_SOCKET, names[i], &value, &n));
		say("%d", value);
	}
}

static void cookie_stays(int fd)
{
	uint64_t a = 0, b = 0;
	socklen_t n = sizeof(a);

	CALL(getsockopt(fd, SOL_SOCKET, SO_COOKIE, &a, &n));
	exchange(fd);
	CALL(shutdown(fd, SHUT_WR));
	CALL(getsockopt(fd, SOL_SOCKET, SO_COOKIE, &b, &n));
	say("the same: %d", a == b);
}

static void inode_stays(int fd)
{
	struct stat a, b;
	int copy = dup(fd);

	fstat(fd, &a);
	fstat(copy, &b);
	say("the same: %d", a.st_ino == b.st_ino && a.st_dev == b.st_dev);
	CALL(shutdown(fd, SHUT_WR));
	fstat(fd, &b);
	say("the same: %d", a.st_ino == b.st_ino && a.st_dev == b.st_dev);
	close(copy);
}

const struct test_case fds_cases[] = {
	CASE(dup_shares),
	CASE(dup_outlives),
	CASE(dup_shares_flags),
	CASE(dup_shares_options),
	CASE(dup2_to_a_number),
	CASE(dup2_to_itself),
	CASE(dup2_over_the_socket),
	CASE(dup2_of_a_file_onto_a_copy),
	CASE(dup3_with_flag),
	CASE(duplicate_above),
	CASE(many_copies),
	CASE(closed_by_range),
	CASE(range_to_close_on_exec),
	CASE(bad_ranges),
	CASE(closed_from),
	CASE(close_twice),
	CASE(number_becomes_a_connection),
	CASE(socket_options_that_say_what_it_is),
	CASE(cookie_stays),
	CASE(inode_stays),
	END_OF_CASES,
};
