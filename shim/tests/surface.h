/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For tests of the surface: the program under test is the test itself. Its
 * read(), epoll_wait() and so on are the library's, over the fake transport.
 */
#ifndef ET_TEST_SURFACE_H
#define ET_TEST_SURFACE_H

#include "fake_transport.c"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <unistd.h>

#include "config.h"
#include "intercept.h"
#include "process.h"
#include "sock.h"

#define CHECK(x)                                                                                   \
	do {                                                                                       \
		if (!(x)) {                                                                        \
			fprintf(stderr, "%s:%d: %s (errno %d)\n", __FILE__, __LINE__, #x, errno);  \
			exit(1);                                                                   \
		}                                                                                  \
	} while (0)
#define CHECK_ERR(x, err) CHECK((errno = 0, (x) == -1 && errno == (err)))

/* The sanitizer's library has read() and poll(), too. The linker prefers ours
 * once it has our files, so refer to what only they have. */
int __poll_chk(struct pollfd *fds, nfds_t count, int timeout, size_t room);
static void *const our_files[]
	__attribute__((used)) = {(void *)splice, (void *)__poll_chk, (void *)setsockopt,
				 (void *)close_range, (void *)sendfile};

static inline void surface_init(void)
{
	alarm(50);
	et_resolve();
	et_config_read();
	et_process_init();
	et_policy.spin_us = 20;
	atomic_store(&et_page.watching, true);
	fake.switch_us = 0;
}

/* Two ends of a TCP connection over the loopback device. */
static inline void tcp_pair(int fds[2])
{
	struct sockaddr_in a = {.sin_family = AF_INET};
	socklen_t n = sizeof(a);
	int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	CHECK(bind(l, (struct sockaddr *)&a, n) == 0 && listen(l, 1) == 0);
	CHECK(getsockname(l, (struct sockaddr *)&a, &n) == 0);
	fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP);
	CHECK(connect(fds[0], (struct sockaddr *)&a, n) == 0);
	fds[1] = accept4(l, NULL, NULL, SOCK_CLOEXEC);
	CHECK(fds[1] >= 0 && close(l) == 0);
	for (int i = 0; i < 2; i++)
		CHECK(setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) == 0);
}

static inline enum et_mode mode_of(int fd)
{
	struct et_sock *s = et_sock_enter(fd);
	enum et_mode mode;

	CHECK(s);
	mode = et_sock_mode(s);
	et_sock_leave(s);
	return mode;
}

/* One octet there and back. */
static inline void exchange(int a, int b)
{
	char c = 'x';
	struct pollfd p = {.fd = b, .events = POLLIN};

	CHECK(write(a, &c, 1) == 1);
	CHECK(poll(&p, 1, 2000) == 1 && read(b, &c, 1) == 1);
	CHECK(write(b, &c, 1) == 1);
	p.fd = a;
	CHECK(poll(&p, 1, 2000) == 1 && read(a, &c, 1) == 1);
}

/* Exchange until both are on the fast path. */
static inline void promote(const int fds[2])
{
	for (int i = 0; i < 1000; i++) {
		if (mode_of(fds[0]) == ET_MODE_FAST && mode_of(fds[1]) == ET_MODE_FAST)
			return;
		exchange(fds[0], fds[1]);
	}
	CHECK(!"not promoted");
}

static inline void fast_pair(int fds[2])
{
	tcp_pair(fds);
	promote(fds);
}

static inline int set_nonblock(int fd)
{
	return fcntl(fd, F_SETFL, O_NONBLOCK);
}

static inline void close_pair(const int fds[2])
{
	CHECK(close(fds[0]) == 0 && close(fds[1]) == 0);
}

#endif
