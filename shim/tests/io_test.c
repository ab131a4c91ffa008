/* SPDX-License-Identifier: Apache-2.0 */
/* Reading, writing, waiting, options and processes on the fast path. */
#include "surface.h"

#include <spawn.h>
#include <sys/wait.h>

static void test_flags(void)
{
	char buf[16];
	int fds[2];

	fast_pair(fds);
	CHECK(send(fds[0], "abcdef", 6, MSG_MORE | MSG_NOSIGNAL) == 6);
	CHECK(recv(fds[1], buf, 3, MSG_PEEK) == 3 && !memcmp(buf, "abc", 3));
	CHECK(recv(fds[1], buf, sizeof(buf), MSG_PEEK | MSG_TRUNC) == 6);
	CHECK(recv(fds[1], NULL, 2, MSG_TRUNC) == 2);
	CHECK(recv(fds[1], buf, sizeof(buf), 0) == 4 && !memcmp(buf, "cdef", 4));
	CHECK_ERR(recv(fds[1], buf, 1, MSG_DONTWAIT), EAGAIN);
	CHECK(read(fds[1], buf, 0) == 0);
	CHECK(set_nonblock(fds[1]) == 0);
	CHECK_ERR(read(fds[1], buf, 1), EAGAIN);
	CHECK(mode_of(fds[0]) == ET_MODE_FAST && mode_of(fds[1]) == ET_MODE_FAST);
	/* Urgent data is the kernel's. */
	CHECK(send(fds[0], "u", 1, MSG_OOB) == 1);
	CHECK(mode_of(fds[0]) == ET_MODE_KERNEL);
	close_pair(fds);
}

static void test_messages(void)
{
	char a[3], b[100];
	struct iovec iov[2] = {{a, 3}, {b, 100}}, out[40];
	struct sockaddr_in from;
	struct msghdr m = {
		.msg_iov = iov, .msg_iovlen = 2, .msg_name = &from, .msg_namelen = sizeof(from)};
	socklen_t n = sizeof(from);
	int fds[2];

	fast_pair(fds);
	for (int i = 0; i < 40; i++)
		out[i] = (struct iovec){"xy", 2};
	/* More pieces than one attempt takes. */
	CHECK(writev(fds[0], out, 40) == 80);
	CHECK(recvmsg(fds[1], &m, 0) == 80 && !memcmp(a, "xyx", 3));
	CHECK(m.msg_namelen == 0 && m.msg_controllen == 0 && m.msg_flags == 0);
	CHECK(write(fds[0], "z", 1) == 1);
	CHECK(recvfrom(fds[1], b, 10, 0, (struct sockaddr *)&from, &n) == 1 && n == 0);
	CHECK(readv(fds[1], iov, 0) == 0);
	CHECK(mode_of(fds[1]) == ET_MODE_FAST);
	close_pair(fds);
}

static void *trickle(void *arg)
{
	int fd = *(int *)arg;

	for (int i = 0; i < 10; i++) {
		usleep(2000);
		CHECK(write(fd, "0123456789", 10) == 10);
	}
	return NULL;
}

static void test_waitall(void)
{
	char buf[100];
	pthread_t thread;
	int fds[2];

	fast_pair(fds);
	CHECK(pthread_create(&thread, NULL, trickle, &fds[0]) == 0);
	CHECK(recv(fds[1], buf, sizeof(buf), MSG_WAITALL) == sizeof(buf));
	CHECK(!memcmp(buf + 90, "0123456789", 10));
	pthread_join(thread, NULL);
	close_pair(fds);
}

static void *drain_all(void *arg)
{
	static char buf[65536];
	unsigned long sum = 0;
	ssize_t n;

	usleep(20000);
	while ((n = read(*(int *)arg, buf, sizeof(buf))) > 0)
		for (ssize_t i = 0; i < n; i++)
			sum += (unsigned char)buf[i];
	*(int *)arg = (int)sum;
	return NULL;
}

/* A blocking write takes everything, however long that lasts. */
static void test_large_write(void)
{
	const size_t size = 8 << 20;
	unsigned char *data = malloc(size);
	unsigned long sum = 0;
	pthread_t thread;
	int fds[2], reader;

	fast_pair(fds);
	for (size_t i = 0; i < size; i++)
		sum += data[i] = (unsigned char)(i * 7 + i / 256);
	reader = fds[1];
	CHECK(pthread_create(&thread, NULL, drain_all, &reader) == 0);
	CHECK(write(fds[0], data, size) == (ssize_t)size);
	CHECK(mode_of(fds[0]) == ET_MODE_FAST);
	CHECK(shutdown(fds[0], SHUT_WR) == 0);
	pthread_join(thread, NULL);
	CHECK(reader == (int)sum);
	close_pair(fds);
	free(data);
}

static void test_timeouts(void)
{
	struct timeval t = {.tv_usec = 20000};
	static char buf[1 << 20];
	uint64_t start;
	int fds[2];
	ssize_t n;

	fast_pair(fds);
	CHECK(setsockopt(fds[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t)) == 0);
	CHECK(setsockopt(fds[0], SOL_SOCKET, SO_SNDTIMEO, &t, sizeof(t)) == 0);
	CHECK(mode_of(fds[0]) == ET_MODE_FAST);
	start = et_now_ns();
	CHECK_ERR(read(fds[0], buf, 1), EAGAIN);
	CHECK(et_now_ns() - start >= 20000000 && et_now_ns() - start < 1000000000);
	do
		n = write(fds[0], buf, sizeof(buf));
	while (n > 0);
	CHECK(n == -1 && errno == EAGAIN);
	close_pair(fds);
}

static void on_signal(int sig)
{
	(void)sig;
}

static void *interrupt_and_write(void *arg)
{
	void **args = arg;

	usleep(20000);
	pthread_kill((pthread_t)args[0], SIGUSR1);
	usleep(20000);
	CHECK(write((int)(long)args[1], "x", 1) == 1);
	return NULL;
}

static void test_signals(void)
{
	struct sigaction a = {.sa_handler = on_signal};
	void *args[2] = {(void *)pthread_self(), NULL};
	pthread_t thread;
	int fds[2];
	char c;

	fast_pair(fds);
	args[1] = (void *)(long)fds[1];
	CHECK(sigaction(SIGUSR1, &a, NULL) == 0);
	CHECK(pthread_create(&thread, NULL, interrupt_and_write, args) == 0);
	CHECK_ERR(read(fds[0], &c, 1), EINTR);
	CHECK(read(fds[0], &c, 1) == 1);
	pthread_join(thread, NULL);
	a.sa_flags = SA_RESTART;
	CHECK(sigaction(SIGUSR1, &a, NULL) == 0);
	CHECK(pthread_create(&thread, NULL, interrupt_and_write, args) == 0);
	CHECK(read(fds[0], &c, 1) == 1);
	pthread_join(thread, NULL);
	CHECK(mode_of(fds[0]) == ET_MODE_FAST);
	close_pair(fds);
}

static void *read_forever(void *arg)
{
	char c;

	while (read(*(int *)arg, &c, 1) == 1)
		;
	return NULL;
}

/* A cancelled thread leaves nothing behind. */
static void test_cancel(void)
{
	pthread_t thread;
	void *result;
	int fds[2];

	fast_pair(fds);
	CHECK(pthread_create(&thread, NULL, read_forever, &fds[0]) == 0);
	usleep(20000);
	CHECK(pthread_cancel(thread) == 0);
	CHECK(pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
	CHECK(atomic_load(&waiters) == NULL);
	exchange(fds[0], fds[1]);
	close_pair(fds);
}

static void test_end(void)
{
	char c;
	int fds[2];

	signal(SIGPIPE, SIG_IGN);
	fast_pair(fds);
	CHECK(write(fds[0], "x", 1) == 1 && close(fds[0]) == 0);
	CHECK(read(fds[1], &c, 1) == 1);
	CHECK(read(fds[1], &c, 1) == 0 && read(fds[1], &c, 1) == 0);
	CHECK(write(fds[1], "x", 1) == 1);
	usleep(1000);
	CHECK_ERR(write(fds[1], "x", 1), EPIPE);
	close(fds[1]);

	/* The daemon could not restore the socket. */
	fast_pair(fds);
	fake.fail_demote = 1;
	CHECK_ERR(recv(fds[0], &c, 1, MSG_OOB), ECONNRESET);
	CHECK(read(fds[0], &c, 1) == 0);
	CHECK_ERR(write(fds[0], "x", 1), EPIPE);
	close_pair(fds);
}

static void test_options(void)
{
	int fds[2], value = 0, one = 1;
	socklen_t n = sizeof(value);

	fast_pair(fds);
	CHECK(getsockopt(fds[0], SOL_SOCKET, SO_KEEPALIVE, &value, &n) == 0 && value == 1);
	CHECK(getsockopt(fds[0], IPPROTO_TCP, TCP_USER_TIMEOUT, &value, &n) == 0 && value == 4711);
	CHECK(setsockopt(fds[0], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) == 0);
	CHECK(write(fds[1], "abc", 3) == 3);
	usleep(1000);
	CHECK(ioctl(fds[0], FIONREAD, &value) == 0 && value == 3);
	CHECK(ioctl(fds[0], TIOCOUTQ, &value) == 0 && value == 0);
	CHECK(ioctl(fds[0], FIONBIO, &one) == 0);
	CHECK(mode_of(fds[0]) == ET_MODE_FAST);
	CHECK(setsockopt(fds[0], SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one)) == 0);
	CHECK(mode_of(fds[0]) == ET_MODE_KERNEL);
	close_pair(fds);
}

static void test_dup(void)
{
	int fds[2], copy;

	fast_pair(fds);
	copy = dup(fds[0]);
	CHECK(mode_of(copy) == ET_MODE_FAST && close(fds[0]) == 0);
	exchange(copy, fds[1]);
	CHECK(mode_of(copy) == ET_MODE_FAST);
	/* Over a fast socket: the peer sees its end. */
	CHECK(dup2(0, copy) == copy && !et_fd_entry(copy));
	CHECK(read(fds[1], &copy, 1) == 0);
	close(copy);
	close(fds[1]);
}

static void test_poll(void)
{
	struct pollfd p[2];
	struct timeval t = {.tv_usec = 10000};
	int fds[2], pipes[2];
	fd_set in, out;
	char c;

	fast_pair(fds);
	CHECK(pipe(pipes) == 0);
	p[0] = (struct pollfd){.fd = fds[0], .events = POLLIN};
	p[1] = (struct pollfd){.fd = pipes[0], .events = POLLIN};
	CHECK(poll(p, 2, 5) == 0);
	CHECK(write(pipes[1], "x", 1) == 1 && write(fds[1], "x", 1) == 1);
	usleep(1000);
	CHECK(poll(p, 2, 1000) == 2 && p[0].revents == POLLIN && p[1].revents == POLLIN);
	p[0].events = POLLOUT;
	CHECK(poll(p, 1, 1000) == 1 && p[0].revents == POLLOUT);
	FD_ZERO(&in);
	FD_ZERO(&out);
	FD_SET(fds[0], &in);
	FD_SET(fds[1], &in);
	FD_SET(fds[0], &out);
	CHECK(select(fds[1] + 1, &in, &out, NULL, NULL) == 2);
	CHECK(FD_ISSET(fds[0], &in) && !FD_ISSET(fds[1], &in) && FD_ISSET(fds[0], &out));
	CHECK(read(fds[0], &c, 1) == 1);
	FD_ZERO(&in);
	FD_SET(fds[0], &in);
	CHECK(select(fds[0] + 1, &in, NULL, NULL, &t) == 0 && !FD_ISSET(fds[0], &in));
	CHECK(t.tv_sec == 0 && t.tv_usec == 0);
	CHECK(mode_of(fds[0]) == ET_MODE_FAST);
	close_pair(fds);
	close(pipes[0]);
	close(pipes[1]);
}

/* A child uses, or only drops, its parent's connection. */
static void test_fork(void)
{
	int fds[2], status;
	pid_t pid;
	char c;

	fast_pair(fds);
	pid = fork();
	if (pid == 0) {
		CHECK(mode_of(fds[0]) == ET_MODE_FOREIGN);
		CHECK(close(fds[1]) == 0);
		CHECK(write(fds[0], "c", 1) == 1 && mode_of(fds[0]) == ET_MODE_KERNEL);
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid && status == 0);
	CHECK(read(fds[1], &c, 1) == 1 && c == 'c');
	CHECK(mode_of(fds[0]) == ET_MODE_FAST);
	close_pair(fds);
}

/* While a child may hold the file, the kernel keeps it; not afterwards. */
static void test_fork_shares(void)
{
	int fds[2], hold[2];
	pid_t pid;
	char c;

	tcp_pair(fds);
	CHECK(pipe(hold) == 0);
	pid = fork();
	if (pid == 0) {
		CHECK(close(hold[1]) == 0);
		_exit((int)read(hold[0], &c, 1));
	}
	et_please(NULL, true, ETRAN_PATH_OK);
	for (int i = 0; i < 20; i++)
		exchange(fds[0], fds[1]);
	CHECK(mode_of(fds[0]) == ET_MODE_KERNEL);
	close(hold[1]);
	CHECK(waitpid(pid, NULL, 0) == pid);
	et_please(NULL, true, ETRAN_PATH_OK);
	promote(fds);
	close_pair(fds);
	close(hold[0]);
}

/* A child that took its parent's connection over may have it fast. */
static void test_fork_inherits(void)
{
	int fds[2], status;
	pid_t pid;

	tcp_pair(fds);
	CHECK(atomic_load(&fake.inherited) == 0);
	pid = fork();
	if (pid == 0) {
		fake.up = true; /* it registers by itself */
		promote(fds);
		CHECK(atomic_load(&fake.inherited) == 2);
		_exit(0);
	}
	close_pair(fds);
	CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

/* printf() would go past us: what is a standard stream is the kernel's. */
static void test_streams(void)
{
	int fds[2], saved = dup(STDIN_FILENO);

	fast_pair(fds);
	CHECK(dup2(fds[0], STDIN_FILENO) == STDIN_FILENO);
	CHECK(mode_of(fds[0]) == ET_MODE_KERNEL);
	et_please(NULL, true, ETRAN_PATH_OK);
	for (int i = 0; i < 20; i++)
		exchange(STDIN_FILENO, fds[1]);
	CHECK(mode_of(fds[0]) == ET_MODE_KERNEL);
	CHECK(dup2(saved, STDIN_FILENO) == STDIN_FILENO && close(saved) == 0);
	close_pair(fds);
}

/* A regular file stays on the fast path; of anything else the kernel knows more. */
static void test_sendfile(void)
{
	int fds[2], pipes[2], file = memfd_create("file", 0);
	char text[40000], got[sizeof(text)];
	off_t at = 10;

	for (size_t i = 0; i < sizeof(text); i++)
		text[i] = (char)(i * 7 + i / 256);
	CHECK(write(file, text, sizeof(text)) == sizeof(text) && lseek(file, 100, SEEK_SET) == 100);
	fast_pair(fds);
	CHECK(sendfile(fds[0], file, &at, 20) == 20 && at == 30);
	CHECK(recv(fds[1], got, 20, MSG_WAITALL) == 20 && !memcmp(got, text + 10, 20));
	CHECK(sendfile(fds[0], file, NULL, 1 << 30) == sizeof(text) - 100);
	CHECK(lseek(file, 0, SEEK_CUR) == sizeof(text));
	CHECK(recv(fds[1], got, sizeof(text) - 100, MSG_WAITALL) == sizeof(text) - 100);
	CHECK(!memcmp(got, text + 100, sizeof(text) - 100));
	CHECK(sendfile(fds[0], file, NULL, 1) == 0);
	at = -1;
	CHECK_ERR(sendfile(fds[0], file, &at, 1), EINVAL);
	CHECK(mode_of(fds[0]) == ET_MODE_FAST);
	CHECK(pipe(pipes) == 0);
	CHECK_ERR(sendfile(fds[0], pipes[0], NULL, 1), EINVAL);
	CHECK(mode_of(fds[0]) == ET_MODE_KERNEL);
	close_pair(fds);
	close(pipes[0]);
	close(pipes[1]);
	close(file);
}

/* A new program must find a socket that works. */
static void test_spawn(void)
{
	char *argv[] = {"sh", "-c", "head -c 3 <&9 >/dev/null; echo out >&9", NULL};
	int fds[2], status;
	char buf[8];
	pid_t pid;

	CHECK(dup2(STDERR_FILENO, 9) == 9); /* so that neither end gets it */
	fast_pair(fds);
	CHECK(write(fds[1], "abcdef", 6) == 6);
	CHECK(dup2(fds[0], 9) == 9);
	CHECK(posix_spawnp(&pid, "sh", NULL, NULL, argv, environ) == 0);
	CHECK(mode_of(fds[0]) == ET_MODE_KERNEL);
	CHECK(waitpid(pid, &status, 0) == pid && status == 0);
	CHECK(read(fds[1], buf, 8) == 4 && !memcmp(buf, "out\n", 4));
	close(9);
	close_pair(fds);
}

int main(void)
{
	surface_init();
	test_flags();
	test_messages();
	test_waitall();
	test_large_write();
	test_timeouts();
	test_signals();
	test_cancel();
	test_end();
	test_options();
	test_dup();
	test_poll();
	test_fork();
	test_fork_shares();
	test_fork_inherits();
	test_streams();
	test_sendfile();
	test_spawn();
	puts("ok");
	return 0;
}
