/* SPDX-License-Identifier: Apache-2.0 */
/* Handlers that use the connection, jump, and cancellation. */
#include "semantics.h"

#include <sys/signalfd.h>

static int handlers_fd;
static volatile long handlers_result;
static volatile int handlers_errno;
static sigjmp_buf out_of_here;

static void handler_writes(int sig)
{
	(void)sig;
	handlers_result = write(handlers_fd, stream, 5);
	handlers_errno = errno;
}

static void handler_reads(int sig)
{
	int before = errno;

	(void)sig;
	handlers_result = recv(handlers_fd, in, 5, MSG_DONTWAIT);
	handlers_errno = errno;
	errno = before;
}

static void handler_closes(int sig)
{
	(void)sig;
	handlers_result = close(handlers_fd);
}

static void handler_shuts_down(int sig)
{
	(void)sig;
	handlers_result = shutdown(handlers_fd, SHUT_RD);
}

static void handler_jumps(int sig)
{
	siglongjmp(out_of_here, sig);
}

static void handlers_did(void)
{
	if (handlers_result < 0)
		say("the handler got -1 %s", errno_name(handlers_errno));
	else
		say("the handler got %ld", handlers_result);
}

static void with_handler(int fd, void (*handler)(int), int flags)
{
	handlers_fd = fd;
	handlers_result = -1;
	handlers_errno = 0;
	handle(SIGUSR1, handler, flags);
}

static void write_in_a_handler(int fd)
{
	with_handler(fd, handler_writes, SA_RESTART);
	interrupt_in(30, SIGUSR1);
	peer_send_later(300, 5);
	GOT(read(fd, in, 10));
	handlers_did();
	sent += 5;
	SENT(write(fd, OUT, 5));
	peer_receive(10);
}

static void read_in_a_handler(int fd)
{
	peer_send(5);
	await_octets(fd, 5);
	with_handler(fd, handler_reads, SA_RESTART);
	raise(SIGUSR1);
	handlers_did();
	expect_octets(in, 5);
	raise(SIGUSR1);
	handlers_did();
}

static void read_in_a_handler_during_read(int fd)
{
	with_handler(fd, handler_reads, SA_RESTART);
	interrupt_in(30, SIGUSR1);
	peer_send_later(300, 5);
	GOT(read(fd, in, 10));
	handlers_did();
}

static void read_in_a_handler_during_write(int fd)
{
	size_t before;

	fill_up(fd);
	before = sent;
	with_handler(fd, handler_reads, SA_RESTART);
	interrupt_in(30, SIGUSR1);
	peer_receive_later(300, before + 100);
	SENT(write(fd, OUT, 100));
	handlers_did();
}

static void shutdown_in_a_handler(int fd)
{
	with_handler(fd, handler_shuts_down, SA_RESTART);
	interrupt_in(30, SIGUSR1);
	CALL(read(fd, in, 10));
	handlers_did();
}

static void close_in_a_handler(int fd)
{
	with_handler(fd, handler_closes, 0);
	interrupt_in(30, SIGUSR1);
	CALL(read(fd, in, 10));
	handlers_did();
	peer_drain();
}

static void close_in_a_handler_during_poll(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	with_handler(fd, handler_closes, 0);
	interrupt_in(30, SIGUSR1);
	CALL(poll(&p, 1, 3000));
	handlers_did();
	peer_drain();
	CALL(poll(&p, 1, 0));
	say("%s", event_names((uint32_t)p.revents));
}

static void jump_out_of_read(int fd)
{
	with_handler(fd, handler_jumps, 0);
	if (sigsetjmp(out_of_here, 1) == 0) {
		interrupt_in(50, SIGUSR1);
		CALL(read(fd, in, 10));
	} else {
		say("jumped");
	}
	handle(SIGUSR1, SIG_IGN, 0);
	peer_send(5);
	GOT(read(fd, in, 10));
	SENT(write(fd, OUT, 5));
	peer_receive(5);
	CALL(close(fd));
	peer_drain();
}

static void jump_out_of_write(int fd)
{
	fill_up(fd);
	with_handler(fd, handler_jumps, 0);
	if (sigsetjmp(out_of_here, 1) == 0) {
		interrupt_in(50, SIGUSR1);
		CALL(write(fd, OUT, 10));
	} else {
		say("jumped");
	}
	handle(SIGUSR1, SIG_IGN, 0);
	peer_receive(sent);
	SENT(write(fd, OUT, 5));
	peer_receive(5);
}

static void jump_out_of_poll(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	for (volatile int i = 0; i < 3; i++) {
		with_handler(fd, handler_jumps, 0);
		if (sigsetjmp(out_of_here, 1) == 0) {
			interrupt_in(30, SIGUSR1);
			CALL(poll(&p, 1, -1));
		} else {
			say("jumped");
		}
	}
	handle(SIGUSR1, SIG_IGN, 0);
	peer_send(5);
	CALL(poll(&p, 1, -1));
	GOT(read(fd, in, 10));
}

static void jump_out_of_epoll(int fd)
{
	int ep = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event e = {.events = EPOLLIN};

	epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
	for (volatile int i = 0; i < 3; i++) {
		with_handler(fd, handler_jumps, 0);
		if (sigsetjmp(out_of_here, 1) == 0) {
			interrupt_in(30, SIGUSR1);
			CALL(epoll_wait(ep, &e, 1, -1));
		} else {
			say("jumped");
		}
	}
	handle(SIGUSR1, SIG_IGN, 0);
	peer_send(5);
	CALL(epoll_wait(ep, &e, 1, -1));
	GOT(read(fd, in, 10));
	close(ep);
}

static void jump_back_to_the_kernel(int fd)
{
	int n;

	with_handler(fd, handler_jumps, 0);
	if (sigsetjmp(out_of_here, 1) == 0) {
		interrupt_in(50, SIGUSR1);
		CALL(read(fd, in, 10));
	}
	CALL(ioctl(fd, SIOCATMARK, &n));
	CALL(shutdown(fd, SHUT_WR));
	peer_drain();
	peer_send(5);
	GOT(read(fd, in, 10));
}

static void signal_descriptor(int fd)
{
	sigset_t set, before;
	struct signalfd_siginfo info;
	struct pollfd p[2];
	int sfd;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, &before);
	handle(SIGUSR1, count_signal, 0);
	sfd = signalfd(-1, &set, SFD_CLOEXEC);
	p[0] = (struct pollfd){.fd = sfd, .events = POLLIN};
	p[1] = (struct pollfd){.fd = fd, .events = POLLIN};
	interrupt_in(30, SIGUSR1);
	CALL(poll(p, 2, 2000));
	say("%s %s", event_names((uint32_t)p[0].revents), event_names((uint32_t)p[1].revents));
	CALL(read(sfd, &info, sizeof(info)) == sizeof(info));
	say("%s", strsignal((int)info.ssi_signo));
	close(sfd);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	say("%d signals", handled);
}

static void signal_descriptor_of_the_process(int fd)
{
	sigset_t set, before;
	struct signalfd_siginfo info;
	int sfd;

	(void)fd;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	pthread_sigmask(SIG_BLOCK, &set, &before);
	sfd = signalfd(-1, &set, SFD_CLOEXEC);
	kill(getpid(), SIGUSR2);
	CALL(read(sfd, &info, sizeof(info)) == sizeof(info));
	close(sfd);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void wait_for_a_signal(int fd)
{
	struct timespec t = {2, 0};
	sigset_t set, before;

	(void)fd;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	pthread_sigmask(SIG_BLOCK, &set, &before);
	kill(getpid(), SIGUSR2);
	CALL(sigtimedwait(&set, NULL, &t));
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* ppoll() and the like set the mask and wait in one step. */
static void masked_until_ppoll(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	sigset_t set, before;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, &before);
	handle(SIGUSR1, count_signal, 0);
	raise(SIGUSR1);
	say("%d signals", handled);
	CALL(ppoll(&p, 1, &(struct timespec){2, 0}, &before));
	say("%d signals", handled);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void masked_until_pselect(int fd)
{
	sigset_t set, before;
	fd_set r;

	FD_ZERO(&r);
	FD_SET(fd, &r);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, &before);
	handle(SIGUSR1, count_signal, 0);
	raise(SIGUSR1);
	CALL(pselect(fd + 1, &r, NULL, NULL, &(struct timespec){2, 0}, &before));
	say("%d signals", handled);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void masked_until_epoll_pwait(int fd)
{
	int ep = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event e = {.events = EPOLLIN};
	sigset_t set, before;

	epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, &before);
	handle(SIGUSR1, count_signal, 0);
	raise(SIGUSR1);
	CALL(epoll_pwait(ep, &e, 1, 2000, &before));
	say("%d signals", handled);
	raise(SIGUSR1);
	CALL(epoll_pwait2(ep, &e, 1, &(struct timespec){2, 0}, &before));
	say("%d signals", handled);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	close(ep);
}

/* An event and a signal: the event wins, the signal stays pending. */
static void ppoll_with_event_and_signal(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	sigset_t set, before;

	peer_send(5);
	await_octets(fd, 5);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, &before);
	handle(SIGUSR1, count_signal, 0);
	raise(SIGUSR1);
	CALL(ppoll(&p, 1, &(struct timespec){2, 0}, &before));
	say("%d signals", handled);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	say("%d signals", handled);
	GOT(read(fd, in, 10));
}

/* ---- cancellation ------------------------------------------------------------- */

static void *cancelled_reader(void *arg)
{
	static char buf[10];

	pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
	return (void *)(read(*(int *)arg, buf, sizeof(buf)) + 100);
}

static void *cancelled_poller(void *arg)
{
	struct pollfd p = {.fd = *(int *)arg, .events = POLLIN};

	return (void *)(long)(poll(&p, 1, -1) + 100);
}

static void *cancelled_epoller(void *arg)
{
	struct epoll_event e = {.events = EPOLLIN};
	int ep = epoll_create1(EPOLL_CLOEXEC);

	epoll_ctl(ep, EPOLL_CTL_ADD, *(int *)arg, &e);
	return (void *)(long)(epoll_wait(ep, &e, 1, -1) + 100);
}

static void *cancelled_writer(void *arg)
{
	return (void *)(write(*(int *)arg, stream, 8 << 20) + 100);
}

static void cancel(int fd, void *(*f)(void *))
{
	pthread_t thread;
	void *result;

	if (pthread_create(&thread, NULL, f, &fd))
		give_up("no thread");
	sleep_ms(30);
	pthread_cancel(thread);
	pthread_join(thread, &result);
	say("cancelled: %d", result == PTHREAD_CANCELED);
}

static void cancel_a_reader(int fd)
{
	cancel(fd, cancelled_reader);
	peer_send(5);
	GOT(read(fd, in, 10));
	SENT(write(fd, OUT, 5));
	peer_receive(5);
	CALL(shutdown(fd, SHUT_WR));
	peer_drain();
}

static void cancel_a_poller(int fd)
{
	cancel(fd, cancelled_poller);
	peer_send(5);
	GOT(read(fd, in, 10));
}

static void cancel_an_epoller(int fd)
{
	cancel(fd, cancelled_epoller);
	peer_send(5);
	GOT(read(fd, in, 10));
}

static void cancel_a_writer(int fd)
{
	cancel(fd, cancelled_writer);
	peer_send(5);
	GOT(read(fd, in, 10));
}

static void *cancels_itself(void *arg)
{
	static char buf[10];
	int fd = *(int *)arg;

	pthread_cancel(pthread_self());
	return (void *)(read(fd, buf, sizeof(buf)) + 100);
}

/* A request that is there already acts even if the call would not wait. */
static void cancel_before_read(int fd)
{
	pthread_t thread;
	void *result;

	peer_send(5);
	await_octets(fd, 5);
	if (pthread_create(&thread, NULL, cancels_itself, &fd))
		give_up("no thread");
	pthread_join(thread, &result);
	say("cancelled: %d", result == PTHREAD_CANCELED);
	GOT(recv(fd, in, 10, MSG_DONTWAIT));
}

static void *does_not_allow(void *arg)
{
	static char buf[10];
	long r;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
	r = read(*(int *)arg, buf, sizeof(buf));
	return (void *)(r + 100);
}

static void cancel_not_allowed(int fd)
{
	pthread_t thread;
	void *result;

	if (pthread_create(&thread, NULL, does_not_allow, &fd))
		give_up("no thread");
	sleep_ms(30);
	pthread_cancel(thread);
	sleep_ms(20);
	peer_send(5);
	pthread_join(thread, &result);
	say("it read %ld", (long)result - 100);
}

const struct test_case signal_cases[] = {
	CASE(write_in_a_handler),
	CASE(read_in_a_handler),
	CASE(read_in_a_handler_during_read),
	CASE(read_in_a_handler_during_write),
	CASE(shutdown_in_a_handler),
	CASE(close_in_a_handler),
	CASE(close_in_a_handler_during_poll),
	CASE(jump_out_of_read),
	CASE(jump_out_of_write),
	CASE(jump_out_of_poll),
	CASE(jump_out_of_epoll),
	CASE(jump_back_to_the_kernel),
	CASE(signal_descriptor),
	CASE(signal_descriptor_of_the_process),
	CASE(wait_for_a_signal),
	CASE(masked_until_ppoll),
	CASE(masked_until_pselect),
	CASE(masked_until_epoll_pwait),
	CASE(ppoll_with_event_and_signal),
	CASE(cancel_a_reader),
	CASE(cancel_a_poller),
	CASE(cancel_an_epoller),
	CASE(cancel_a_writer),
	CASE(cancel_before_read),
	CASE(cancel_not_allowed),
	END_OF_CASES,
};
