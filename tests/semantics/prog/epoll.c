/* SPDX-License-Identifier: Apache-2.0 */
/* Epoll sets. */
#include "semantics.h"

static int new_set(void)
{
	int ep = epoll_create1(EPOLL_CLOEXEC);

	if (ep < 0)
		give_up("no epoll set");
	return ep;
}

static int add(int ep, int fd, uint32_t events)
{
	struct epoll_event e = {.events = events, .data.u64 = 0x1234567800000000u};

	return epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
}

static int mod(int ep, int fd, uint32_t events)
{
	struct epoll_event e = {.events = events, .data.u64 = 0x8765432100000000u};

	return epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e);
}

static int del(int ep, int fd)
{
	return epoll_ctl(ep, EPOLL_CTL_DEL, fd, NULL);
}

/* What a set says about its one descriptor. */
static void events(int ep, int timeout)
{
	struct epoll_event e[4];
	int n = epoll_wait(ep, e, 4, timeout);

	if (n < 0)
		say("events: %s", errno_name(errno));
	else if (n == 0)
		say("events: none");
	for (int i = 0; i < n; i++)
		say("events: %s of %#lx", event_names(e[i].events), (unsigned long)e[i].data.u64);
}

static void level_triggered(int fd)
{
	int ep = new_set();

	CALL(add(ep, fd, EPOLLIN));
	events(ep, 0);
	peer_send(10);
	events(ep, 2000);
	events(ep, 2000);
	GOT(read(fd, in, 5));
	events(ep, 2000);
	GOT(read(fd, in, 5));
	events(ep, 0);
	events(ep, 20);
	close(ep);
}

static void edge_triggered(int fd)
{
	int ep = new_set();

	CALL(add(ep, fd, EPOLLIN | EPOLLET));
	events(ep, 0);
	peer_send(10);
	events(ep, 2000);
	events(ep, 20);
	GOT(read(fd, in, 5));
	events(ep, 20);
	peer_send(10);
	events(ep, 2000);
	events(ep, 20);
	GOT(read(fd, in, 20));
	events(ep, 20);
	close(ep);
}

static void edge_of_room(int fd)
{
	struct epoll_event e;
	int ep = new_set();

	CALL(add(ep, fd, EPOLLOUT | EPOLLET));
	events(ep, 0);
	events(ep, 20);
	fill_up(fd);
	epoll_wait(ep, &e, 1, 0); /* there was room now and then while it filled up */
	events(ep, 20);
	peer_receive_later(20, sent);
	events(ep, 3000);
	peer_await();
	events(ep, 20);
	close(ep);
}

static void edges_of_both(int fd)
{
	int ep = new_set();

	CALL(add(ep, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET));
	events(ep, 0);
	events(ep, 0);
	peer_send(10);
	events(ep, 2000);
	GOT(read(fd, in, 10));
	SENT(write(fd, OUT, 10));
	peer_receive(10);
	settle();
	events(ep, 0);
	peer_shutdown(SHUT_WR);
	settle();
	events(ep, 2000);
	events(ep, 0);
	close(ep);
}

static void edge_when_added(int fd)
{
	int ep = new_set();

	peer_send(5);
	await_octets(fd, 5);
	CALL(add(ep, fd, EPOLLIN | EPOLLET));
	events(ep, 0);
	events(ep, 0);
	CALL(mod(ep, fd, EPOLLIN | EPOLLET));
	events(ep, 0);
	events(ep, 0);
	GOT(read(fd, in, 10));
	CALL(mod(ep, fd, EPOLLIN | EPOLLET));
	events(ep, 0);
	close(ep);
}

static void oneshot(int fd)
{
	int ep = new_set();

	CALL(add(ep, fd, EPOLLIN | EPOLLONESHOT));
	peer_send(5);
	events(ep, 2000);
	events(ep, 20);
	peer_send(5);
	await_octets(fd, 10);
	events(ep, 20);
	CALL(mod(ep, fd, EPOLLIN | EPOLLONESHOT));
	events(ep, 2000);
	events(ep, 20);
	GOT(read(fd, in, 10));
	close(ep);
}

static void oneshot_and_hangup(int fd)
{
	int ep = new_set();

	CALL(add(ep, fd, EPOLLIN | EPOLLONESHOT));
	peer_send(5);
	events(ep, 2000);
	peer_reset();
	settle();
	events(ep, 20);
	CALL(mod(ep, fd, EPOLLIN));
	events(ep, 20);
	close(ep);
}

static void exclusive(int fd)
{
	int ep = new_set();

	CALL(add(ep, fd, EPOLLIN | EPOLLEXCLUSIVE));
	peer_send(5);
	events(ep, 2000);
	CALL(mod(ep, fd, EPOLLIN));
	CALL(mod(ep, fd, EPOLLIN | EPOLLEXCLUSIVE));
	GOT(read(fd, in, 10));
	CALL(del(ep, fd));
	CALL(add(ep, fd, EPOLLIN | EPOLLONESHOT | EPOLLEXCLUSIVE));
	CALL(add(ep, fd, EPOLLIN));
	CALL(mod(ep, fd, EPOLLIN | EPOLLEXCLUSIVE));
	close(ep);
}

static void wakeup_flag(int fd)
{
	int ep = new_set();

	CALL(add(ep, fd, EPOLLIN | EPOLLWAKEUP));
	peer_send(5);
	events(ep, 2000);
	GOT(read(fd, in, 10));
	close(ep);
}

static void events_after_reset(int fd)
{
	int ep = new_set();

	CALL(add(ep, fd, 0));
	events(ep, 0);
	peer_reset_later(30);
	events(ep, 2000);
	events(ep, 0);
	CALL(mod(ep, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI));
	events(ep, 0);
	close(ep);
}

static void events_after_reset_by_edge(int fd)
{
	int ep = new_set();

	CALL(add(ep, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET));
	events(ep, 0);
	peer_reset_later(30);
	events(ep, 2000);
	events(ep, 0);
	CALL(read(fd, in, 10));
	close(ep);
}

static void end_wakes_a_set(int fd)
{
	int ep = new_set();

	CALL(add(ep, fd, EPOLLIN));
	peer_close_later(30);
	events(ep, 2000);
	events(ep, 2000);
	CALL(read(fd, in, 10));
	close(ep);
}

static void end_with_rdhup(int fd)
{
	int ep = new_set();

	CALL(add(ep, fd, EPOLLIN | EPOLLRDHUP));
	peer_send(5);
	peer_shutdown(SHUT_WR);
	settle();
	events(ep, 2000);
	GOT(read(fd, in, 10));
	events(ep, 2000);
	CALL(shutdown(fd, SHUT_WR));
	events(ep, 2000);
	close(ep);
}

static void modified(int fd)
{
	int ep = new_set();

	peer_send(5);
	await_octets(fd, 5);
	CALL(add(ep, fd, EPOLLIN));
	events(ep, 0);
	CALL(mod(ep, fd, EPOLLOUT));
	events(ep, 0);
	CALL(mod(ep, fd, EPOLLIN | EPOLLOUT));
	events(ep, 0);
	CALL(mod(ep, fd, 0));
	events(ep, 0);
	CALL(mod(ep, fd, EPOLLIN));
	events(ep, 0);
	GOT(read(fd, in, 10));
	close(ep);
}

static void modified_again_and_again(int fd)
{
	struct epoll_event e = {.events = EPOLLIN | EPOLLET};
	int ep = new_set();

	epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
	peer_send(5);
	events(ep, 2000);
	for (int i = 0; i < 3; i++) {
		CALL(mod(ep, fd, EPOLLIN | EPOLLET));
		events(ep, 0);
		events(ep, 0);
	}
	GOT(read(fd, in, 10));
	close(ep);
}

static void deleted(int fd)
{
	int ep = new_set();

	CALL(add(ep, fd, EPOLLIN));
	peer_send(5);
	await_octets(fd, 5);
	CALL(del(ep, fd));
	events(ep, 20);
	CALL(del(ep, fd));
	CALL(mod(ep, fd, EPOLLIN));
	CALL(add(ep, fd, EPOLLIN));
	events(ep, 2000);
	GOT(read(fd, in, 10));
	close(ep);
}

static void deleted_with_a_bad_event(int fd)
{
	int ep = new_set();

	CALL(add(ep, fd, EPOLLIN));
	CALL(epoll_ctl(ep, EPOLL_CTL_DEL, fd, (struct epoll_event *)8));
	CALL(del(ep, fd));
	close(ep);
}

static void closed_without_delete(int fd)
{
	int ep = new_set();

	CALL(add(ep, fd, EPOLLIN | EPOLLOUT));
	events(ep, 0);
	CALL(close(fd));
	events(ep, 20);
	CALL(del(ep, fd));
	close(ep);
}

static void closed_while_dup_lives(int fd)
{
	int ep = new_set(), copy = fcntl(fd, F_DUPFD_CLOEXEC, 100);

	CALL(add(ep, fd, EPOLLIN));
	CALL(close(fd));
	peer_send(5);
	settle();
	events(ep, 2000); /* still, and nobody can delete it */
	CALL(del(ep, fd));
	GOT(read(copy, in, 10));
	events(ep, 20);
	close(copy);
	settle();
	events(ep, 0);
	close(ep);
}

static void dup_added_too(int fd)
{
	int ep = new_set(), copy = fcntl(fd, F_DUPFD_CLOEXEC, 100);

	CALL(add(ep, fd, EPOLLIN));
	CALL(add(ep, copy, EPOLLIN));
	CALL(add(ep, copy, EPOLLIN));
	peer_send(5);
	await_octets(fd, 5);
	events(ep, 2000);
	CALL(del(ep, copy));
	events(ep, 2000);
	GOT(read(copy, in, 10));
	close(copy);
	close(ep);
}

static void in_two_sets(int fd)
{
	int a = new_set(), b = new_set();

	CALL(add(a, fd, EPOLLIN));
	CALL(add(b, fd, EPOLLIN | EPOLLET));
	peer_send(5);
	await_octets(fd, 5);
	events(a, 2000);
	events(b, 2000);
	events(a, 2000);
	events(b, 20);
	CALL(del(a, fd));
	peer_send(5);
	await_octets(fd, 10);
	events(a, 20);
	events(b, 2000);
	GOT(read(fd, in, 10));
	close(a);
	close(b);
}

static void in_four_sets(int fd)
{
	int set[4];

	for (int i = 0; i < 4; i++) {
		set[i] = new_set();
		CALL(add(set[i], fd, EPOLLIN));
	}
	peer_send(5);
	for (int i = 0; i < 4; i++)
		events(set[i], 2000);
	GOT(read(fd, in, 10));
	for (int i = 0; i < 4; i++) {
		events(set[i], 0);
		close(set[i]);
	}
}

static void set_closed(int fd)
{
	int ep = new_set();

	CALL(add(ep, fd, EPOLLIN));
	CALL(close(ep));
	peer_send(5);
	GOT(read(fd, in, 10));
	ep = new_set();
	CALL(add(ep, fd, EPOLLIN));
	peer_send(5);
	events(ep, 2000);
	GOT(read(fd, in, 10));
	close(ep);
}

static void nested(int fd)
{
	int outer = new_set(), inner = new_set();

	CALL(add(inner, fd, EPOLLIN));
	CALL(add(outer, inner, EPOLLIN));
	events(outer, 0);
	peer_send_later(30, 5);
	events(outer, 2000);
	events(inner, 0);
	GOT(read(fd, in, 10));
	events(outer, 0);
	close(inner);
	close(outer);
}

static void nested_first(int fd)
{
	int outer = new_set(), inner = new_set();

	CALL(add(outer, inner, EPOLLIN | EPOLLET));
	CALL(add(inner, fd, EPOLLIN));
	peer_send_later(30, 5);
	events(outer, 2000);
	events(inner, 0);
	GOT(read(fd, in, 10));
	CALL(epoll_ctl(inner, EPOLL_CTL_ADD, outer, &(struct epoll_event){.events = EPOLLIN}));
	close(inner);
	close(outer);
}

static void mixed_with_a_pipe(int fd)
{
	int ep = new_set(), p[2];
	struct epoll_event e[4];
	int n;

	if (pipe2(p, O_CLOEXEC))
		give_up("no pipe");
	CALL(add(ep, fd, EPOLLIN));
	CALL(add(ep, p[0], EPOLLIN));
	events(ep, 0);
	CALL(write(p[1], "x", 1));
	events(ep, 2000);
	peer_send(5);
	await_octets(fd, 5);
	n = 0;
	for (int i = 0; i < 10 && n < 2; i++)
		n = epoll_wait(ep, e, 4, 100);
	say("%d ready", n);
	GOT(read(fd, in, 10));
	events(ep, 0);
	close(p[0]);
	close(p[1]);
	close(ep);
}

static void one_at_a_time(int fd)
{
	int ep = new_set(), p[2], saw[2] = {0, 0};
	struct epoll_event e;

	if (pipe2(p, O_CLOEXEC))
		give_up("no pipe");
	CALL(write(p[1], "x", 1));
	peer_send(5);
	await_octets(fd, 5);
	epoll_ctl(ep, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN, .data.u32 = 0});
	epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &(struct epoll_event){.events = EPOLLIN, .data.u32 = 1});
	for (int i = 0; i < 8; i++)
		if (epoll_wait(ep, &e, 1, 100) == 1)
			saw[e.data.u32]++;
	say("both come: %d", saw[0] && saw[1]);
	GOT(read(fd, in, 10));
	close(p[0]);
	close(p[1]);
	close(ep);
}

static void turns_are_fair(int fd)
{
	int ep = new_set(), extra[3], saw[4] = {0}, all = 0;
	struct epoll_event e;

	for (int i = 0; i < 3; i++) {
		extra[i] = fcntl(fd, F_DUPFD_CLOEXEC, 50);
		epoll_ctl(ep, EPOLL_CTL_ADD, extra[i],
			  &(struct epoll_event){.events = EPOLLOUT, .data.u32 = (uint32_t)i});
	}
	epoll_ctl(ep, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLOUT, .data.u32 = 3});
	for (int i = 0; i < 8; i++)
		if (epoll_wait(ep, &e, 1, 100) == 1)
			saw[e.data.u32]++;
	for (int i = 0; i < 4; i++)
		all += saw[i] == 2;
	say("%d come twice in eight turns", all);
	for (int i = 0; i < 3; i++)
		close(extra[i]);
	close(ep);
}

static void waits_and_times_out(int fd)
{
	int ep = new_set();
	uint64_t start = now_ms();
	struct epoll_event e;

	CALL(add(ep, fd, EPOLLIN));
	CALL(epoll_wait(ep, &e, 1, 60));
	say("%s", punctual(start, 60));
	start = now_ms();
	CALL(epoll_pwait2(ep, &e, 1, &(struct timespec){0, 60000000}, NULL));
	say("%s", punctual(start, 60));
	peer_send_later(30, 5);
	CALL(epoll_wait(ep, &e, 1, -1));
	GOT(read(fd, in, 10));
	peer_send_later(30, 5);
	CALL(epoll_pwait2(ep, &e, 1, NULL, NULL));
	GOT(read(fd, in, 10));
	close(ep);
}

static long wait_in_set(int ep)
{
	struct epoll_event e;

	return epoll_wait(ep, &e, 1, 3000);
}

static void added_while_waiting(int fd)
{
	int ep = new_set();
	struct blocked b;

	peer_send(5);
	await_octets(fd, 5);
	block_in(&b, wait_in_set, ep, "epoll_wait");
	CALL(add(ep, fd, EPOLLIN));
	unblocked(&b, "epoll_wait");
	GOT(read(fd, in, 10));
	close(ep);
}

static void modified_while_another_waits(int fd)
{
	int ep = new_set();
	struct blocked b;

	CALL(add(ep, fd, EPOLLIN));
	block_in(&b, wait_in_set, ep, "epoll_wait");
	CALL(mod(ep, fd, EPOLLOUT));
	unblocked(&b, "epoll_wait");
	close(ep);
}

static void edge_wakes_one_thread(int fd)
{
	int ep = new_set();
	struct blocked b, c;

	CALL(add(ep, fd, EPOLLIN | EPOLLET));
	block_in(&b, wait_in_set, ep, "first");
	block_in(&c, wait_in_set, ep, "second");
	peer_send(5);
	for (int i = 0; i < 1000 && !b.done && !c.done; i++)
		sleep_ms(1);
	sleep_ms(30);
	say("%d returned", b.done + c.done);
	peer_send(5);
	for (int i = 0; i < 1000 && !(b.done && c.done); i++)
		sleep_ms(1);
	say("%d returned", b.done + c.done);
	pthread_join(b.thread, NULL);
	pthread_join(c.thread, NULL);
	GOT(read(fd, in, 10));
	close(ep);
}

static void maximum_is_one_above(int fd)
{
	int ep = new_set();
	struct epoll_event e[3];

	memset(e, 0x5a, sizeof(e));
	CALL(add(ep, fd, EPOLLOUT));
	CALL(epoll_wait(ep, e, 1, 0));
	say("next is untouched: %d", e[1].events == 0x5a5a5a5a);
	CALL(epoll_wait(ep, e, 100, 0));
	close(ep);
}

static void set_readiness_by_poll(int fd)
{
	int ep = new_set();
	struct pollfd p = {.fd = ep, .events = POLLIN | POLLOUT};

	CALL(add(ep, fd, EPOLLIN));
	CALL(poll(&p, 1, 0));
	peer_send(5);
	await_octets(fd, 5);
	CALL(poll(&p, 1, 1000));
	say("%s", event_names((uint32_t)p.revents));
	events(ep, 0);
	GOT(read(fd, in, 10));
	close(ep);
}

const struct test_case epoll_cases[] = {
	CASE(level_triggered),
	CASE(edge_triggered),
	CASE(edge_of_room),
	CASE(edges_of_both),
	CASE(edge_when_added),
	CASE(oneshot),
	CASE(oneshot_and_hangup),
	CASE(exclusive),
	CASE(wakeup_flag),
	CASE(events_after_reset),
	CASE(events_after_reset_by_edge),
	CASE(end_wakes_a_set),
	CASE(end_with_rdhup),
	CASE(modified),
	CASE(modified_again_and_again),
	CASE(deleted),
	CASE(deleted_with_a_bad_event),
	CASE(closed_without_delete),
	CASE(closed_while_dup_lives),
	CASE(dup_added_too),
	CASE(in_two_sets),
	CASE(in_four_sets),
	CASE(set_closed),
	CASE(nested),
	CASE(nested_first),
	CASE(mixed_with_a_pipe),
	CASE(one_at_a_time),
	CASE(turns_are_fair),
	CASE(waits_and_times_out),
	CASE(added_while_waiting),
	CASE(modified_while_another_waits),
	CASE(edge_wakes_one_thread),
	CASE(maximum_is_one_above),
	CASE(set_readiness_by_poll),
	END_OF_CASES,
};
