/* SPDX-License-Identifier: Apache-2.0 */
/* epoll sets with sockets on the fast path. */
#include "surface.h"

#include "epoll.h"

static int add(int ep, int fd, uint32_t events)
{
	struct epoll_event e = {.events = events, .data.fd = fd};

	return epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
}

static int mod(int ep, int fd, uint32_t events)
{
	struct epoll_event e = {.events = events, .data.fd = fd};

	return epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e);
}

/* The events of fd within `ms`, 0 if none. */
static uint32_t events_of(int ep, int fd, int ms)
{
	struct epoll_event e[8];
	int n = epoll_wait(ep, e, 8, ms);

	CHECK(n >= 0);
	for (int i = 0; i < n; i++)
		if (e[i].data.fd == fd)
			return e[i].events;
	return 0;
}

/* As the kernel has it: what is in the real set? */
static bool in_real_set(int ep, int fd)
{
	struct epoll_event e = {.events = EPOLLIN};
	long r = et_sys6(SYS_epoll_ctl, ep, EPOLL_CTL_ADD, fd, (long)&e, 0, 0);

	if (r == 0)
		et_sys6(SYS_epoll_ctl, ep, EPOLL_CTL_DEL, fd, 0, 0, 0);
	return r == -EEXIST;
}

static void test_level(void)
{
	int fds[2], ep = epoll_create1(0);
	char buf[8];

	tcp_pair(fds);
	CHECK(add(ep, fds[1], EPOLLIN) == 0 && in_real_set(ep, fds[1]));
	promote(fds);
	CHECK(!in_real_set(ep, fds[1]));
	CHECK(events_of(ep, fds[1], 20) == 0);
	CHECK(write(fds[0], "abcdef", 6) == 6);
	CHECK(events_of(ep, fds[1], 1000) == EPOLLIN);
	CHECK(events_of(ep, fds[1], 0) == EPOLLIN);
	CHECK(read(fds[1], buf, 4) == 4);
	CHECK(events_of(ep, fds[1], 0) == EPOLLIN);
	CHECK(read(fds[1], buf, 4) == 2);
	CHECK(events_of(ep, fds[1], 0) == 0);
	CHECK(mod(ep, fds[1], EPOLLIN | EPOLLOUT) == 0);
	CHECK(events_of(ep, fds[1], 0) == EPOLLOUT);
	CHECK(events_of(ep, fds[1], 0) == EPOLLOUT);
	close_pair(fds);
	CHECK(events_of(ep, fds[1], 0) == 0);
	close(ep);
}

static void test_edge(void)
{
	int fds[2], ep = epoll_create1(0);
	char buf[8];

	fast_pair(fds);
	CHECK(add(ep, fds[1], EPOLLIN | EPOLLET) == 0);
	CHECK(events_of(ep, fds[1], 0) == 0);
	CHECK(write(fds[0], "abc", 3) == 3);
	CHECK(events_of(ep, fds[1], 1000) == EPOLLIN);
	CHECK(events_of(ep, fds[1], 5) == 0);
	CHECK(read(fds[1], buf, 1) == 1);
	CHECK(events_of(ep, fds[1], 5) == 0);
	CHECK(write(fds[0], "d", 1) == 1);
	CHECK(events_of(ep, fds[1], 1000) == EPOLLIN);
	/* MOD reports again what is there. */
	CHECK(mod(ep, fds[1], EPOLLIN | EPOLLOUT | EPOLLET) == 0);
	CHECK(events_of(ep, fds[1], 0) == (EPOLLIN | EPOLLOUT));
	CHECK(events_of(ep, fds[1], 0) == 0);
	/* The end is an edge, too, and comes from the real set. */
	CHECK(read(fds[1], buf, 8) == 3);
	CHECK(shutdown(fds[0], SHUT_WR) == 0);
	CHECK(events_of(ep, fds[1], 1000) & EPOLLIN);
	CHECK(mode_of(fds[1]) == ET_MODE_KERNEL && in_real_set(ep, fds[1]));
	CHECK(read(fds[1], buf, 8) == 0);
	close_pair(fds);
	close(ep);
}

static void test_errors(void)
{
	int fds[2], ep = epoll_create1(0);
	struct epoll_event e;

	fast_pair(fds);
	CHECK_ERR(mod(ep, fds[0], EPOLLIN), ENOENT);
	CHECK_ERR(epoll_ctl(ep, EPOLL_CTL_DEL, fds[0], NULL), ENOENT);
	CHECK(add(ep, fds[0], EPOLLIN) == 0);
	CHECK_ERR(add(ep, fds[0], EPOLLIN), EEXIST);
	CHECK(epoll_ctl(ep, EPOLL_CTL_DEL, fds[0], NULL) == 0);
	CHECK_ERR(epoll_ctl(ep, EPOLL_CTL_DEL, fds[0], NULL), ENOENT);
	CHECK_ERR(epoll_wait(ep, &e, 0, 0), EINVAL);
	CHECK_ERR(add(1000, fds[0], EPOLLIN), EBADF);
	close_pair(fds);
	close(ep);
}

/* What only the kernel does. */
static void test_kernel_only(void)
{
	int fds[2], ep = epoll_create1(0), outer = epoll_create1(0);

	fast_pair(fds);
	CHECK(add(ep, fds[0], EPOLLIN | EPOLLONESHOT) == 0);
	CHECK(mode_of(fds[0]) == ET_MODE_KERNEL);
	CHECK(write(fds[1], "a", 1) == 1);
	CHECK(events_of(ep, fds[0], 1000) == EPOLLIN);
	CHECK(events_of(ep, fds[0], 5) == 0);
	/* A set inside a set: the outer one must see it. */
	CHECK(add(ep, fds[1], EPOLLIN) == 0);
	CHECK(mode_of(fds[1]) == ET_MODE_FAST);
	CHECK(add(outer, ep, EPOLLIN) == 0);
	CHECK(mode_of(fds[1]) == ET_MODE_KERNEL);
	CHECK(write(fds[0], "a", 1) == 1);
	CHECK(events_of(outer, ep, 1000) == EPOLLIN);
	close_pair(fds);
	close(ep);
	close(outer);
}

static void test_fair(void)
{
	int fds[3][2], ep = epoll_create1(0), pipes[2], seen[3] = {0}, kernel = 0;
	struct epoll_event e;

	CHECK(pipe(pipes) == 0 && add(ep, pipes[0], EPOLLIN) == 0);
	CHECK(write(pipes[1], "x", 1) == 1);
	for (int i = 0; i < 3; i++) {
		fast_pair(fds[i]);
		CHECK(add(ep, fds[i][1], EPOLLIN) == 0 && write(fds[i][0], "x", 1) == 1);
	}
	usleep(1000);
	for (int i = 0; i < 600; i++) {
		CHECK(epoll_wait(ep, &e, 1, 1000) == 1);
		for (int k = 0; k < 3; k++)
			seen[k] += e.data.fd == fds[k][1];
		kernel += e.data.fd == pipes[0];
	}
	CHECK(kernel >= 5);
	for (int k = 0; k < 3; k++)
		CHECK(seen[k] > 100);
	for (int i = 0; i < 3; i++)
		close_pair(fds[i]);
	close(pipes[0]);
	close(pipes[1]);
	close(ep);
}

static void test_timeout(void)
{
	int fds[2], ep = epoll_create1(0);
	struct timespec t = {.tv_nsec = 3000000};
	struct epoll_event e;
	uint64_t start;

	fast_pair(fds);
	CHECK(add(ep, fds[0], EPOLLIN) == 0);
	start = et_now_ns();
	CHECK(epoll_wait(ep, &e, 1, 20) == 0);
	CHECK(et_now_ns() - start >= 20000000);
	start = et_now_ns();
	CHECK(epoll_pwait2(ep, &e, 1, &t, NULL) == 0);
	CHECK(et_now_ns() - start >= 3000000);
	close_pair(fds);
	close(ep);
}

static void *write_later(void *arg)
{
	usleep(20000);
	CHECK(write(*(int *)arg, "x", 1) == 1);
	return NULL;
}

/* A thread that sleeps is woken by what another one receives. */
static void test_sleep(void)
{
	int fds[2], ep = epoll_create1(0);
	pthread_t thread;

	fast_pair(fds);
	CHECK(add(ep, fds[1], EPOLLIN) == 0);
	CHECK(pthread_create(&thread, NULL, write_later, &fds[0]) == 0);
	CHECK(events_of(ep, fds[1], 5000) == EPOLLIN);
	pthread_join(thread, NULL);
	close_pair(fds);
	close(ep);
}

/* The set goes first, the sockets live on. */
static void test_close_set(void)
{
	int fds[2], ep = epoll_create1(0), again;
	char c;

	fast_pair(fds);
	CHECK(add(ep, fds[1], EPOLLIN) == 0);
	CHECK(write(fds[0], "x", 1) == 1);
	CHECK(close(ep) == 0);
	again = epoll_create1(0);
	CHECK(add(again, fds[1], EPOLLIN) == 0);
	CHECK(events_of(again, fds[1], 1000) == EPOLLIN);
	CHECK(read(fds[1], &c, 1) == 1);
	close_pair(fds);
	close(again);
}

/* Two sets, and a third that is too many. */
static void test_many_sets(void)
{
	int fds[2], ep[3];

	fast_pair(fds);
	for (int i = 0; i < 3; i++)
		ep[i] = epoll_create1(0);
	CHECK(add(ep[0], fds[1], EPOLLIN) == 0 && add(ep[1], fds[1], EPOLLIN) == 0);
	CHECK(write(fds[0], "x", 1) == 1);
	CHECK(events_of(ep[0], fds[1], 1000) == EPOLLIN);
	CHECK(events_of(ep[1], fds[1], 1000) == EPOLLIN);
	CHECK(mode_of(fds[1]) == ET_MODE_FAST);
	CHECK(add(ep[2], fds[1], EPOLLIN) == 0);
	CHECK(mode_of(fds[1]) == ET_MODE_KERNEL);
	for (int i = 0; i < 3; i++)
		CHECK(events_of(ep[i], fds[1], 1000) == EPOLLIN);
	close_pair(fds);
	for (int i = 0; i < 3; i++)
		close(ep[i]);
}

int main(void)
{
	surface_init();
	test_level();
	test_edge();
	test_errors();
	test_kernel_only();
	test_fair();
	test_timeout();
	test_sleep();
	test_close_set();
	test_many_sets();
	puts("ok");
	return 0;
}
