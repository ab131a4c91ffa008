/* SPDX-License-Identifier: Apache-2.0 */
/* Sending and receiving, and the MSG_* flags. */
#include "semantics.h"

static void read_what_is_there(int fd)
{
	peer_send(10);
	await_octets(fd, 10);
	GOT(read(fd, in, 100));
}

static void read_in_parts(int fd)
{
	peer_send(10);
	await_octets(fd, 10);
	GOT(read(fd, in, 3));
	GOT(read(fd, in, 3));
	GOT(read(fd, in, 3));
	GOT(read(fd, in, 3));
}

static void read_joins_segments(int fd)
{
	peer_send(5);
	peer_send(6);
	peer_send(7);
	await_octets(fd, 18);
	GOT(read(fd, in, 100));
}

static void read_of_nothing(int fd)
{
	CALL(read(fd, in, 0));
	peer_send(4);
	await_octets(fd, 4);
	CALL(read(fd, in, 0));
	GOT(read(fd, in, 100));
}

static void recv_of_nothing(int fd)
{
	CALL(recv(fd, in, 0, MSG_DONTWAIT));
	peer_send(4);
	await_octets(fd, 4);
	CALL(recv(fd, in, 0, 0));
	GOT(recv(fd, in, 100, 0));
}

static void write_of_nothing(int fd)
{
	CALL(write(fd, OUT, 0));
	CALL(send(fd, OUT, 0, 0));
	SENT(write(fd, OUT, 3));
	peer_receive(3);
}

static void write_and_send(int fd)
{
	SENT(write(fd, OUT, 5));
	SENT(send(fd, OUT, 6, 0));
	SENT(sendto(fd, OUT, 7, 0, NULL, 0));
	peer_receive(18);
}

static void request_and_response(int fd)
{
	for (int i = 0; i < 5; i++) {
		SENT(write(fd, OUT, 100));
		peer_receive(100);
		peer_send(200);
		GOT(recv(fd, in, 200, MSG_WAITALL));
	}
}

static void recv_when_empty(int fd)
{
	CALL(recv(fd, in, 10, MSG_DONTWAIT));
	fcntl(fd, F_SETFL, O_NONBLOCK);
	CALL(read(fd, in, 10));
	CALL(recv(fd, in, 10, 0));
	CALL(recvfrom(fd, in, 10, 0, NULL, NULL));
	CALL(recv(fd, in, 10, MSG_PEEK));
	CALL(recv(fd, in, 10, MSG_WAITALL));
	CALL(recv(fd, in, 10, MSG_TRUNC));
}

static void peek(int fd)
{
	peer_send(10);
	await_octets(fd, 10);
	PEEKED(recv(fd, in, 4, MSG_PEEK));
	PEEKED(recv(fd, in, 100, MSG_PEEK));
	GOT(recv(fd, in, 6, 0));
	PEEKED(recv(fd, in, 100, MSG_PEEK));
	GOT(recv(fd, in, 100, 0));
	CALL(recv(fd, in, 100, MSG_PEEK | MSG_DONTWAIT));
}

static void peek_across_segments(int fd)
{
	peer_send(3000);
	peer_send(10);
	await_octets(fd, 3010);
	PEEKED(recv(fd, in, 3010, MSG_PEEK));
	GOT(recv(fd, in, 1, 0));
	PEEKED(recv(fd, in, 3010, MSG_PEEK));
	GOT(recv(fd, in, 5000, 0));
}

static void peek_waits_for_one(int fd)
{
	peer_send_later(30, 5);
	PEEKED(recv(fd, in, 100, MSG_PEEK));
	GOT(recv(fd, in, 100, 0));
}

static void peek_and_waitall(int fd)
{
	peer_send(5);
	await_octets(fd, 5);
	peer_send_later(30, 5);
	PEEKED(recv(fd, in, 10, MSG_PEEK | MSG_WAITALL));
	GOT(recv(fd, in, 10, MSG_WAITALL));
}

static void waitall(int fd)
{
	peer_send(5);
	peer_send_later(30, 5);
	GOT(recv(fd, in, 10, MSG_WAITALL));
}

static void waitall_of_much(int fd)
{
	peer_send_later(1, 600000);
	GOT(recv(fd, in, 600000, MSG_WAITALL));
}

static void waitall_dontwait(int fd)
{
	peer_send(5);
	await_octets(fd, 5);
	GOT(recv(fd, in, 10, MSG_WAITALL | MSG_DONTWAIT));
	CALL(recv(fd, in, 10, MSG_WAITALL | MSG_DONTWAIT));
}

static void waitall_nonblocking(int fd)
{
	fcntl(fd, F_SETFL, O_NONBLOCK);
	peer_send(5);
	await_octets(fd, 5);
	GOT(recv(fd, in, 10, MSG_WAITALL));
}

static void waitall_until_end(int fd)
{
	peer_send(5);
	peer_shutdown_later(30, SHUT_WR);
	GOT(recv(fd, in, 10, MSG_WAITALL));
	GOT(recv(fd, in, 10, MSG_WAITALL));
}

static void waitall_until_reset(int fd)
{
	peer_send(5);
	peer_reset_later(30);
	GOT(recv(fd, in, 10, MSG_WAITALL));
	CALL(recv(fd, in, 10, MSG_WAITALL));
	CALL(recv(fd, in, 10, MSG_WAITALL));
}

static void waitall_until_timeout(int fd)
{
	struct timeval t = {0, 50000};
	uint64_t start = now_ms();

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t));
	peer_send(5);
	GOT(recv(fd, in, 10, MSG_WAITALL));
	say("%s", punctual(start, 50));
}

static void waitall_until_signal(int fd)
{
	handle(SIGUSR1, count_signal, 0);
	peer_send(5);
	interrupt_in(50, SIGUSR1);
	GOT(recv(fd, in, 10, MSG_WAITALL));
	say("%d signals", handled);
}

static void truncate_discards(int fd)
{
	peer_send(10);
	await_octets(fd, 10);
	memset(in, '-', 10);
	CALL(recv(fd, in, 4, MSG_TRUNC));
	say("the buffer is %.4s", in);
	received += 4;
	GOT(recv(fd, in, 10, 0));
}

static void truncate_without_buffer(int fd)
{
	peer_send(10);
	await_octets(fd, 10);
	CALL(recv(fd, NULL, 4, MSG_TRUNC));
	received += 4;
	CALL(recv(fd, NULL, 100, MSG_TRUNC | MSG_DONTWAIT));
	CALL(recv(fd, NULL, 100, MSG_TRUNC | MSG_DONTWAIT));
}

static void truncate_and_peek(int fd)
{
	peer_send(10);
	await_octets(fd, 10);
	CALL(recv(fd, NULL, 100, MSG_TRUNC | MSG_PEEK));
	CALL(recv(fd, NULL, 3, MSG_TRUNC | MSG_PEEK));
	GOT(recv(fd, in, 100, 0));
}

static void truncate_and_waitall(int fd)
{
	peer_send(5);
	peer_send_later(30, 5);
	CALL(recv(fd, NULL, 10, MSG_TRUNC | MSG_WAITALL));
}

static void more_is_held_back(int fd)
{
	SENT(send(fd, OUT, 5, MSG_MORE));
	SENT(send(fd, OUT, 5, 0));
	peer_receive(10);
}

static void more_then_read(int fd)
{
	SENT(send(fd, OUT, 5, MSG_MORE));
	peer_receive(5); /* after 200 ms at the latest */
}

static void more_then_close(int fd)
{
	SENT(send(fd, OUT, 5, MSG_MORE));
	CALL(close(fd));
	peer_drain();
}

static void end_of_record(int fd)
{
	SENT(send(fd, OUT, 5, MSG_EOR));
	peer_receive(5);
}

static void nosignal(int fd)
{
	SENT(send(fd, OUT, 5, MSG_NOSIGNAL));
	peer_receive(5);
	peer_reset();
	settle();
	CALL(send(fd, OUT, 5, MSG_NOSIGNAL));
	CALL(send(fd, OUT, 5, MSG_NOSIGNAL));
	say("%d signals", handled);
}

static void unknown_flags(int fd)
{
	SENT(send(fd, OUT, 5, 0x10000000 | MSG_CONFIRM | MSG_DONTROUTE));
	peer_receive(5);
	peer_send(5);
	await_octets(fd, 5);
	GOT(recv(fd, in, 5, 0x10000000 | MSG_CONFIRM));
}

static void error_queue(int fd)
{
	peer_send(5);
	await_octets(fd, 5);
	CALL(recv(fd, in, 5, MSG_ERRQUEUE));
	GOT(recv(fd, in, 5, 0));
}

static void urgent_sent(int fd)
{
	CALL(send(fd, "!", 1, MSG_OOB));
	SENT(send(fd, OUT, 5, 0));
	settle();
	peer_receive(5);
}

static void urgent_received(int fd)
{
	char c = 0;

	peer_send(3);
	await_octets(fd, 3);
	peer_send_urgent();
	settle();
	GOT(recv(fd, in, 10, 0));
	CALL(recv(fd, &c, 1, MSG_OOB));
	say("it is %c", c);
	CALL(recv(fd, &c, 1, MSG_OOB));
	peer_send(3);
	await_octets(fd, 3);
	GOT(recv(fd, in, 10, 0));
}

static void urgent_inline(int fd)
{
	int one = 1;

	setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &one, sizeof(one));
	peer_send(3);
	await_octets(fd, 3);
	peer_send_urgent();
	settle();
	GOT(recv(fd, in, 10, 0));
	CALL(recv(fd, in, 10, 0));
	say("it is %c", in[0]);
}

static void urgent_without_any(int fd)
{
	CALL(recv(fd, in, 1, MSG_OOB));
	CALL(recv(fd, in, 1, MSG_OOB | MSG_DONTWAIT));
}

static void large_write(int fd)
{
	peer_receive_later(20, 2000000);
	SENT(write(fd, OUT, 2000000));
	peer_await();
	SENT(write(fd, OUT, 10));
	peer_receive(10);
}

static void nonblocking_write_fills_up(int fd)
{
	long n, total = 0;

	fcntl(fd, F_SETFL, O_NONBLOCK);
	while ((n = send(fd, OUT, 100000, 0)) > 0) {
		total += n;
		did_send(n);
	}
	say("ends with %s, nothing or little written: %d", errno_name(errno), total < 1000);
	SENT(send(fd, OUT, 0, 0));
	peer_receive((size_t)total);
}

static void dontwait_fills_up(int fd)
{
	fill_up(fd);
	CALL(send(fd, OUT, 50000, MSG_DONTWAIT));
	peer_receive_later(10, sent);
	SENT(send(fd, OUT, 50000, 0));
}

static void much_in_both_directions(int fd)
{
	for (int i = 0; i < 10; i++) {
		peer_send(30000);
		SENT(write(fd, OUT, 30000));
		GOT(recv(fd, in, 30000, MSG_WAITALL));
		peer_receive(30000);
	}
}

static void recvfrom_has_no_address(int fd)
{
	struct sockaddr_in a = {.sin_port = 77};
	socklen_t n = sizeof(a);

	peer_send(5);
	await_octets(fd, 5);
	GOT(recvfrom(fd, in, 5, 0, (struct sockaddr *)&a, &n));
	say("length %u, port %u", n, a.sin_port);
}

static void sendto_ignores_address(int fd)
{
	struct sockaddr_in a = own_address();

	SENT(sendto(fd, OUT, 5, 0, (struct sockaddr *)&a, sizeof(a)));
	SENT(write(fd, OUT, 5));
	peer_receive(10);
}

static void pread_and_pwrite(int fd)
{
	CALL(pread(fd, in, 5, 0));
	CALL(pwrite(fd, in, 5, 0));
	CALL(lseek(fd, 0, SEEK_CUR));
}

static void zero_copy_without_option(int fd)
{
	SENT(send(fd, OUT, 5, MSG_ZEROCOPY));
	peer_receive(5);
}

static void fast_open_when_connected(int fd)
{
	struct sockaddr_in a = own_address();

	CALL(sendto(fd, OUT, 5, MSG_FASTOPEN, (struct sockaddr *)&a, sizeof(a)));
	SENT(write(fd, OUT, 5));
	peer_receive(5);
}

static void half_a_megabyte_in(int fd)
{
	peer_send_later(1, 500000);
	for (size_t left = 500000; left;) {
		long n = read(fd, in, 10000);

		if (n <= 0) {
			say("error %s", errno_name(errno));
			break;
		}
		did_receive(n, true);
		left -= (size_t)n;
	}
	say("%zu octets came", received);
}

const struct test_case transfer_cases[] = {
	CASE(read_what_is_there),
	CASE(read_in_parts),
	CASE(read_joins_segments),
	CASE(read_of_nothing),
	CASE(recv_of_nothing),
	CASE(write_of_nothing),
	CASE(write_and_send),
	CASE(request_and_response),
	CASE(recv_when_empty),
	CASE(peek),
	CASE(peek_across_segments),
	CASE(peek_waits_for_one),
	CASE(peek_and_waitall),
	CASE(waitall),
	CASE(waitall_of_much),
	CASE(waitall_dontwait),
	CASE(waitall_nonblocking),
	CASE(waitall_until_end),
	CASE(waitall_until_reset),
	CASE(waitall_until_timeout),
	CASE(waitall_until_signal),
	CASE(truncate_discards),
	CASE(truncate_without_buffer),
	CASE(truncate_and_peek),
	CASE(truncate_and_waitall),
	CASE(more_is_held_back),
	CASE(more_then_read),
	CASE(more_then_close),
	CASE(end_of_record),
	CASE(nosignal),
	CASE(unknown_flags),
	CASE(error_queue),
	CASE(urgent_sent),
	CASE(urgent_received),
	CASE(urgent_inline),
	CASE(urgent_without_any),
	CASE(large_write),
	CASE(nonblocking_write_fills_up),
	CASE(dontwait_fills_up),
	CASE(much_in_both_directions),
	CASE(half_a_megabyte_in),
	CASE(recvfrom_has_no_address),
	CASE(sendto_ignores_address),
	CASE(pread_and_pwrite),
	CASE(zero_copy_without_option),
	CASE(fast_open_when_connected),
	END_OF_CASES,
};
