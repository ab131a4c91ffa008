/* SPDX-License-Identifier: Apache-2.0 */
/* Several threads on one connection. */
#include "semantics.h"

#include <sys/eventfd.h>

static long read_ten(int fd)
{
	static __thread char buf[10];

	return recv(fd, buf, sizeof(buf), MSG_WAITALL);
}

static long read_one(int fd)
{
	char c;

	return read(fd, &c, 1);
}

static long write_much(int fd)
{
	return write(fd, stream, 4 << 20);
}

static long poll_in(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return poll(&p, 1, 3000);
}

static long wait_in_set(int ep)
{
	struct epoll_event e;

	return epoll_wait(ep, &e, 1, 3000);
}

/* The call goes on: the file lives as long as the call uses it. */
static void close_while_another_reads(int fd)
{
	struct blocked b;

	block_in(&b, read_one, fd, "read");
	CALL(close(fd));
	still_blocked(&b, "read");
	peer_send(1);
	unblocked(&b, "read");
	peer_drain();
}

static void close_while_another_polls(int fd)
{
	struct blocked b;

	block_in(&b, poll_in, fd, "poll");
	CALL(close(fd));
	still_blocked(&b, "poll");
	peer_send(1);
	unblocked(&b, "poll");
}

static void close_while_another_writes(int fd)
{
	struct blocked b;

	block_in(&b, write_much, fd, "write");
	CALL(close(fd));
	still_blocked(&b, "write");
	peer_receive(4 << 20);
	unblocked(&b, "write");
	peer_drain();
}

static void close_while_a_set_waits(int fd)
{
	int ep = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event e = {.events = EPOLLIN};
	struct blocked b;

	epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
	block_in(&b, wait_in_set, ep, "epoll_wait");
	CALL(close(fd));
	still_blocked(&b, "epoll_wait");
	peer_drain();
	fd = eventfd(1, EFD_CLOEXEC);
	e.events = EPOLLIN;
	epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
	unblocked(&b, "epoll_wait");
	close(fd);
	close(ep);
}

static void shutdown_while_another_reads(int fd)
{
	struct blocked b;

	block_in(&b, read_one, fd, "read");
	CALL(shutdown(fd, SHUT_RDWR));
	unblocked(&b, "read");
	peer_drain();
}

static void shutdown_while_another_writes(int fd)
{
	struct blocked b;

	block_in(&b, write_much, fd, "write");
	CALL(shutdown(fd, SHUT_WR));
	for (int i = 0; i < 1000 && !b.done; i++)
		sleep_ms(1);
	say("done %d, partly %d", b.done, b.result > 0 && b.result < 4 << 20);
	pthread_join(b.thread, NULL);
	say("%d signals", handled);
}

static void write_while_another_reads(int fd)
{
	struct blocked b;

	block_in(&b, read_one, fd, "read");
	SENT(write(fd, OUT, 100000));
	peer_receive(100000);
	still_blocked(&b, "read");
	peer_send(1);
	unblocked(&b, "read");
}

static void two_readers(int fd)
{
	struct blocked a, b;

	block_in(&a, read_one, fd, "first");
	block_in(&b, read_one, fd, "second");
	peer_send(1);
	for (int i = 0; i < 1000 && !a.done && !b.done; i++)
		sleep_ms(1);
	sleep_ms(20);
	say("%d returned", a.done + b.done);
	peer_send(1);
	unblocked(&a, "first");
	unblocked(&b, "second");
}

static void two_readers_at_the_end(int fd)
{
	struct blocked a, b;

	block_in(&a, read_one, fd, "first");
	block_in(&b, read_ten, fd, "second");
	peer_close();
	unblocked(&a, "first");
	unblocked(&b, "second");
}

static void reader_and_poller(int fd)
{
	struct blocked a, b;

	block_in(&a, poll_in, fd, "poll");
	block_in(&b, read_ten, fd, "read");
	peer_send(10);
	unblocked(&b, "read");
	peer_send(1);
	unblocked(&a, "poll");
}

static void set_made_nonblocking_while_another_reads(int fd)
{
	struct blocked b;

	block_in(&b, read_one, fd, "read");
	fcntl(fd, F_SETFL, O_NONBLOCK);
	still_blocked(&b, "read");
	CALL(read(fd, in, 1));
	peer_send(1);
	unblocked(&b, "read");
}

static void switched_while_another_reads(int fd)
{
	struct blocked b;
	int n;

	block_in(&b, read_one, fd, "read");
	CALL(ioctl(fd, SIOCATMARK, &n));
	still_blocked(&b, "read");
	peer_send(1);
	unblocked(&b, "read");
}

static void *writes_lines(void *arg)
{
	int fd = *(int *)arg;

	for (int i = 0; i < 200; i++)
		if (write(fd, "abcdefgh", 8) != 8)
			break;
	return NULL;
}

/* Small writes of several threads are not mixed up. */
static void two_writers(int fd)
{
	pthread_t a, b;

	pthread_create(&a, NULL, writes_lines, &fd);
	pthread_create(&b, NULL, writes_lines, &fd);
	pthread_join(a, NULL);
	pthread_join(b, NULL);
	say("both are done");
}

static void *reads_all(void *arg)
{
	static __thread char buf[1000];
	long total = 0, n;

	while ((n = read(*(int *)arg, buf, sizeof(buf))) > 0)
		total += n;
	return (void *)total;
}

static void two_readers_of_a_stream(int fd)
{
	pthread_t a, b;
	void *x, *y;

	pthread_create(&a, NULL, reads_all, &fd);
	pthread_create(&b, NULL, reads_all, &fd);
	peer_send(200000);
	peer_close();
	pthread_join(a, &x);
	pthread_join(b, &y);
	say("%ld octets came", (long)x + (long)y);
}

const struct test_case threads_cases[] = {
	CASE(close_while_another_reads),
	CASE(close_while_another_polls),
	CASE(close_while_another_writes),
	CASE(close_while_a_set_waits),
	CASE(shutdown_while_another_reads),
	CASE(shutdown_while_another_writes),
	CASE(write_while_another_reads),
	CASE(two_readers),
	CASE(two_readers_at_the_end),
	CASE(reader_and_poller),
	CASE(set_made_nonblocking_while_another_reads),
	CASE(switched_while_another_reads),
	CASE(two_writers),
	CASE(two_readers_of_a_stream),
	END_OF_CASES,
};
