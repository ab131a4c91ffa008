/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bad arguments. Afterwards the connection must work, since a program that
 * survives its mistake goes on.
 */
#include "semantics.h"

#include <sys/mman.h>

/* No memory at any of these. */
#define NOWHERE ((void *)8)
#define KERNEL_SPACE ((void *)0xffff888000000000)

static void *unmapped(void)
{
	char *p = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	munmap(p + 4096, 2 * 4096);
	return p + 4096;
}

static void still_works(int fd)
{
	SENT(write(fd, OUT, 5));
	peer_receive(5);
	peer_send(5);
	await_octets(fd, 5);
	GOT(read(fd, in, 100));
}

static void read_to_null(int fd)
{
	peer_send(5);
	await_octets(fd, 5);
	CALL(read(fd, NULL, 5));
	CALL(recv(fd, NULL, 5, 0));
	CALL(recv(fd, NOWHERE, 5, MSG_PEEK));
	CALL(recvfrom(fd, KERNEL_SPACE, 5, 0, NULL, NULL));
	GOT(read(fd, in, 5));
	still_works(fd);
}

static void read_to_null_when_empty(int fd)
{
	CALL(recv(fd, NULL, 5, MSG_DONTWAIT));
	still_works(fd);
}

static void write_from_null(int fd)
{
	CALL(write(fd, NULL, 5));
	CALL(send(fd, NULL, 5, 0));
	CALL(send(fd, NOWHERE, 5, MSG_DONTWAIT));
	CALL(sendto(fd, KERNEL_SPACE, 5, 0, NULL, 0));
	still_works(fd);
}

static void null_in_vector(int fd)
{
	struct iovec v[2] = {{OUT, 3}, {NULL, 5}};

	CALL(writev(fd, v + 1, 1));
	peer_send(5);
	await_octets(fd, 5);
	v[0].iov_base = NOWHERE;
	CALL(readv(fd, v, 2));
	GOT(read(fd, in, 5));
	still_works(fd);
}

static void bad_vector(int fd)
{
	CALL(writev(fd, NULL, 2));
	CALL(readv(fd, NULL, 2));
	CALL(writev(fd, NOWHERE, 1));
	CALL(readv(fd, KERNEL_SPACE, 1));
	still_works(fd);
}

static void bad_message(int fd)
{
	struct msghdr m = {.msg_iov = NULL, .msg_iovlen = 2};

	CALL(sendmsg(fd, NULL, 0));
	CALL(recvmsg(fd, NULL, MSG_DONTWAIT));
	CALL(sendmsg(fd, NOWHERE, 0));
	CALL(recvmsg(fd, NOWHERE, MSG_DONTWAIT));
	CALL(sendmsg(fd, &m, 0));
	CALL(recvmsg(fd, &m, MSG_DONTWAIT));
	still_works(fd);
}

static void unmapped_memory(int fd)
{
	CALL(write(fd, unmapped(), 5));
	peer_send(5);
	await_octets(fd, 5);
	CALL(read(fd, unmapped(), 5));
	GOT(read(fd, in, 5));
	still_works(fd);
}

static void read_only_memory(int fd)
{
	void *p = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	peer_send(5);
	await_octets(fd, 5);
	CALL(read(fd, p, 5));
	GOT(read(fd, in, 5));
	munmap(p, 4096);
}

static void bad_options(int fd)
{
	int value = 1;
	socklen_t n = sizeof(value);

	CALL(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, NULL, sizeof(int)));
	CALL(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &value, 1));
	CALL(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, NOWHERE, sizeof(int)));
	CALL(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &value, 0));
	CALL(setsockopt(fd, IPPROTO_TCP, 9999, &value, sizeof(value)));
	CALL(setsockopt(fd, SOL_SOCKET, 9999, &value, sizeof(value)));
	CALL(setsockopt(fd, 9999, 1, &value, sizeof(value)));
	CALL(getsockopt(fd, SOL_SOCKET, SO_ERROR, NULL, &n));
	CALL(getsockopt(fd, SOL_SOCKET, SO_ERROR, &value, NULL));
	CALL(getsockopt(fd, IPPROTO_TCP, 9999, &value, &n));
	CALL(getsockopt(fd, SOL_SOCKET, 9999, &value, &n));
	CALL(getsockopt(fd, 9999, 1, &value, &n));
	still_works(fd);
}

static void bad_option_pointers(int fd)
{
	int value = 1;
	socklen_t n = sizeof(value), none = 0, negative = (socklen_t)-1;

	CALL(getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, NULL, &n));
	CALL(getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &value, NULL));
	CALL(getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &value, NOWHERE));
	CALL(getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, NOWHERE, &n));
	CALL(getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &value, &none));
	CALL(getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &value, &negative));
	CALL(getsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &value, NOWHERE));
	CALL(getsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &value, &negative));
	still_works(fd);
}

static void bad_ioctls(int fd)
{
	CALL(ioctl(fd, FIONREAD, NULL));
	CALL(ioctl(fd, FIONREAD, NOWHERE));
	CALL(ioctl(fd, TIOCOUTQ, KERNEL_SPACE));
	CALL(ioctl(fd, FIONBIO, NULL));
	CALL(ioctl(fd, 0x12345678, NULL));
	still_works(fd);
}

static void bad_poll(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	CALL(poll(NULL, 1, 0));
	CALL(poll(NOWHERE, 1, 0));
	CALL(poll(&p, (nfds_t)-1, 0));
	CALL(ppoll(&p, 1, &(struct timespec){-1, 0}, NULL));
	CALL(ppoll(&p, 1, &(struct timespec){0, 1000000000}, NULL));
	still_works(fd);
}

static void bad_select(int fd)
{
	fd_set set;

	FD_ZERO(&set);
	FD_SET(fd, &set);
	CALL(select(-1, &set, NULL, NULL, &(struct timeval){0, 0}));
	CALL(select(fd + 1, NOWHERE, NULL, NULL, &(struct timeval){0, 0}));
	CALL(select(fd + 1, &set, NULL, NULL, &(struct timeval){-1, 0}));
	CALL(select(fd + 1, &set, NULL, NULL, &(struct timeval){0, -1}));
	CALL(pselect(fd + 1, &set, NULL, NULL, &(struct timespec){0, -1}, NULL));
	still_works(fd);
}

static void bad_epoll_arguments(int fd)
{
	int ep = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event e = {.events = EPOLLIN};

	CALL(epoll_ctl(ep, EPOLL_CTL_ADD, fd, NULL));
	CALL(epoll_ctl(ep, EPOLL_CTL_ADD, fd, NOWHERE));
	CALL(epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e));
	CALL(epoll_ctl(ep, EPOLL_CTL_DEL, fd, NULL));
	CALL(epoll_ctl(ep, 77, fd, &e));
	CALL(epoll_ctl(fd, EPOLL_CTL_ADD, ep, &e));
	CALL(epoll_ctl(fd, EPOLL_CTL_ADD, fd, &e));
	CALL(epoll_ctl(ep, EPOLL_CTL_ADD, ep, &e));
	CALL(epoll_ctl(-1, EPOLL_CTL_ADD, fd, &e));
	CALL(epoll_ctl(ep, EPOLL_CTL_ADD, -1, &e));
	CALL(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e));
	CALL(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e));
	CALL(epoll_ctl(ep, EPOLL_CTL_MOD, fd, NOWHERE));
	CALL(epoll_wait(ep, &e, 0, 0));
	CALL(epoll_wait(ep, &e, -1, 0));
	CALL(epoll_wait(fd, &e, 1, 0));
	CALL(epoll_wait(-1, &e, 1, 0));
	CALL(epoll_create1(77));
	CALL(epoll_create(0));
	CALL(epoll_create(-1));
	still_works(fd);
	close(ep);
}

static void epoll_wait_to_nowhere(int fd)
{
	int ep = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event e = {.events = EPOLLOUT};

	CALL(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e));
	CALL(epoll_wait(ep, NULL, 1, 0));
	CALL(epoll_wait(ep, NOWHERE, 1, 0));
	CALL(epoll_wait(ep, &e, 1, 0));
	still_works(fd);
	close(ep);
}

static void bad_epoll_pwait2(int fd)
{
	int ep = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event e = {.events = EPOLLIN};

	CALL(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e));
	CALL(epoll_pwait2(ep, &e, 1, &(struct timespec){0, -1}, NULL));
	CALL(epoll_pwait2(ep, &e, 1, &(struct timespec){-1, 0}, NULL));
	CALL(epoll_pwait2(ep, &e, 1, &(struct timespec){0, 0}, NULL));
	close(ep);
}

static void bad_descriptors(int fd)
{
	CALL(read(-1, in, 1));
	CALL(write(-1, in, 1));
	CALL(recv(-1, in, 1, 0));
	CALL(send(-1, in, 1, 0));
	CALL(close(-1));
	CALL(shutdown(-1, SHUT_WR));
	CALL(read(1 << 20, in, 1));
	CALL(dup(-1));
	CALL(dup2(-1, fd));
	CALL(dup2(fd, -1));
	CALL(dup3(fd, fd, 0));
	CALL(dup3(fd, fd + 1, 77));
	still_works(fd);
}

static void not_a_socket(int fd)
{
	int file = open("/dev/null", O_RDWR | O_CLOEXEC);

	CALL(recv(file, in, 1, 0));
	CALL(send(file, in, 1, 0));
	CALL(shutdown(file, SHUT_RD));
	CALL(listen(file, 1));
	CALL(accept(file, NULL, NULL));
	CALL(getsockopt(file, SOL_SOCKET, SO_ERROR, in, &(socklen_t){4}));
	CALL(write(file, in, 1));
	close(file);
	still_works(fd);
}

static void closed_descriptor(int fd)
{
	CALL(close(fd));
	CALL(read(fd, in, 1));
	CALL(write(fd, in, 1));
	CALL(recv(fd, in, 1, 0));
	CALL(send(fd, in, 1, 0));
	CALL(shutdown(fd, SHUT_RD));
	CALL(fcntl(fd, F_GETFL));
	CALL(close(fd));
}

static void number_used_again(int fd)
{
	int file;

	CALL(close(fd));
	file = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	say("the same number: %d", file == fd);
	CALL(read(file, in, 7));
	CALL(send(file, in, 7, 0));
	close(file);
}

static void bad_shutdown(int fd)
{
	CALL(shutdown(fd, 3));
	CALL(shutdown(fd, -1));
	still_works(fd);
}

static void connect_again(int fd)
{
	struct sockaddr_in a = {0};
	socklen_t n = sizeof(a);

	getpeername(fd, (struct sockaddr *)&a, &n);
	CALL(connect(fd, (struct sockaddr *)&a, n));
	CALL(connect(fd, NULL, n));
	CALL(connect(fd, (struct sockaddr *)&a, 3));
	still_works(fd);
}

const struct test_case bad_cases[] = {
	CASE(read_to_null),
	CASE(read_to_null_when_empty),
	CASE(write_from_null),
	CASE(null_in_vector),
	CASE(bad_vector),
	CASE(bad_message),
	CASE(unmapped_memory),
	CASE(read_only_memory),
	CASE(bad_options),
	CASE(bad_option_pointers),
	CASE(bad_ioctls),
	CASE(bad_poll),
	CASE(bad_select),
	CASE(bad_epoll_arguments),
	CASE(epoll_wait_to_nowhere),
	CASE(bad_epoll_pwait2),
	CASE(bad_descriptors),
	CASE(not_a_socket),
	CASE(closed_descriptor),
	CASE(number_used_again),
	CASE(bad_shutdown),
	CASE(connect_again),
	END_OF_CASES,
};
