/* SPDX-License-Identifier: Apache-2.0 */
/* ioctl() and fcntl(). */
#include "semantics.h"

#include <linux/sockios.h>

static void unread_octets(int fd)
{
	int n = -1;

	CALL(ioctl(fd, FIONREAD, &n));
	say("%d", n);
	peer_send(10);
	await_octets(fd, 10);
	CALL(ioctl(fd, FIONREAD, &n));
	say("%d", n);
	GOT(read(fd, in, 4));
	CALL(ioctl(fd, SIOCINQ, &n));
	say("%d", n);
	GOT(read(fd, in, 10));
	CALL(ioctl(fd, FIONREAD, &n));
	say("%d", n);
}

static void unread_octets_and_end(int fd)
{
	int n = -1;

	peer_send(10);
	peer_close();
	settle();
	CALL(ioctl(fd, FIONREAD, &n));
	say("%d", n);
	GOT(read(fd, in, 10));
	CALL(ioctl(fd, FIONREAD, &n));
	say("%d", n);
	CALL(read(fd, in, 10));
}

static void unread_octets_after_reset(int fd)
{
	int n = -1;

	peer_send(10);
	await_octets(fd, 10);
	peer_reset();
	settle();
	CALL(ioctl(fd, FIONREAD, &n));
	say("%d", n);
	CALL(read(fd, in, 10));
	CALL(read(fd, in, 10));
}

static void octets_in_flight(int fd)
{
	int n = -1;

	SENT(write(fd, OUT, 10));
	peer_receive(10);
	peer_send(1); /* with the acknowledgement */
	GOT(read(fd, in, 1));
	CALL(ioctl(fd, SIOCOUTQ, &n));
	say("%d", n);
}

static void octets_not_taken(int fd)
{
	int queued = -1, unsent = -1;

	fill_up(fd);
	CALL(ioctl(fd, SIOCOUTQ, &queued));
	CALL(ioctl(fd, SIOCOUTQNSD, &unsent));
	say("some: %d, some: %d", queued > 0, unsent > 0);
	peer_receive(sent);
	settle();
	CALL(ioctl(fd, SIOCOUTQ, &queued));
	CALL(ioctl(fd, SIOCOUTQNSD, &unsent));
	say("%d, %d", queued, unsent);
}

static void urgent_mark(int fd)
{
	int n = -1;

	CALL(ioctl(fd, SIOCATMARK, &n));
	say("%d", n);
	CALL(sockatmark(fd));
	peer_send(3);
	peer_send_urgent();
	settle();
	CALL(ioctl(fd, SIOCATMARK, &n));
	say("%d", n);
	GOT(read(fd, in, 10));
	CALL(sockatmark(fd));
}

static void ioctl_nonblocking(int fd)
{
	int on = 1, off = 0;

	CALL(ioctl(fd, FIONBIO, &on));
	say("O_NONBLOCK %d", fcntl(fd, F_GETFL) & O_NONBLOCK);
	CALL(read(fd, in, 1));
	CALL(ioctl(fd, FIONBIO, &off));
	say("O_NONBLOCK %d", fcntl(fd, F_GETFL) & O_NONBLOCK);
	peer_send_later(20, 5);
	GOT(read(fd, in, 10));
}

static void ioctl_close_on_exec(int fd)
{
	CALL(ioctl(fd, FIONCLEX));
	CALL(fcntl(fd, F_GETFD));
	CALL(ioctl(fd, FIOCLEX));
	CALL(fcntl(fd, F_GETFD));
	SENT(write(fd, OUT, 1));
	peer_receive(1);
}

static void flags(int fd)
{
	CALL(fcntl(fd, F_GETFL));
	CALL(fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK));
	CALL(fcntl(fd, F_GETFL));
	CALL(read(fd, in, 1));
	CALL(fcntl(fd, F_SETFL, O_APPEND));
	CALL(fcntl(fd, F_GETFL));
	CALL(fcntl(fd, F_SETFL, 0));
	peer_send_later(20, 5);
	GOT(read(fd, in, 10));
}

static void descriptor_flags(int fd)
{
	CALL(fcntl(fd, F_GETFD));
	CALL(fcntl(fd, F_SETFD, 0));
	CALL(fcntl(fd, F_GETFD));
	CALL(fcntl(fd, F_SETFD, FD_CLOEXEC));
	SENT(write(fd, OUT, 1));
	peer_receive(1);
}

static void signal_driven(int fd)
{
	handle(SIGIO, count_signal, SA_RESTART);
	CALL(fcntl(fd, F_SETOWN, getpid()));
	say("owner is us: %d", fcntl(fd, F_GETOWN) == getpid());
	CALL(fcntl(fd, F_SETFL, O_ASYNC));
	peer_send(5);
	settle();
	say("signalled: %d", handled > 0);
	CALL(fcntl(fd, F_SETFL, 0));
	GOT(read(fd, in, 10));
	handle(SIGIO, SIG_DFL, 0);
}

static void signal_driven_by_ioctl(int fd)
{
	int on = 1, off = 0, pid = getpid();

	handle(SIGIO, count_signal, SA_RESTART);
	CALL(ioctl(fd, FIOSETOWN, &pid));
	CALL(ioctl(fd, FIOASYNC, &on));
	peer_send(5);
	settle();
	say("signalled: %d", handled > 0);
	CALL(ioctl(fd, FIOASYNC, &off));
	GOT(read(fd, in, 10));
	handle(SIGIO, SIG_DFL, 0);
}

static void other_fcntls(int fd)
{
	struct flock lock = {.l_type = F_WRLCK};

	CALL(fcntl(fd, F_GETSIG));
	CALL(fcntl(fd, F_SETSIG, SIGUSR1));
	CALL(fcntl(fd, F_GETSIG));
	CALL(fcntl(fd, F_SETLK, &lock));
	CALL(fcntl(fd, F_SETPIPE_SZ, 4096));
	CALL(fcntl(fd, F_GET_SEALS));
	CALL(fcntl(fd, 9999, 0));
	SENT(write(fd, OUT, 1));
	peer_receive(1);
}

static void interface_ioctls(int fd)
{
	CALL(ioctl(fd, TCGETS, in));
	CALL(ioctl(fd, TIOCINQ, in));
	SENT(write(fd, OUT, 1));
	peer_receive(1);
}

const struct test_case ioctl_cases[] = {
	CASE(unread_octets),     CASE(unread_octets_and_end), CASE(unread_octets_after_reset),
	CASE(octets_in_flight),  CASE(octets_not_taken),      CASE(urgent_mark),
	CASE(ioctl_nonblocking), CASE(ioctl_close_on_exec),   CASE(flags),
	CASE(descriptor_flags),  CASE(signal_driven),         CASE(signal_driven_by_ioctl),
	CASE(other_fcntls),      CASE(interface_ioctls),      END_OF_CASES,
};
