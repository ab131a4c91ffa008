/* SPDX-License-Identifier: Apache-2.0 */
/* readv() and writev() and those with messages. */
#include "semantics.h"

#include <limits.h>

static char parts[3][8];

static struct iovec *three(void)
{
	static struct iovec v[3];

	for (int i = 0; i < 3; i++)
		v[i] = (struct iovec){parts[i], 2 + (size_t)i};
	memset(parts, '-', sizeof(parts));
	return v;
}

static void expect_three(long n)
{
	for (int i = 0; i < 3 && n > 0; i++) {
		size_t part = (long)(2 + i) < n ? (size_t)(2 + i) : (size_t)n;

		expect_octets(parts[i], part);
		n -= (long)part;
	}
}

static struct iovec *three_out(void)
{
	static struct iovec v[3];

	v[0] = (struct iovec){OUT, 2};
	v[1] = (struct iovec){OUT + 2, 3};
	v[2] = (struct iovec){OUT + 5, 4};
	return v;
}

static void readv_scatters(int fd)
{
	peer_send(20);
	await_octets(fd, 20);
	expect_three(CALL(readv(fd, three(), 3)));
	expect_three(CALL(readv(fd, three(), 3)));
	expect_three(CALL(readv(fd, three(), 3)));
}

static void readv_partly(int fd)
{
	peer_send(4);
	await_octets(fd, 4);
	expect_three(CALL(readv(fd, three(), 3)));
}

static void writev_gathers(int fd)
{
	SENT(writev(fd, three_out(), 3));
	SENT(writev(fd, three_out(), 2));
	peer_receive(14);
}

static void empty_vectors(int fd)
{
	struct iovec empty[2] = {{in, 0}, {in, 0}};

	CALL(writev(fd, empty, 2));
	CALL(readv(fd, empty, 2));
	CALL(writev(fd, empty, 0));
	CALL(readv(fd, empty, 0));
	CALL(writev(fd, NULL, 0));
	CALL(readv(fd, NULL, 0));
}

static void empty_parts(int fd)
{
	struct iovec v[4] = {{NULL, 0}, {OUT, 3}, {NULL, 0}, {OUT + 3, 2}};

	SENT(writev(fd, v, 4));
	peer_receive(5);
	peer_send(5);
	await_octets(fd, 5);
	v[1] = (struct iovec){in, 3};
	v[3] = (struct iovec){in + 3, 7};
	GOT(readv(fd, v, 4));
}

static void too_many_parts(int fd)
{
	static struct iovec v[IOV_MAX + 1];

	for (int i = 0; i <= IOV_MAX; i++)
		v[i] = (struct iovec){OUT + i, 1};
	CALL(writev(fd, v, IOV_MAX + 1));
	CALL(readv(fd, v, IOV_MAX + 1));
	CALL(writev(fd, v, -1));
	CALL(readv(fd, v, -1));
	SENT(writev(fd, v, IOV_MAX));
	peer_receive(IOV_MAX);
}

static void too_long_parts(int fd)
{
	struct iovec v[2] = {{in, SSIZE_MAX}, {in, SSIZE_MAX}};

	CALL(writev(fd, v, 2));
	CALL(readv(fd, v, 2));
	v[0].iov_len = SIZE_MAX;
	CALL(writev(fd, v, 1));
	CALL(readv(fd, v, 1));
}

static void many_parts_in(int fd)
{
	static struct iovec v[IOV_MAX];

	for (int i = 0; i < IOV_MAX; i++)
		v[i] = (struct iovec){in + i * 3, 3};
	peer_send(3000);
	await_octets(fd, 3000);
	GOT(readv(fd, v, IOV_MAX));
}

static void many_parts_when_full(int fd)
{
	static struct iovec v[100];
	size_t total = 0;

	for (int i = 0; i < 100; i++) {
		v[i] = (struct iovec){OUT + total, 20000 + (size_t)i};
		total += v[i].iov_len;
	}
	peer_receive_later(10, total);
	SENT(writev(fd, v, 100));
	peer_await();
}

static void preadv2_at_current_position(int fd)
{
	peer_send(9);
	await_octets(fd, 9);
	expect_three(CALL(preadv2(fd, three(), 3, -1, 0)));
	CALL(preadv2(fd, three(), 3, -1, RWF_NOWAIT));
	CALL(preadv2(fd, three(), 3, 0, 0));
	CALL(preadv(fd, three(), 3, 0));
}

static void pwritev2_at_current_position(int fd)
{
	SENT(pwritev2(fd, three_out(), 3, -1, 0));
	CALL(pwritev2(fd, three_out(), 3, 0, 0));
	CALL(pwritev(fd, three_out(), 3, 0));
	SENT(write(fd, OUT, 1));
	peer_receive(10);
}

/* ---- messages -------------------------------------------------------------- */

static void sendmsg_gathers(int fd)
{
	struct msghdr m = {.msg_iov = three_out(), .msg_iovlen = 3};

	SENT(sendmsg(fd, &m, 0));
	m.msg_iov = three_out();
	m.msg_iovlen = 1;
	SENT(sendmsg(fd, &m, MSG_NOSIGNAL));
	peer_receive(11);
}

static void sendmsg_of_nothing(int fd)
{
	struct msghdr m = {0};

	CALL(sendmsg(fd, &m, 0));
	CALL(sendmsg(fd, &m, MSG_DONTWAIT));
}

static void sendmsg_with_address(int fd)
{
	struct sockaddr_in a = own_address();
	struct msghdr m = {
		.msg_iov = three_out(), .msg_iovlen = 3, .msg_name = &a, .msg_namelen = sizeof(a)};

	SENT(sendmsg(fd, &m, 0));
	peer_receive(9);
}

static void sendmsg_too_many_parts(int fd)
{
	static struct iovec v[IOV_MAX + 1];
	struct msghdr m = {.msg_iov = v, .msg_iovlen = IOV_MAX + 1};

	CALL(sendmsg(fd, &m, 0));
	CALL(recvmsg(fd, &m, MSG_DONTWAIT));
	m.msg_iovlen = SIZE_MAX;
	CALL(sendmsg(fd, &m, 0));
	CALL(recvmsg(fd, &m, MSG_DONTWAIT));
}

static void sendmsg_with_unknown_control(int fd)
{
	union {
		struct cmsghdr c;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {.c = {.cmsg_len = CMSG_LEN(sizeof(int)),
			   .cmsg_level = SOL_SOCKET,
			   .cmsg_type = 0x7777}};
	struct msghdr m = {.msg_iov = three_out(),
			   .msg_iovlen = 3,
			   .msg_control = &control,
			   .msg_controllen = sizeof(control)};

	CALL(sendmsg(fd, &m, 0));
	SENT(write(fd, OUT, 1));
	peer_receive(1);
}

static void sendmsg_with_rights(int fd)
{
	union {
		struct cmsghdr c;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {.c = {.cmsg_len = CMSG_LEN(sizeof(int)),
			   .cmsg_level = SOL_SOCKET,
			   .cmsg_type = SCM_RIGHTS}};
	struct msghdr m = {.msg_iov = three_out(),
			   .msg_iovlen = 3,
			   .msg_control = &control,
			   .msg_controllen = sizeof(control)};

	SENT(sendmsg(fd, &m, 0));
	peer_receive(9);
}

static void recvmsg_fills_the_header(int fd)
{
	char name[64], control[64];
	struct msghdr m = {.msg_iov = three(),
			   .msg_iovlen = 3,
			   .msg_name = name,
			   .msg_namelen = sizeof(name),
			   .msg_control = control,
			   .msg_controllen = sizeof(control),
			   .msg_flags = -1};

	peer_send(9);
	await_octets(fd, 9);
	expect_three(CALL(recvmsg(fd, &m, 0)));
	say("name %u, control %zu, flags %#x", m.msg_namelen, m.msg_controllen, m.msg_flags);
}

static void recvmsg_without_name(int fd)
{
	struct msghdr m = {.msg_iov = three(), .msg_iovlen = 3, .msg_namelen = 12};

	peer_send(9);
	await_octets(fd, 9);
	expect_three(CALL(recvmsg(fd, &m, MSG_CMSG_CLOEXEC)));
	say("name %u, control %zu, flags %#x", m.msg_namelen, m.msg_controllen, m.msg_flags);
}

static void recvmsg_flags(int fd)
{
	struct msghdr m = {.msg_iov = three(), .msg_iovlen = 3};

	CALL(recvmsg(fd, &m, MSG_DONTWAIT));
	peer_send(5);
	await_octets(fd, 5);
	expect_three(CALL(recvmsg(fd, &m, MSG_PEEK)));
	received -= 5;
	say("flags %#x", m.msg_flags);
	CALL(recvmsg(fd, &m, MSG_TRUNC));
	say("flags %#x", m.msg_flags);
}

static void recvmsg_at_the_end(int fd)
{
	struct msghdr m = {.msg_iov = three(), .msg_iovlen = 3, .msg_flags = -1};

	peer_close();
	settle();
	CALL(recvmsg(fd, &m, 0));
	say("flags %#x", m.msg_flags);
}

static void sendmmsg_of_two(int fd)
{
	struct mmsghdr m[2] = {{.msg_hdr = {.msg_iov = three_out(), .msg_iovlen = 3}}};
	struct iovec next = {OUT + 9, 4};

	m[1].msg_hdr = (struct msghdr){.msg_iov = &next, .msg_iovlen = 1};
	CALL(sendmmsg(fd, m, 2, 0));
	say("%u and %u octets", m[0].msg_len, m[1].msg_len);
	sent += 13;
	SENT(write(fd, OUT, 1));
	peer_receive(14);
}

static void sendmmsg_of_none(int fd)
{
	struct mmsghdr m = {0};

	CALL(sendmmsg(fd, &m, 0, 0));
	CALL(sendmmsg(fd, &m, 1, 0));
	say("%u octets", m.msg_len);
}

static void recvmmsg_of_two(int fd)
{
	struct mmsghdr m[2] = {{.msg_hdr = {.msg_iov = three(), .msg_iovlen = 3}}};
	struct iovec next = {in, 100};

	m[1].msg_hdr = (struct msghdr){.msg_iov = &next, .msg_iovlen = 1};
	peer_send(13);
	await_octets(fd, 13);
	CALL(recvmmsg(fd, m, 2, 0, NULL));
	say("%u and %u octets", m[0].msg_len, m[1].msg_len);
	expect_three(9);
	expect_octets(in, 4);
}

static void recvmmsg_waits_for_one(int fd)
{
	struct mmsghdr m[2] = {{.msg_hdr = {.msg_iov = three(), .msg_iovlen = 3}}};

	m[1] = m[0];
	peer_send_later(20, 9);
	CALL(recvmmsg(fd, m, 2, MSG_WAITFORONE, NULL));
	CALL(recvmmsg(fd, m, 2, MSG_DONTWAIT, NULL));
}

const struct test_case vector_cases[] = {
	CASE(readv_scatters),
	CASE(readv_partly),
	CASE(writev_gathers),
	CASE(empty_vectors),
	CASE(empty_parts),
	CASE(too_many_parts),
	CASE(too_long_parts),
	CASE(many_parts_in),
	CASE(many_parts_when_full),
	CASE(preadv2_at_current_position),
	CASE(pwritev2_at_current_position),
	CASE(sendmsg_gathers),
	CASE(sendmsg_of_nothing),
	CASE(sendmsg_with_address),
	CASE(sendmsg_too_many_parts),
	CASE(sendmsg_with_unknown_control),
	CASE(sendmsg_with_rights),
	CASE(recvmsg_fills_the_header),
	CASE(recvmsg_without_name),
	CASE(recvmsg_flags),
	CASE(recvmsg_at_the_end),
	CASE(sendmmsg_of_two),
	CASE(sendmmsg_of_none),
	CASE(recvmmsg_of_two),
	CASE(recvmmsg_waits_for_one),
	END_OF_CASES,
};
