/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Socket options: set and read while the connection is in use, and still there
 * after it has been in use for a while longer.
 */
#include "semantics.h"

#include <linux/filter.h>

/* So many exchanges make a connection that left the fast path return to it. */
#define A_WHILE 150

static void exchange(int fd)
{
	SENT(write(fd, OUT, 5));
	peer_receive(5);
	peer_send(5);
	GOT(recv(fd, in, 5, MSG_WAITALL));
}

static void use_for_a_while(int fd)
{
	peer_echo(A_WHILE);
	for (int i = 0; i < A_WHILE; i++) {
		if (write(fd, OUT, 1) != 1 || read(fd, in, 1) != 1) {
			say("not echoed: %s", errno_name(errno));
			break;
		}
		did_send(1);
		did_receive(1, true);
	}
	peer_await();
}

static void set(int fd, int level, int option, int value)
{
	if (setsockopt(fd, level, option, &value, sizeof(value)))
		say("set to %d: %s", value, errno_name(errno));
	else
		say("set to %d", value);
}

static void get(int fd, int level, int option)
{
	unsigned char value[256];
	socklen_t n = sizeof(int);
	int number;

	memset(value, 0xaa, sizeof(value));
	if (getsockopt(fd, level, option, value, &n)) {
		say("get: %s", errno_name(errno));
		return;
	}
	memcpy(&number, value, sizeof(number));
	say("get: %d, %u octets", number, n);
}

/* One whose value is the same at all times. */
static void integer(int fd, int level, int option, const int *values)
{
	get(fd, level, option);
	for (; *values != -99; values++) {
		set(fd, level, option, *values);
		get(fd, level, option);
	}
	exchange(fd);
	use_for_a_while(fd);
	get(fd, level, option);
	exchange(fd);
}

#define INTEGER(level, option, ...)                                                                \
	static void option_##option(int fd)                                                        \
	{                                                                                          \
		static const int values[] = {__VA_ARGS__, -99};                                    \
                                                                                                   \
		integer(fd, level, option, values);                                                \
	}

INTEGER(IPPROTO_TCP, TCP_NODELAY, 0, 1, 7, 0)
INTEGER(IPPROTO_TCP, TCP_CORK, 1, 0)
INTEGER(IPPROTO_TCP, TCP_KEEPIDLE, 1, 100, 0, 40000)
INTEGER(IPPROTO_TCP, TCP_KEEPINTVL, 1, 100, 0, 40000)
INTEGER(IPPROTO_TCP, TCP_KEEPCNT, 1, 127, 0, 128)
INTEGER(IPPROTO_TCP, TCP_USER_TIMEOUT, 10000, -1, 30000)
INTEGER(IPPROTO_TCP, TCP_NOTSENT_LOWAT, 16384, 0, -1)
INTEGER(IPPROTO_TCP, TCP_LINGER2, 10, -5, 1000000)
INTEGER(IPPROTO_TCP, TCP_SYNCNT, 3, 0, 200)
INTEGER(IPPROTO_TCP, TCP_DEFER_ACCEPT, 5, 0)
INTEGER(IPPROTO_TCP, TCP_MAXSEG, 1, 1000, 100000)
INTEGER(IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, 1, 2)
INTEGER(IPPROTO_TCP, TCP_FASTOPEN, 5)
INTEGER(IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
INTEGER(IPPROTO_TCP, TCP_INQ, 2, 1, 0)
INTEGER(IPPROTO_TCP, TCP_SAVE_SYN, 1)
INTEGER(SOL_SOCKET, SO_REUSEADDR, 1, 0)
INTEGER(SOL_SOCKET, SO_REUSEPORT, 1)
INTEGER(SOL_SOCKET, SO_KEEPALIVE, 1, 0, 5)
INTEGER(SOL_SOCKET, SO_OOBINLINE, 1, 0)
INTEGER(SOL_SOCKET, SO_PRIORITY, 3, 6, 7)
INTEGER(SOL_SOCKET, SO_DONTROUTE, 1, 0)
INTEGER(SOL_SOCKET, SO_BROADCAST, 1)
INTEGER(SOL_SOCKET, SO_RCVLOWAT, 1, 0, 3, 1)
INTEGER(SOL_SOCKET, SO_SNDLOWAT, 5)
INTEGER(SOL_SOCKET, SO_TIMESTAMP, 1, 0)
INTEGER(SOL_SOCKET, SO_TIMESTAMPNS, 1, 0)
INTEGER(SOL_SOCKET, SO_MARK, 0)
INTEGER(SOL_SOCKET, SO_BUSY_POLL, 50, 0, -1)
INTEGER(SOL_SOCKET, SO_ZEROCOPY, 1)
INTEGER(SOL_SOCKET, SO_PASSCRED, 1)
INTEGER(SOL_SOCKET, SO_MAX_PACING_RATE, 1 << 30)
INTEGER(SOL_SOCKET, SO_PEEK_OFF, 3, -1)
INTEGER(SOL_SOCKET, SO_RXQ_OVFL, 1)
INTEGER(SOL_SOCKET, SO_DEBUG, 0)
INTEGER(SOL_SOCKET, SO_LOCK_FILTER, 1)
INTEGER(IPPROTO_IP, IP_TOS, 0x10, 0xb8, 3, 0)
INTEGER(IPPROTO_IP, IP_TTL, 33, 255, 0, 256)
INTEGER(IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_PMTUDISC_WANT)
INTEGER(IPPROTO_IP, IP_MTU, 1000)
INTEGER(IPPROTO_IP, IP_RECVERR, 1, 0)
INTEGER(IPPROTO_IP, IP_PKTINFO, 1, 0)
INTEGER(IPPROTO_IP, IP_RECVTOS, 1)
INTEGER(IPPROTO_IP, IP_RECVTTL, 1)
INTEGER(IPPROTO_IP, IP_FREEBIND, 1)
INTEGER(IPPROTO_IP, IP_MINTTL, 5, 0)
INTEGER(IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)

/* ---- others ------------------------------------------------------------------ */

static void option_SO_ERROR(int fd)
{
	get(fd, SOL_SOCKET, SO_ERROR);
	set(fd, SOL_SOCKET, SO_ERROR, 1);
	exchange(fd);
	get(fd, SOL_SOCKET, SO_ERROR);
}

static void option_SO_TYPE(int fd)
{
	get(fd, SOL_SOCKET, SO_TYPE);
	set(fd, SOL_SOCKET, SO_TYPE, 1);
	exchange(fd);
}

/* Buffers grow by themselves: only what was set is certain. */
static void buffer(int fd, int option)
{
	set(fd, SOL_SOCKET, option, 50000);
	get(fd, SOL_SOCKET, option);
	set(fd, SOL_SOCKET, option, 1);
	get(fd, SOL_SOCKET, option);
	set(fd, SOL_SOCKET, option, 65536);
	use_for_a_while(fd);
	get(fd, SOL_SOCKET, option);
	exchange(fd);
}

static void option_SO_SNDBUF(int fd)
{
	buffer(fd, SO_SNDBUF);
}

static void option_SO_RCVBUF(int fd)
{
	buffer(fd, SO_RCVBUF);
}

static void option_SO_SNDBUFFORCE(int fd)
{
	set(fd, SOL_SOCKET, SO_SNDBUFFORCE, 50000);
	get(fd, SOL_SOCKET, SO_SNDBUF);
	exchange(fd);
}

static void option_SO_LINGER(int fd)
{
	struct linger l = {1, 7};
	socklen_t n = sizeof(l);

	CALL(setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof(l)));
	memset(&l, 0, sizeof(l));
	CALL(getsockopt(fd, SOL_SOCKET, SO_LINGER, &l, &n));
	say("%d %d, %u octets", l.l_onoff, l.l_linger, n);
	CALL(setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, 4));
	use_for_a_while(fd);
	CALL(getsockopt(fd, SOL_SOCKET, SO_LINGER, &l, &n));
	say("%d %d", l.l_onoff, l.l_linger);
	l.l_onoff = 0;
	CALL(setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof(l)));
	CALL(close(fd));
	peer_drain();
}

static void timeouts(int fd, int option)
{
	struct timeval t = {1, 500000};
	socklen_t n = sizeof(t);

	CALL(setsockopt(fd, SOL_SOCKET, option, &t, sizeof(t)));
	memset(&t, 0, sizeof(t));
	CALL(getsockopt(fd, SOL_SOCKET, option, &t, &n));
	say("%ld %ld, %u octets", (long)t.tv_sec, (long)t.tv_usec, n);
	t = (struct timeval){0, 1000000};
	CALL(setsockopt(fd, SOL_SOCKET, option, &t, sizeof(t)));
	CALL(setsockopt(fd, SOL_SOCKET, option, &t, 4));
	use_for_a_while(fd);
	CALL(getsockopt(fd, SOL_SOCKET, option, &t, &n));
	say("%ld %ld", (long)t.tv_sec, (long)t.tv_usec);
	exchange(fd);
}

static void option_SO_RCVTIMEO(int fd)
{
	timeouts(fd, SO_RCVTIMEO);
}

static void option_SO_SNDTIMEO(int fd)
{
	timeouts(fd, SO_SNDTIMEO);
}

static void option_TCP_QUICKACK(int fd)
{
	set(fd, IPPROTO_TCP, TCP_QUICKACK, 1);
	get(fd, IPPROTO_TCP, TCP_QUICKACK);
	set(fd, IPPROTO_TCP, TCP_QUICKACK, 0);
	exchange(fd);
}

static void option_TCP_WINDOW_CLAMP(int fd)
{
	set(fd, IPPROTO_TCP, TCP_WINDOW_CLAMP, 30000);
	get(fd, IPPROTO_TCP, TCP_WINDOW_CLAMP);
	exchange(fd);
	use_for_a_while(fd);
}

static void option_TCP_CONGESTION(int fd)
{
	char name[16] = "";
	socklen_t n = sizeof(name);

	CALL(getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &n));
	say("%s, %u octets", name, n);
	CALL(setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4));
	n = sizeof(name);
	CALL(getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &n));
	say("%s", name);
	CALL(setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "nothing", 7));
	exchange(fd);
	use_for_a_while(fd);
	n = sizeof(name);
	CALL(getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &n));
	say("%s", name);
}

static void option_TCP_INFO(int fd)
{
	struct tcp_info info = {0};
	socklen_t n = sizeof(info);

	exchange(fd);
	CALL(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &n));
	say("state %d, options %d, scale %d %d, backoff %d, mss %u, advmss %u", info.tcpi_state,
	    info.tcpi_options, info.tcpi_snd_wscale, info.tcpi_rcv_wscale, info.tcpi_backoff,
	    info.tcpi_snd_mss, info.tcpi_advmss);
	n = 8;
	CALL(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &n));
	say("%u octets", n);
	n = 1;
	CALL(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &n));
	exchange(fd);
}

static void option_TCP_CC_INFO(int fd)
{
	socklen_t n = 100;

	CALL(getsockopt(fd, IPPROTO_TCP, TCP_CC_INFO, in, &n));
	exchange(fd);
}

static void option_TCP_ULP(int fd)
{
	char name[16];
	socklen_t n = sizeof(name);

	CALL(getsockopt(fd, IPPROTO_TCP, TCP_ULP, name, &n));
	say("%u octets", n);
	CALL(setsockopt(fd, IPPROTO_TCP, TCP_ULP, "nothing", 7));
	exchange(fd);
}

static void option_TCP_SAVED_SYN(int fd)
{
	socklen_t n = 100;

	CALL(getsockopt(fd, IPPROTO_TCP, TCP_SAVED_SYN, in, &n));
	say("%u octets", n);
	exchange(fd);
}

static void option_SO_PEERNAME(int fd)
{
	struct sockaddr_in a = {0};
	socklen_t n = sizeof(a);

	CALL(getsockopt(fd, SOL_SOCKET, SO_PEERNAME, &a, &n));
	say("family %d, %u octets", a.sin_family, n);
	exchange(fd);
}

static void option_SO_PEERCRED(int fd)
{
	struct {
		int pid, uid, gid;
	} c = {7, 7, 7};
	socklen_t n = sizeof(c);

	CALL(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &c, &n));
	say("%d %d %d", c.pid, c.uid, c.gid);
	exchange(fd);
}

static void option_SO_BINDTODEVICE(int fd)
{
	char name[16] = "";
	socklen_t n = sizeof(name);

	CALL(getsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, name, &n));
	say("%u octets", n);
	CALL(setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "nothing", 7));
	exchange(fd);
}

static void option_IP_OPTIONS(int fd)
{
	socklen_t n = 40;

	CALL(getsockopt(fd, IPPROTO_IP, IP_OPTIONS, in, &n));
	say("%u octets", n);
	CALL(setsockopt(fd, IPPROTO_IP, IP_OPTIONS, "\1\1\1\1", 4));
	n = 40;
	CALL(getsockopt(fd, IPPROTO_IP, IP_OPTIONS, in, &n));
	say("%u octets", n);
	exchange(fd);
	CALL(setsockopt(fd, IPPROTO_IP, IP_OPTIONS, "", 0));
	exchange(fd);
}

static void option_of_an_octet(int fd)
{
	unsigned char tos = 0x10;
	socklen_t n = 1;

	CALL(setsockopt(fd, IPPROTO_IP, IP_TOS, &tos, 1));
	tos = 0;
	CALL(getsockopt(fd, IPPROTO_IP, IP_TOS, &tos, &n));
	say("%#x, %u octets", tos, n);
	exchange(fd);
}

static void short_answers(int fd)
{
	static const int names[][2] = {{SOL_SOCKET, SO_KEEPALIVE},
				       {IPPROTO_TCP, TCP_NODELAY},
				       {IPPROTO_TCP, TCP_USER_TIMEOUT},
				       {SOL_SOCKET, SO_ERROR}};

	for (int i = 0; i < 4; i++)
		for (socklen_t room = 0; room < 7; room++) {
			unsigned char value[8];
			socklen_t n = room;

			memset(value, 0xaa, sizeof(value));
			CALL(getsockopt(fd, names[i][0], names[i][1], value, &n));
			say("%u octets, %d %d %d %d %d", n, value[0], value[1], value[2], value[3],
			    value[4]);
		}
	exchange(fd);
}

static struct sock_filter keep_all[] = {BPF_STMT(BPF_RET | BPF_K, 0xffffffff)};
static struct sock_fprog keep_program = {1, keep_all};

static void filter_of_the_program(int fd)
{
	socklen_t n = 1;

	CALL(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &keep_program, sizeof(keep_program)));
	CALL(getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, in, &n));
	say("%u", n);
	exchange(fd);
	use_for_a_while(fd);
	CALL(setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &n, sizeof(n)));
	CALL(setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &n, sizeof(n)));
	exchange(fd);
}

static void no_filter(int fd)
{
	socklen_t n = 1;

	CALL(getsockopt(fd, SOL_SOCKET, SO_GET_FILTER, in, &n));
	say("%u", n);
	CALL(setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &n, sizeof(n)));
	exchange(fd);
}

static void attach_to_nothing(int fd)
{
	CALL(setsockopt(fd, SOL_SOCKET, SO_ATTACH_BPF, &(int){-1}, sizeof(int)));
	CALL(setsockopt(fd, SOL_SOCKET, SO_ATTACH_BPF, &fd, sizeof(int)));
	exchange(fd);
}

/* ---- what options do ---------------------------------------------------------- */

static void low_water_mark(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	set(fd, SOL_SOCKET, SO_RCVLOWAT, 10);
	peer_send(5);
	settle();
	CALL(poll(&p, 1, 0));
	CALL(recv(fd, in, 100, MSG_DONTWAIT));
	received = 5;
	peer_send(5);
	CALL(poll(&p, 1, 20));
	peer_send(5);
	CALL(poll(&p, 1, 2000));
	GOT(read(fd, in, 100));
}

static void low_water_mark_after_a_while(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	set(fd, SOL_SOCKET, SO_RCVLOWAT, 1);
	use_for_a_while(fd);
	set(fd, SOL_SOCKET, SO_RCVLOWAT, 10);
	peer_send(5);
	settle();
	CALL(poll(&p, 1, 0));
	peer_send(5);
	CALL(poll(&p, 1, 2000));
	GOT(read(fd, in, 100));
}

static void corked(int fd)
{
	set(fd, IPPROTO_TCP, TCP_CORK, 1);
	SENT(write(fd, OUT, 5));
	SENT(write(fd, OUT, 5));
	set(fd, IPPROTO_TCP, TCP_CORK, 0);
	peer_receive(10);
	exchange(fd);
}

static void corked_for_a_while(int fd)
{
	set(fd, IPPROTO_TCP, TCP_CORK, 1);
	SENT(write(fd, OUT, 5));
	peer_receive(5);
	set(fd, IPPROTO_TCP, TCP_CORK, 0);
	exchange(fd);
}

static void corked_then_closed(int fd)
{
	set(fd, IPPROTO_TCP, TCP_CORK, 1);
	SENT(write(fd, OUT, 5));
	CALL(close(fd));
	peer_drain();
}

static void unread_by_message(int fd)
{
	char control[64];
	struct iovec v = {in, 4};
	struct msghdr m = {.msg_iov = &v,
			   .msg_iovlen = 1,
			   .msg_control = control,
			   .msg_controllen = sizeof(control)};

	set(fd, IPPROTO_TCP, TCP_INQ, 1);
	use_for_a_while(fd);
	peer_send(10);
	await_octets(fd, 10);
	GOT(recvmsg(fd, &m, 0));
	say("control %zu", m.msg_controllen);
	if (m.msg_controllen) {
		struct cmsghdr *c = CMSG_FIRSTHDR(&m);
		int left;

		memcpy(&left, CMSG_DATA(c), sizeof(left));
		say("%d left", left);
	}
	GOT(read(fd, in, 10));
}

static void timestamped_by_message(int fd)
{
	char control[64];
	struct iovec v = {in, 4};
	struct msghdr m = {.msg_iov = &v,
			   .msg_iovlen = 1,
			   .msg_control = control,
			   .msg_controllen = sizeof(control)};

	set(fd, SOL_SOCKET, SO_TIMESTAMP, 1);
	use_for_a_while(fd);
	/* The kernel begins to stamp some time after it was first asked to. */
	for (int i = 0; i < 100; i++) {
		m.msg_controllen = sizeof(control);
		peer_send_later(1, 4);
		did_receive(QUIETLY(recvmsg(fd, &m, MSG_WAITALL)), true);
		if (m.msg_controllen)
			break;
		sleep_ms(5);
	}
	say("control %zu", m.msg_controllen);
}

static void peek_offset(int fd)
{
	set(fd, SOL_SOCKET, SO_PEEK_OFF, 0);
	use_for_a_while(fd);
	peer_send(10);
	await_octets(fd, 10);
	PEEKED(recv(fd, in, 4, MSG_PEEK));
	CALL(recv(fd, in, 4, MSG_PEEK));
	say("from the fifth on: %d", memcmp(in, stream + received + 4, 4) == 0);
	GOT(recv(fd, in, 10, 0));
}

static void small_receive_buffer(int fd)
{
	set(fd, SOL_SOCKET, SO_RCVBUF, 4096);
	peer_send_later(1, 100000);
	GOT(recv(fd, in, 100000, MSG_WAITALL));
	exchange(fd);
}

static void small_send_buffer(int fd)
{
	set(fd, SOL_SOCKET, SO_SNDBUF, 4096);
	peer_receive_later(5, 100000);
	SENT(write(fd, OUT, 100000));
	peer_await();
	exchange(fd);
}

static void user_timeout_without_need(int fd)
{
	set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 100);
	exchange(fd);
	sleep_ms(250);
	exchange(fd);
}

static void linger_without_need(int fd)
{
	struct linger l = {1, 5};

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof(l));
	SENT(write(fd, OUT, 5));
	peer_receive(5);
	CALL(close(fd));
	peer_drain();
}

static void zerocopy_send(int fd)
{
	char control[128];
	struct msghdr m = {.msg_control = control, .msg_controllen = sizeof(control)};
	struct pollfd p = {.fd = fd};

	set(fd, SOL_SOCKET, SO_ZEROCOPY, 1);
	SENT(send(fd, OUT, 20000, MSG_ZEROCOPY));
	peer_receive(20000);
	CALL(poll(&p, 1, 2000));
	say("%s", event_names((uint32_t)p.revents));
	CALL(recvmsg(fd, &m, MSG_ERRQUEUE));
	exchange(fd);
}

#define OPTION(option) CASE(option_##option)

const struct test_case options_cases[] = {
	OPTION(TCP_NODELAY),
	OPTION(TCP_CORK),
	OPTION(TCP_KEEPIDLE),
	OPTION(TCP_KEEPINTVL),
	OPTION(TCP_KEEPCNT),
	OPTION(TCP_USER_TIMEOUT),
	OPTION(TCP_NOTSENT_LOWAT),
	OPTION(TCP_LINGER2),
	OPTION(TCP_SYNCNT),
	OPTION(TCP_DEFER_ACCEPT),
	OPTION(TCP_MAXSEG),
	OPTION(TCP_THIN_LINEAR_TIMEOUTS),
	OPTION(TCP_FASTOPEN),
	OPTION(TCP_FASTOPEN_CONNECT),
	OPTION(TCP_INQ),
	OPTION(TCP_SAVE_SYN),
	OPTION(TCP_QUICKACK),
	OPTION(TCP_WINDOW_CLAMP),
	OPTION(TCP_CONGESTION),
	OPTION(TCP_INFO),
	OPTION(TCP_CC_INFO),
	OPTION(TCP_ULP),
	OPTION(TCP_SAVED_SYN),
	OPTION(SO_REUSEADDR),
	OPTION(SO_REUSEPORT),
	OPTION(SO_KEEPALIVE),
	OPTION(SO_OOBINLINE),
	OPTION(SO_PRIORITY),
	OPTION(SO_DONTROUTE),
	OPTION(SO_BROADCAST),
	OPTION(SO_RCVLOWAT),
	OPTION(SO_SNDLOWAT),
	OPTION(SO_TIMESTAMP),
	OPTION(SO_TIMESTAMPNS),
	OPTION(SO_MARK),
	OPTION(SO_BUSY_POLL),
	OPTION(SO_ZEROCOPY),
	OPTION(SO_PASSCRED),
	OPTION(SO_MAX_PACING_RATE),
	OPTION(SO_PEEK_OFF),
	OPTION(SO_RXQ_OVFL),
	OPTION(SO_DEBUG),
	OPTION(SO_LOCK_FILTER),
	OPTION(SO_ERROR),
	OPTION(SO_TYPE),
	OPTION(SO_SNDBUF),
	OPTION(SO_RCVBUF),
	OPTION(SO_SNDBUFFORCE),
	OPTION(SO_LINGER),
	OPTION(SO_RCVTIMEO),
	OPTION(SO_SNDTIMEO),
	OPTION(SO_PEERNAME),
	OPTION(SO_PEERCRED),
	OPTION(SO_BINDTODEVICE),
	OPTION(IP_TOS),
	OPTION(IP_TTL),
	OPTION(IP_MTU_DISCOVER),
	OPTION(IP_MTU),
	OPTION(IP_RECVERR),
	OPTION(IP_PKTINFO),
	OPTION(IP_RECVTOS),
	OPTION(IP_RECVTTL),
	OPTION(IP_FREEBIND),
	OPTION(IP_MINTTL),
	OPTION(IP_BIND_ADDRESS_NO_PORT),
	OPTION(IP_OPTIONS),
	CASE(option_of_an_octet),
	CASE(short_answers),
	CASE(filter_of_the_program),
	CASE(no_filter),
	CASE(attach_to_nothing),
	CASE(low_water_mark),
	CASE(low_water_mark_after_a_while),
	CASE(corked),
	CASE(corked_for_a_while),
	CASE(corked_then_closed),
	CASE(unread_by_message),
	CASE(timestamped_by_message),
	CASE(peek_offset),
	CASE(small_receive_buffer),
	CASE(small_send_buffer),
	CASE(user_timeout_without_need),
	CASE(linger_without_need),
	CASE(zerocopy_send),
	END_OF_CASES,
};
