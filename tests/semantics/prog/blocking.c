/* SPDX-License-Identifier: Apache-2.0 */
/* Calls that wait: for how long, and what ends them. */
#include "semantics.h"

static void set_timeout(int fd, int name, int ms)
{
	struct timeval t = {ms / 1000, ms % 1000 * 1000};

	if (setsockopt(fd, SOL_SOCKET, name, &t, sizeof(t)))
		say("no time-out");
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

	return poll(&p, 1, -1);
}

static void read_blocks(int fd)
{
	struct blocked b;

	block_in(&b, read_one, fd, "read");
	peer_send(1);
	unblocked(&b, "read");
}

static void write_blocks(int fd)
{
	struct blocked b;

	block_in(&b, write_much, fd, "write");
	peer_receive(4 << 20);
	unblocked(&b, "write");
}

static void poll_blocks(int fd)
{
	struct blocked b;

	block_in(&b, poll_in, fd, "poll");
	peer_send(1);
	unblocked(&b, "poll");
	GOT(read(fd, in, 10));
}

static void receive_timeout(int fd)
{
	uint64_t start = now_ms();

	set_timeout(fd, SO_RCVTIMEO, 60);
	CALL(read(fd, in, 10));
	say("%s", punctual(start, 60));
	peer_send(5);
	GOT(read(fd, in, 10));
	start = now_ms();
	CALL(recv(fd, in, 10, MSG_PEEK));
	say("%s", punctual(start, 60));
}

/* A negative time-out is none at all: nothing waits. */
static void negative_timeouts(int fd)
{
	struct timeval t = {-1, 0};

	CALL(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t)));
	CALL(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof(t)));
	CALL(read(fd, in, 10));
	CALL(recv(fd, in, 10, MSG_PEEK));
	fill_up(fd);
	CALL(write(fd, OUT, 10));
}

static void receive_timeout_is_gone(int fd)
{
	set_timeout(fd, SO_RCVTIMEO, 20);
	CALL(read(fd, in, 10));
	set_timeout(fd, SO_RCVTIMEO, 0);
	peer_send_later(50, 5);
	GOT(read(fd, in, 10));
}

static void receive_timeout_of_recvmsg(int fd)
{
	struct iovec v = {in, 10};
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1};
	uint64_t start = now_ms();

	set_timeout(fd, SO_RCVTIMEO, 60);
	CALL(recvmsg(fd, &m, 0));
	say("%s", punctual(start, 60));
	CALL(readv(fd, &v, 1));
}

static void receive_timeout_and_dontwait(int fd)
{
	uint64_t start = now_ms();

	set_timeout(fd, SO_RCVTIMEO, 3000);
	CALL(recv(fd, in, 10, MSG_DONTWAIT));
	say("at once: %d", now_ms() - start < 2500);
}

static void send_timeout(int fd)
{
	uint64_t start;

	set_timeout(fd, SO_SNDTIMEO, 60);
	fill_up(fd);
	start = now_ms();
	CALL(write(fd, OUT, 10));
	say("%s", punctual(start, 60));
}

static void send_timeout_partly(int fd)
{
	uint64_t start = now_ms();
	long n;

	set_timeout(fd, SO_SNDTIMEO, 60);
	n = write(fd, OUT, 6 << 20);
	say("partly: %d", n > 0 && n < 6 << 20);
	say("%s", punctual(start, 60));
	did_send(n);
	peer_receive(sent);
}

static void send_timeout_does_not_matter(int fd)
{
	set_timeout(fd, SO_SNDTIMEO, 60);
	CALL(recv(fd, in, 1, MSG_DONTWAIT));
	peer_send_later(100, 1);
	GOT(read(fd, in, 1));
}

/* ---- signals -------------------------------------------------------------------- */

static void read_interrupted(int fd)
{
	handle(SIGUSR1, count_signal, 0);
	interrupt_in(50, SIGUSR1);
	CALL(read(fd, in, 10));
	say("%d signals", handled);
}

static void read_restarted(int fd)
{
	handle(SIGUSR1, count_signal, SA_RESTART);
	interrupt_in(30, SIGUSR1);
	peer_send_later(300, 5);
	GOT(read(fd, in, 10));
	say("%d signals", handled);
}

static void read_with_timeout_is_not_restarted(int fd)
{
	set_timeout(fd, SO_RCVTIMEO, 2000);
	handle(SIGUSR1, count_signal, SA_RESTART);
	interrupt_in(50, SIGUSR1);
	CALL(read(fd, in, 10));
	say("%d signals", handled);
}

static void two_handlers(int fd)
{
	handle(SIGUSR2, count_signal, 0);
	handle(SIGUSR1, count_signal, SA_RESTART);
	interrupt_in(30, SIGUSR1);
	peer_send_later(300, 5);
	GOT(read(fd, in, 10));
	say("%d signals", handled);
}

static void ignored_signal(int fd)
{
	handle(SIGUSR1, SIG_IGN, 0);
	interrupt_in(30, SIGUSR1);
	peer_send_later(300, 5);
	GOT(read(fd, in, 10));
}

static void blocked_signal(int fd)
{
	sigset_t set, before;

	handle(SIGUSR1, count_signal, 0);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, &before);
	interrupt_in(30, SIGUSR1);
	peer_send_later(300, 5);
	GOT(read(fd, in, 10));
	say("%d signals", handled);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	say("%d signals", handled);
}

static void signal_without_effect(int fd)
{
	/* SIGCHLD's default is to be ignored: no call ends for it. */
	interrupt_in(30, SIGCHLD);
	peer_send_later(300, 5);
	GOT(read(fd, in, 10));
}

static void stop_and_continue(int fd)
{
	/* SIGCONT alone, with its default, ends no read. */
	interrupt_in(30, SIGCONT);
	peer_send_later(300, 5);
	GOT(read(fd, in, 10));
}

static void write_interrupted(int fd)
{
	fill_up(fd);
	handle(SIGUSR1, count_signal, 0);
	interrupt_in(50, SIGUSR1);
	CALL(write(fd, OUT, 10));
	say("%d signals", handled);
}

static void write_interrupted_partly(int fd)
{
	long n;

	handle(SIGUSR1, count_signal, 0);
	interrupt_in(80, SIGUSR1);
	n = write(fd, OUT, 6 << 20);
	say("partly: %d", n > 0 && n < 6 << 20);
	say("%d signals", handled);
	did_send(n);
	peer_receive(sent);
}

static void write_restarted(int fd)
{
	size_t before;

	fill_up(fd);
	before = sent;
	handle(SIGUSR1, count_signal, SA_RESTART);
	interrupt_in(50, SIGUSR1);
	peer_receive_later(300, before + 1000);
	SENT(write(fd, OUT, 1000));
	say("%d signals", handled);
}

static void poll_interrupted(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	handle(SIGUSR1, count_signal, SA_RESTART); /* does not matter to poll() */
	interrupt_in(50, SIGUSR1);
	CALL(poll(&p, 1, 2000));
	say("%d signals", handled);
}

static void poll_forever_interrupted(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	handle(SIGUSR1, count_signal, 0);
	interrupt_in(50, SIGUSR1);
	CALL(poll(&p, 1, -1));
	say("%d signals", handled);
}

static void select_interrupted(int fd)
{
	fd_set set;

	FD_ZERO(&set);
	FD_SET(fd, &set);
	handle(SIGUSR1, count_signal, SA_RESTART);
	interrupt_in(50, SIGUSR1);
	CALL(select(fd + 1, &set, NULL, NULL, NULL));
	say("%d signals, set %d", handled, FD_ISSET(fd, &set) != 0);
}

static void epoll_interrupted(int fd)
{
	int ep = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event e = {.events = EPOLLIN};

	epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
	handle(SIGUSR1, count_signal, SA_RESTART);
	interrupt_in(50, SIGUSR1);
	CALL(epoll_wait(ep, &e, 1, -1));
	say("%d signals", handled);
	close(ep);
}

static void waitall_restarted(int fd)
{
	peer_send(5);
	await_octets(fd, 5);
	handle(SIGUSR1, count_signal, SA_RESTART);
	interrupt_in(50, SIGUSR1);
	GOT(recv(fd, in, 10, MSG_WAITALL)); /* what there is, though it restarts */
	say("%d signals", handled);
}

static void alarm_ends_a_read(int fd)
{
	struct sigaction action = {.sa_handler = count_signal};

	handled = 0;
	sigaction(SIGALRM, &action, NULL);
	alarm(1);
	CALL(read(fd, in, 10));
	say("%d signals", handled);
	signal(SIGALRM, SIG_DFL);
}

const struct test_case blocking_cases[] = {
	CASE(read_blocks),
	CASE(write_blocks),
	CASE(poll_blocks),
	CASE(receive_timeout),
	CASE(negative_timeouts),
	CASE(receive_timeout_is_gone),
	CASE(receive_timeout_of_recvmsg),
	CASE(receive_timeout_and_dontwait),
	CASE(send_timeout),
	CASE(send_timeout_partly),
	CASE(send_timeout_does_not_matter),
	CASE(read_interrupted),
	CASE(read_restarted),
	CASE(read_with_timeout_is_not_restarted),
	CASE(two_handlers),
	CASE(ignored_signal),
	CASE(blocked_signal),
	CASE(signal_without_effect),
	CASE(stop_and_continue),
	CASE(write_interrupted),
	CASE(write_interrupted_partly),
	CASE(write_restarted),
	CASE(poll_interrupted),
	CASE(poll_forever_interrupted),
	CASE(select_interrupted),
	CASE(epoll_interrupted),
	CASE(waitall_restarted),
	CASE(alarm_ends_a_read),
	END_OF_CASES,
};
