/* SPDX-License-Identifier: Apache-2.0 */
/* select() and pselect(). */
#include "semantics.h"

struct sets {
	fd_set r, w, x;
};

static void all_of(struct sets *s, int fd)
{
	FD_ZERO(&s->r);
	FD_SET(fd, &s->r);
	s->w = s->x = s->r;
}

static void show(int fd, const struct sets *s)
{
	say("readable %d, writable %d, exceptional %d", FD_ISSET(fd, &s->r) != 0,
	    FD_ISSET(fd, &s->w) != 0, FD_ISSET(fd, &s->x) != 0);
}

static int now(int fd, struct sets *s)
{
	struct timeval t = {0, 0};

	return select(fd + 1, &s->r, &s->w, &s->x, &t);
}

static void select_when_idle(int fd)
{
	struct sets s;

	all_of(&s, fd);
	CALL(now(fd, &s));
	show(fd, &s);
}

static void select_data(int fd)
{
	struct sets s;

	all_of(&s, fd);
	peer_send(5);
	await_octets(fd, 5);
	CALL(now(fd, &s));
	show(fd, &s);
	GOT(read(fd, in, 10));
}

static void select_waits(int fd)
{
	struct timeval t = {3, 0};
	struct sets s;

	all_of(&s, fd);
	peer_send_later(50, 5);
	CALL(select(fd + 1, &s.r, NULL, &s.x, &t));
	show(fd, &s);
	say("time is left: %d", t.tv_sec == 2 && t.tv_usec > 0);
	GOT(read(fd, in, 10));
}

static void select_times_out(int fd)
{
	struct timeval t = {0, 60000};
	uint64_t start = now_ms();
	struct sets s;

	all_of(&s, fd);
	CALL(select(fd + 1, &s.r, NULL, &s.x, &t));
	say("%s, %ld s %ld us are left", punctual(start, 60), (long)t.tv_sec, (long)t.tv_usec);
	FD_ZERO(&s.w);
	show(fd, &s);
}

static void select_below_number(int fd)
{
	struct timeval t = {0, 0};
	struct sets s;

	all_of(&s, fd);
	CALL(select(fd, &s.r, &s.w, &s.x, &t)); /* fd is not looked at, nor its bit changed */
	show(fd, &s);
	CALL(select(0, NULL, NULL, NULL, &t));
}

static void select_closed(int fd)
{
	struct sets s;

	all_of(&s, fd);
	close(fd);
	CALL(now(fd, &s));
	show(fd, &s);
}

static void select_closed_beside(int fd)
{
	int closed = dup(fd), end = closed + 1;
	struct sets s;

	close(closed);
	all_of(&s, fd);
	FD_SET(closed, &s.r);
	CALL(select(end, &s.r, &s.w, &s.x, NULL));
	show(fd, &s);
}

static void select_end(int fd)
{
	struct sets s;

	all_of(&s, fd);
	peer_close();
	settle();
	CALL(now(fd, &s));
	show(fd, &s);
	CALL(read(fd, in, 1));
}

static void select_full(int fd)
{
	struct sets s;

	fill_up(fd);
	all_of(&s, fd);
	CALL(now(fd, &s));
	show(fd, &s);
	all_of(&s, fd);
	peer_receive_later(30, sent);
	CALL(select(fd + 1, NULL, &s.w, NULL, &(struct timeval){3, 0}));
	peer_await();
}

static void select_urgent(int fd)
{
	struct sets s;

	all_of(&s, fd);
	peer_send_urgent();
	settle();
	CALL(now(fd, &s));
	show(fd, &s);
}

static void select_mixed(int fd)
{
	int p[2];
	struct sets s;

	if (pipe2(p, O_CLOEXEC))
		give_up("no pipe");
	FD_ZERO(&s.r);
	FD_SET(p[0], &s.r);
	FD_SET(fd, &s.r);
	FD_ZERO(&s.w);
	FD_SET(p[1], &s.w);
	FD_SET(fd, &s.w);
	CALL(select((p[1] > fd ? p[1] : fd) + 1, &s.r, &s.w, NULL, NULL));
	say("%d %d %d %d", FD_ISSET(p[0], &s.r) != 0, FD_ISSET(fd, &s.r) != 0,
	    FD_ISSET(p[1], &s.w) != 0, FD_ISSET(fd, &s.w) != 0);
	close(p[0]);
	close(p[1]);
}

static void select_as_sleep(int fd)
{
	uint64_t start = now_ms();
	fd_set none;

	FD_ZERO(&none);
	CALL(select(fd + 1, &none, NULL, NULL, &(struct timeval){0, 30000}));
	say("%s", punctual(start, 30));
}

static void pselect_leaves_the_timeout(int fd)
{
	struct timespec t = {0, 30000000};
	struct sets s;

	all_of(&s, fd);
	CALL(pselect(fd + 1, &s.r, NULL, NULL, &t, NULL));
	say("%ld s %ld ns", (long)t.tv_sec, t.tv_nsec);
}

static void select_with_much_microseconds(int fd)
{
	struct timeval t = {0, 3000000};
	struct sets s;

	all_of(&s, fd);
	CALL(select(fd + 1, &s.r, &s.w, NULL, &t));
	show(fd, &s);
}

const struct test_case select_cases[] = {
	CASE(select_when_idle),
	CASE(select_data),
	CASE(select_waits),
	CASE(select_times_out),
	CASE(select_below_number),
	CASE(select_closed),
	CASE(select_closed_beside),
	CASE(select_end),
	CASE(select_full),
	CASE(select_urgent),
	CASE(select_mixed),
	CASE(select_as_sleep),
	CASE(pselect_leaves_the_timeout),
	CASE(select_with_much_microseconds),
	END_OF_CASES,
};
