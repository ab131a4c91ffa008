/* SPDX-License-Identifier: Apache-2.0 */
/* poll() and ppoll(). */
#include "semantics.h"

#define ALL                                                                                        \
	(POLLIN | POLLPRI | POLLOUT | POLLRDNORM | POLLRDBAND | POLLWRNORM | POLLWRBAND | POLLRDHUP)

static long show(const char *what, struct pollfd *p, nfds_t n, int timeout)
{
	long r = poll(p, n, timeout);

	if (r < 0)
		say("%s: %s", what, errno_name(errno));
	else
		say("%s: %ld: %s", what, r, event_names((uint32_t)p->revents));
	return r;
}

static void poll_each_event(int fd)
{
	struct pollfd p = {.fd = fd};

	peer_send(5);
	await_octets(fd, 5);
	for (int bit = 1; bit < 0x4000; bit <<= 1) {
		p.events = (short)bit;
		show(event_names((uint32_t)bit), &p, 1, 0);
	}
	GOT(read(fd, in, 10));
}

static void poll_when_idle(int fd)
{
	struct pollfd p = {.fd = fd, .events = ALL};

	show("all", &p, 1, 0);
	p.events = POLLIN;
	show("in", &p, 1, 0);
	p.events = POLLOUT;
	show("out", &p, 1, -1);
	p.events = 0;
	show("nothing", &p, 1, 0);
	p.events = -1;
	show("every bit", &p, 1, 0);
}

static void poll_until_read(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	peer_send(10);
	show("level", &p, 1, 1000);
	show("level", &p, 1, 1000);
	GOT(read(fd, in, 5));
	show("level", &p, 1, 1000);
	GOT(read(fd, in, 5));
	show("empty", &p, 1, 0);
}

static void poll_times_out(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	uint64_t start = now_ms();

	show("wait", &p, 1, 60);
	say("%s", punctual(start, 60));
	start = now_ms();
	CALL(ppoll(&p, 1, &(struct timespec){0, 60000000}, NULL));
	say("%s", punctual(start, 60));
}

static void poll_is_woken(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	peer_send_later(50, 5);
	show("wait", &p, 1, 3000);
	GOT(read(fd, in, 10));
	peer_send_later(50, 5);
	show("wait for ever", &p, 1, -1);
	GOT(read(fd, in, 10));
	peer_send_later(50, 5);
	CALL(ppoll(&p, 1, NULL, NULL));
	say("%s", event_names((uint32_t)p.revents));
	GOT(read(fd, in, 10));
}

static void ppoll_leaves_the_timeout(int fd)
{
	struct timespec t = {0, 30000000};
	struct pollfd p = {.fd = fd, .events = POLLIN};

	CALL(ppoll(&p, 1, &t, NULL));
	say("%ld s, %ld ns", (long)t.tv_sec, t.tv_nsec);
}

static void poll_for_room(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLOUT};

	fill_up(fd);
	show("full", &p, 1, 0);
	show("full", &p, 1, 30);
	peer_receive_later(30, sent);
	show("room", &p, 1, 3000);
	peer_await();
}

static void poll_invalid_descriptors(int fd)
{
	struct pollfd p[4] = {{.fd = -1, .events = POLLIN, .revents = 77},
			      {.fd = 900, .events = POLLIN},
			      {.fd = fd, .events = POLLOUT},
			      {.fd = -7, .events = ALL}};

	CALL(poll(p, 4, 0));
	for (int i = 0; i < 4; i++)
		say("%s", event_names((uint32_t)p[i].revents));
	p[2].events = POLLIN;
	CALL(poll(p, 4, -1));
	say("%s", event_names((uint32_t)p[1].revents));
}

static void poll_closed_descriptor(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	close(fd);
	show("closed", &p, 1, -1);
}

static void poll_one_twice(int fd)
{
	struct pollfd p[3] = {{.fd = fd, .events = POLLIN},
			      {.fd = fd, .events = POLLOUT},
			      {.fd = fd, .events = ALL}};

	peer_send(5);
	await_octets(fd, 5);
	CALL(poll(p, 3, 0));
	for (int i = 0; i < 3; i++)
		say("%s", event_names((uint32_t)p[i].revents));
	GOT(read(fd, in, 10));
}

static void poll_mixed(int fd)
{
	int pipes[2], file = open("/dev/null", O_RDWR | O_CLOEXEC);
	struct pollfd p[4];

	if (pipe2(pipes, O_CLOEXEC))
		give_up("no pipe");
	p[0] = (struct pollfd){.fd = pipes[0], .events = POLLIN};
	p[1] = (struct pollfd){.fd = fd, .events = POLLIN};
	p[2] = (struct pollfd){.fd = pipes[1], .events = POLLOUT};
	p[3] = (struct pollfd){.fd = file, .events = POLLIN | POLLOUT};
	CALL(poll(p, 2, 20));
	CALL(poll(p, 4, 0));
	CALL(write(pipes[1], "x", 1));
	peer_send(5);
	await_octets(fd, 5);
	CALL(poll(p, 4, -1));
	for (int i = 0; i < 4; i++)
		say("%s", event_names((uint32_t)p[i].revents));
	GOT(read(fd, in, 10));
	close(pipes[0]);
	CALL(poll(p, 3, 0));
	for (int i = 0; i < 3; i++)
		say("%s", event_names((uint32_t)p[i].revents));
	close(pipes[1]);
	close(file);
}

static void timer_interrupts_a_poll(int fd)
{
	struct itimerspec soon = {.it_value = {0, 40000000}};
	struct pollfd p[2] = {{.fd = fd, .events = POLLIN}};
	timer_t timer;
	struct sigevent by_signal = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};

	handle(SIGUSR1, count_signal, 0);
	p[1] = (struct pollfd){.fd = fd, .events = POLLPRI};
	timer_create(CLOCK_MONOTONIC, &by_signal, &timer);
	timer_settime(timer, 0, &soon, NULL);
	CALL(poll(p, 2, 3000));
	say("%d signals", handled);
	timer_delete(timer);
}

static void poll_of_nothing(int fd)
{
	uint64_t start = now_ms();

	(void)fd;
	CALL(poll(NULL, 0, 30));
	say("%s", punctual(start, 30));
}

static void poll_many(int fd)
{
	static struct pollfd p[1000];

	for (int i = 0; i < 1000; i++)
		p[i] = (struct pollfd){.fd = i % 2 ? fd : -1, .events = POLLOUT};
	CALL(poll(p, 1000, 0));
	say("%s %s", event_names((uint32_t)p[0].revents), event_names((uint32_t)p[999].revents));
}

static void poll_an_epoll_set(int fd)
{
	int ep = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event e = {.events = EPOLLIN};
	struct pollfd p = {.fd = ep, .events = POLLIN};

	epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
	show("idle", &p, 1, 0);
	peer_send_later(30, 5);
	show("wait", &p, 1, 3000);
	CALL(epoll_wait(ep, &e, 1, 0));
	GOT(read(fd, in, 10));
	show("idle", &p, 1, 0);
	close(ep);
}

static void poll_urgent(int fd)
{
	struct pollfd p = {.fd = fd, .events = ALL};

	peer_send_urgent();
	settle();
	show("urgent", &p, 1, 0);
	p.events = POLLPRI;
	show("urgent", &p, 1, 0);
}

static void poll_connection_halves(int fd)
{
	struct pollfd p = {.fd = fd, .events = ALL};

	CALL(shutdown(fd, SHUT_RD));
	show("reading shut", &p, 1, 0);
	CALL(shutdown(fd, SHUT_WR));
	show("both shut", &p, 1, 0);
	peer_close();
	settle();
	show("closed", &p, 1, 0);
}

static void poll_rdhup_alone(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLRDHUP};

	peer_send(5);
	settle();
	show("data", &p, 1, 0);
	peer_shutdown_later(30, SHUT_WR);
	show("end", &p, 1, 3000);
	GOT(read(fd, in, 10));
}

static void poll_hangup_alone(int fd)
{
	struct pollfd p = {.fd = fd, .events = 0};

	peer_reset_later(40);
	show("reset", &p, 1, 3000);
}

static long poll_forever(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return poll(&p, 1, 3000);
}

static void two_threads_poll(int fd)
{
	struct blocked a, b;

	block_in(&a, poll_forever, fd, "first");
	block_in(&b, poll_forever, fd, "second");
	peer_send(5);
	unblocked(&a, "first");
	unblocked(&b, "second");
	GOT(read(fd, in, 10));
}

const struct test_case poll_cases[] = {
	CASE(poll_each_event),
	CASE(poll_when_idle),
	CASE(poll_until_read),
	CASE(poll_times_out),
	CASE(poll_is_woken),
	CASE(ppoll_leaves_the_timeout),
	CASE(poll_for_room),
	CASE(poll_invalid_descriptors),
	CASE(poll_closed_descriptor),
	CASE(poll_one_twice),
	CASE(poll_mixed),
	CASE(timer_interrupts_a_poll),
	CASE(poll_of_nothing),
	CASE(poll_many),
	CASE(poll_an_epoll_set),
	CASE(poll_urgent),
	CASE(poll_connection_halves),
	CASE(poll_rdhup_alone),
	CASE(poll_hangup_alone),
	CASE(two_threads_poll),
	END_OF_CASES,
};
