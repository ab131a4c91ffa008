// SPDX-License-Identifier: Apache-2.0
/*
 * symbols NAME ADDRESS PORT [check]: use one libc name on a connection that is on
 * the fast path, and see that it does what it says.
 *
 * The peer echoes. The program exchanges octets until a line on standard input
 * says that the connection is fast, does the case, writes "done", and ends with
 * the end of standard input. With `check` it also looks where the name leads.
 * What must get around the library is done by system calls of its own.
 */
#include <aio.h>
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../progs/raw.h"

/* Longer than anything that works, shorter than the starter's patience. */
#define CASE_SECONDS 20
#define HELLO "hello"
#define N 5
#define STACK (64 * 1024)

extern char **environ;
static const char *self;
static int fd = -1; /* the connection */

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	_exit(1);
}

#define CHECK(x)                                                                                   \
	do {                                                                                       \
		if (!(x))                                                                          \
			fail(#x);                                                                  \
	} while (0)

/* ---- cases --------------------------------------------------------------- */

#define MAX_CASES 256
static struct named {
	const char *name;
	void (*run)(void);
} cases[MAX_CASES];
static int case_count;

static void add_case(const char *name, void (*run)(void))
{
	if (case_count < MAX_CASES)
		cases[case_count++] = (struct named){name, run};
}

#define CASE(name)                                                                                 \
	static void case_##name(void);                                                             \
	static void __attribute__((constructor)) add_##name(void)                                  \
	{                                                                                          \
		add_case(#name, case_##name);                                                      \
	}                                                                                          \
	static void case_##name(void)

/* ---- sending: the echo must come ----------------------------------------- */

static void expect_echo(int from)
{
	char buf[N];

	CHECK(recv(from, buf, N, MSG_WAITALL) == N && !memcmp(buf, HELLO, N));
}

/* libc's names that its headers do not have. */
ssize_t __read(int, void *, size_t);
ssize_t __write(int, const void *, size_t);
ssize_t __send(int, const void *, size_t, int);
ssize_t __read_chk(int, void *, size_t, size_t);
ssize_t __recv_chk(int, void *, size_t, size_t, int);
ssize_t __recvfrom_chk(int, void *, size_t, size_t, int, void *, socklen_t *);
int __connect(int, const struct sockaddr *, socklen_t);
int __close(int);
int __dup2(int, int);
int __fcntl(int, int, ...);
int __poll(struct pollfd *, nfds_t, int);
int __poll_chk(struct pollfd *, nfds_t, int, size_t);
int __ppoll_chk(struct pollfd *, nfds_t, const struct timespec *, const sigset_t *, size_t);
int __select(int, fd_set *, fd_set *, fd_set *, struct timeval *);
int __pipe(int *);
int __open(const char *, int, ...);
int __open64(const char *, int, ...);
int __open_2(const char *, int);
int __open64_2(const char *, int);
int __openat_2(int, const char *, int);
int __openat64_2(int, const char *, int);
int __vdprintf_chk(int, int, const char *, va_list);
int __dprintf_chk(int, int, const char *, ...);
int __clone(int (*)(void *), void *, int, void *, ...);
pid_t __vfork(void);
int __sigaction(int, const struct sigaction *, struct sigaction *);
sighandler_t __sysv_signal(int, sighandler_t);
sighandler_t bsd_signal(int, sighandler_t);

static struct iovec hello = {HELLO, N};
static struct mmsghdr hello_msg = {.msg_hdr = {.msg_iov = &hello, .msg_iovlen = 1}};

/* libc's own, for the resolver: nobody can link with it. */
static ssize_t private_sendmmsg(void)
{
	int (*f)(int, struct mmsghdr *, unsigned int, int) =
		(int (*)(int, struct mmsghdr *, unsigned int, int))dlsym(RTLD_DEFAULT,
									 "__sendmmsg");

	CHECK(f);
	return f(fd, &hello_msg, 1, 0) * N;
}

static int hello_file(void)
{
	int file = memfd_create("hello", MFD_CLOEXEC);

	CHECK(file >= 0 && write(file, HELLO, N) == N && lseek(file, 0, SEEK_SET) == 0);
	return file;
}

static ssize_t spliced(void)
{
	int ends[2];

	CHECK(pipe(ends) == 0 && write(ends[1], HELLO, N) == N);
	return splice(ends[0], NULL, fd, NULL, N, 0);
}

static ssize_t formatted(int (*f)(int, const char *, va_list), ...)
{
	va_list args;
	ssize_t n;

	va_start(args, f);
	n = f(fd, "%s", args);
	va_end(args);
	return n;
}

static ssize_t formatted_checked(const char *text, ...)
{
	va_list args;
	ssize_t n;

	va_start(args, text);
	n = __vdprintf_chk(fd, 1, text, args);
	va_end(args);
	return n;
}

#define SENDS(name, call)                                                                          \
	CASE(name)                                                                                 \
	{                                                                                          \
		CHECK((call) == N);                                                                \
		expect_echo(fd);                                                                   \
	}

SENDS(write, write(fd, HELLO, N))
SENDS(__write, __write(fd, HELLO, N))
SENDS(writev, writev(fd, &hello, 1))
SENDS(pwritev2, pwritev2(fd, &hello, 1, -1, 0))
SENDS(pwritev64v2, pwritev64v2(fd, &hello, 1, -1, 0))
SENDS(send, send(fd, HELLO, N, 0))
SENDS(__send, __send(fd, HELLO, N, 0))
SENDS(sendto, sendto(fd, HELLO, N, 0, NULL, 0))
SENDS(sendmsg, sendmsg(fd, &hello_msg.msg_hdr, 0))
SENDS(sendmmsg, sendmmsg(fd, &hello_msg, 1, 0) * N)
SENDS(__sendmmsg, private_sendmmsg())
SENDS(sendfile, sendfile(fd, hello_file(), NULL, N))
SENDS(sendfile64, sendfile64(fd, hello_file(), NULL, N))
SENDS(splice, spliced())
SENDS(dprintf, dprintf(fd, "%s", HELLO))
SENDS(vdprintf, formatted(vdprintf, HELLO))
SENDS(__dprintf_chk, __dprintf_chk(fd, 1, "%s", HELLO))
SENDS(__vdprintf_chk, formatted_checked("%s", HELLO))

/* By another descriptor. */
#define COPIES(name, call)                                                                         \
	CASE(name)                                                                                 \
	{                                                                                          \
		int copy = call;                                                                   \
                                                                                                   \
		CHECK(copy >= 0 && send(copy, HELLO, N, 0) == N);                                  \
		expect_echo(fd);                                                                   \
	}

COPIES(dup, dup(fd))
COPIES(dup2, dup2(fd, 40))
COPIES(__dup2, __dup2(fd, 40))
COPIES(dup3, dup3(fd, 40, 0))
COPIES(fcntl, fcntl(fd, F_DUPFD, 40))
COPIES(__fcntl, __fcntl(fd, F_DUPFD_CLOEXEC, 40))
COPIES(fcntl64, fcntl64(fd, F_DUPFD, 40))

/* ---- receiving ----------------------------------------------------------- */

static char buf[64];
static struct iovec into = {buf, N};
static struct mmsghdr into_msg = {.msg_hdr = {.msg_iov = &into, .msg_iovlen = 1}};

#define RECEIVES(name, call)                                                                       \
	CASE(name)                                                                                 \
	{                                                                                          \
		CHECK(send(fd, HELLO, N, 0) == N);                                                 \
		CHECK((call) == N && !memcmp(buf, HELLO, N));                                      \
	}

RECEIVES(read, read(fd, buf, N))
RECEIVES(__read, __read(fd, buf, N))
RECEIVES(__read_chk, __read_chk(fd, buf, N, sizeof(buf)))
RECEIVES(readv, readv(fd, &into, 1))
RECEIVES(preadv2, preadv2(fd, &into, 1, -1, 0))
RECEIVES(preadv64v2, preadv64v2(fd, &into, 1, -1, 0))
RECEIVES(recv, recv(fd, buf, N, 0))
RECEIVES(__recv_chk, __recv_chk(fd, buf, N, sizeof(buf), 0))
RECEIVES(recvfrom, recvfrom(fd, buf, N, 0, NULL, NULL))
RECEIVES(__recvfrom_chk, __recvfrom_chk(fd, buf, N, sizeof(buf), 0, NULL, NULL))
RECEIVES(recvmsg, recvmsg(fd, &into_msg.msg_hdr, 0))
RECEIVES(recvmmsg, recvmmsg(fd, &into_msg, 1, 0, NULL) * N)

/* ---- readiness ----------------------------------------------------------- */

static struct pollfd readable(void)
{
	return (struct pollfd){.fd = fd, .events = POLLIN};
}

static fd_set *fd_alone(void)
{
	static fd_set set;

	FD_ZERO(&set);
	FD_SET(fd, &set);
	return &set;
}

static const struct timespec two_seconds = {.tv_sec = 2};

static int selects(int (*f)(int, fd_set *, fd_set *, fd_set *, struct timeval *))
{
	struct timeval t = {.tv_sec = 2};

	return f(fd + 1, fd_alone(), NULL, NULL, &t);
}

#define WAITS(name, call)                                                                          \
	CASE(name)                                                                                 \
	{                                                                                          \
		struct pollfd p __attribute__((unused)) = readable();                              \
                                                                                                   \
		CHECK(send(fd, HELLO, N, 0) == N);                                                 \
		CHECK((call) == 1);                                                                \
		expect_echo(fd);                                                                   \
	}

WAITS(poll, poll(&p, 1, 2000))
WAITS(__poll, __poll(&p, 1, 2000))
WAITS(__poll_chk, __poll_chk(&p, 1, 2000, sizeof(p)))
WAITS(ppoll, ppoll(&p, 1, &two_seconds, NULL))
WAITS(__ppoll_chk, __ppoll_chk(&p, 1, &two_seconds, NULL, sizeof(p)))
WAITS(select, selects(select))
WAITS(__select, selects(__select))
WAITS(pselect, pselect(fd + 1, fd_alone(), NULL, NULL, &two_seconds, NULL))

static int add_to(int set)
{
	struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};

	CHECK(set >= 0 && epoll_ctl(set, EPOLL_CTL_ADD, fd, &e) == 0);
	return set;
}

static struct epoll_event got[1];

WAITS(epoll_create, epoll_wait(add_to(epoll_create(1)), got, 1, 2000))
WAITS(epoll_create1, epoll_wait(add_to(epoll_create1(0)), got, 1, 2000))
WAITS(epoll_ctl, epoll_wait(add_to(epoll_create1(0)), got, 1, 2000))
WAITS(epoll_wait, epoll_wait(add_to(epoll_create1(0)), got, 1, 2000))
WAITS(epoll_pwait, epoll_pwait(add_to(epoll_create1(0)), got, 1, 2000, NULL))
WAITS(epoll_pwait2, epoll_pwait2(add_to(epoll_create1(0)), got, 1, &two_seconds, NULL))

/* ---- options ------------------------------------------------------------- */

static int keepalive(void)
{
	int on = -1;
	socklen_t n = sizeof(on);

	CHECK(getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, &n) == 0);
	return on;
}

CASE(ioctl)
{
	struct pollfd p = readable();
	int n = 0;

	CHECK(send(fd, HELLO, N, 0) == N && poll(&p, 1, 5000) == 1);
	for (int i = 0; i < 2000 && n < N; i++) {
		CHECK(ioctl(fd, FIONREAD, &n) == 0);
		usleep(1000);
	}
	CHECK(n == N);
	expect_echo(fd);
}

/* It is off on the socket that sleeps. */
CASE(getsockopt)
{
	CHECK(keepalive() == 1);
}

CASE(setsockopt)
{
	int off = 0, mark;

	CHECK(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &off, sizeof(off)) == 0);
	CHECK(ioctl(fd, SIOCATMARK, &mark) == 0); /* back to the kernel */
	CHECK(keepalive() == 0);
}

CASE(fdopen)
{
	char line[16] = "";
	FILE *f = fdopen(fd, "r+");

	CHECK(f && fputs("hello\n", f) >= 0 && fflush(f) == 0);
	CHECK(fgets(line, sizeof(line), f) && !strcmp(line, "hello\n"));
	CHECK(fclose(f) == 0);
	fd = -1;
}

/* What they say is the same on both paths, but not in the middle of a switch. */
static void check_names(void)
{
	struct sockaddr_in a;
	socklen_t n = sizeof(a);

	CHECK(getpeername(fd, (struct sockaddr *)&a, &n) == 0 && n == sizeof(a));
	CHECK(getsockname(fd, (struct sockaddr *)&a, &n) == 0 && n == sizeof(a));
	CHECK(bind(fd, (struct sockaddr *)&a, n) == -1 && errno == EINVAL);
}

CASE(bind)
{
	check_names();
}

CASE(getsockname)
{
	check_names();
}

CASE(getpeername)
{
	check_names();
}

/* ---- the end ------------------------------------------------------------- */

CASE(shutdown)
{
	CHECK(send(fd, HELLO, N, 0) == N && shutdown(fd, SHUT_WR) == 0);
	expect_echo(fd);
	CHECK(recv(fd, buf, 1, 0) == 0);
}

/* The starter waits for the end at the peer. */
#define CLOSES(name, call)                                                                         \
	CASE(name)                                                                                 \
	{                                                                                          \
		call;                                                                              \
		fd = -1;                                                                           \
	}

CLOSES(close, CHECK(close(fd) == 0))
CLOSES(__close, CHECK(__close(fd) == 0))
CLOSES(close_range, CHECK(close_range((unsigned int)fd, (unsigned int)fd, 0) == 0))
CLOSES(closefrom, closefrom(fd))

/* ---- processes ----------------------------------------------------------- */

static void await(pid_t pid)
{
	int status = -1;

	CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
}

static int speak(void *arg)
{
	(void)arg;
	_exit(send(fd, HELLO, N, 0) != N);
}

/* The child has the connection given back, which its owner does in a call. */
static void expect_child(pid_t pid)
{
	CHECK(pid > 0);
	expect_echo(fd);
	await(pid);
}

CASE(_Fork)
{
	pid_t pid = _Fork();

	if (pid == 0)
		speak(NULL);
	expect_child(pid);
}

static char stack[STACK] __attribute__((aligned(16)));

CASE(clone)
{
	expect_child(clone(speak, stack + STACK, SIGCHLD, NULL));
}

/* A child that borrows our memory has numbers of its own: fd is its pipe. */
static int ends[2];

static int redirect(void *arg)
{
	(void)arg;
	_exit(dup2(ends[1], fd) != fd || write(fd, HELLO, N) != N || close(fd) != 0 ||
	      socket(AF_INET, SOCK_STREAM, 0) != fd);
}

static void check_redirected(pid_t pid)
{
	await(pid);
	CHECK(fcntl(ends[0], F_SETFL, O_NONBLOCK) == 0);
	CHECK(read(ends[0], buf, N + 1) == N && !memcmp(buf, HELLO, N));
	CHECK(recv(fd, buf, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
	case_send();
}

CASE(vfork)
{
	pid_t pid;

	CHECK(pipe(ends) == 0);
	pid = vfork();
	if (pid == 0)
		redirect(NULL);
	check_redirected(pid);
}

CASE(__vfork)
{
	pid_t pid;

	CHECK(pipe(ends) == 0);
	pid = __vfork();
	if (pid == 0)
		redirect(NULL);
	check_redirected(pid);
}

CASE(__clone)
{
	CHECK(pipe(ends) == 0);
	check_redirected(__clone(redirect, stack + STACK, CLONE_VM | CLONE_VFORK | SIGCHLD, NULL));
}

/* The rest of the program is the daemon's; the starter's child waits for it. */
CASE(daemon)
{
	CHECK(daemon(1, 1) == 0);
	case_send();
}

/* Another program with the connection: it sends, and ours may have the echo. */
static char number[16];
static char *args[] = {"symbols", "as", number, NULL};

static void inherit(void)
{
	snprintf(number, sizeof(number), "%d", fd);
	CHECK(fcntl(fd, F_SETFD, 0) == 0);
}

#define EXECS(name, call)                                                                          \
	CASE(name)                                                                                 \
	{                                                                                          \
		inherit();                                                                         \
		args[1] = "echo";                                                                  \
		call;                                                                              \
		fail(#name);                                                                       \
	}

EXECS(execve, execve(self, args, environ))
EXECS(execv, execv(self, args))
EXECS(execvp, execvp(self, args))
EXECS(execvpe, execvpe(self, args, environ))
EXECS(fexecve, fexecve(open(self, O_RDONLY | O_CLOEXEC), args, environ))
EXECS(execveat, execveat(AT_FDCWD, self, args, environ, 0))
EXECS(execl, execl(self, "symbols", "echo", number, NULL))
EXECS(execlp, execlp(self, "symbols", "echo", number, NULL))
EXECS(execle, execle(self, "symbols", "echo", number, NULL, environ))

static const char *command(void)
{
	static char line[512];

	inherit();
	snprintf(line, sizeof(line), "exec %s say %s", self, number);
	return line;
}

CASE(posix_spawn)
{
	pid_t pid;

	inherit();
	args[1] = "say";
	CHECK(posix_spawn(&pid, self, NULL, NULL, args, environ) == 0);
	await(pid);
	expect_echo(fd);
}

CASE(posix_spawnp)
{
	pid_t pid;

	inherit();
	args[1] = "say";
	CHECK(posix_spawnp(&pid, self, NULL, NULL, args, environ) == 0);
	await(pid);
	expect_echo(fd);
}

CASE(posix_spawn_file_actions_adddup2)
{
	posix_spawn_file_actions_t actions;
	pid_t pid;

	args[1] = "say";
	strcpy(number, "40");
	posix_spawn_file_actions_init(&actions);
	CHECK(posix_spawn_file_actions_adddup2(&actions, fd, 40) == 0);
	CHECK(posix_spawn(&pid, self, &actions, NULL, args, environ) == 0);
	await(pid);
	expect_echo(fd);
}

CASE(system)
{
	CHECK(system(command()) == 0);
	expect_echo(fd);
}

CASE(popen)
{
	FILE *f = popen(command(), "r");

	CHECK(f && pclose(f) == 0);
	expect_echo(fd);
}

/* ---- system calls by number ---------------------------------------------- */

static int threadlike(void *arg)
{
	*(int *)arg = 7;
	return 0;
}

CASE(syscall)
{
	struct pollfd p = readable();
	struct timespec t = {.tv_sec = 100};
	int copy, status, file, set, n = 0, seen = 0;
	pid_t pid;

	CHECK(syscall(SYS_sendto, fd, HELLO, N, 0, NULL, 0) == N);
	CHECK(syscall(SYS_poll, &p, 1, 5000) == 1);
	CHECK(syscall(SYS_recvfrom, fd, buf, N, MSG_WAITALL, NULL, NULL) == N);
	copy = (int)syscall(SYS_dup, fd);
	CHECK(syscall(SYS_write, copy, HELLO, N) == N);
	CHECK(syscall(SYS_ppoll, &p, 1, &t, NULL, 8) == 1 && t.tv_sec < 100);
	CHECK(syscall(SYS_ioctl, fd, FIONREAD, &n) == 0 && n > 0);
	expect_echo(copy);
	set = add_to((int)syscall(SYS_epoll_create1, 0));
	CHECK(syscall(SYS_writev, fd, &hello, 1) == N);
	CHECK(syscall(SYS_epoll_wait, set, got, 1, 5000) == 1);
	expect_echo(fd);
	CHECK(syscall(SYS_close, copy) == 0 && send(copy, "x", 1, 0) == -1 && errno == EBADF);
	/* The number is another file's. */
	CHECK(dup2(fd, 40) == 40 && raw_syscall(SYS_close, 40, 0, 0) == 0);
	file = (int)syscall(SYS_openat, AT_FDCWD, "/dev/null", O_RDWR, 0);
	CHECK(dup2(file, 40) == 40 && send(40, "x", 1, 0) == -1 && errno == ENOTSOCK);
	/* What is not ours goes on as it came, all arguments and the stack. */
	pid = (pid_t)syscall(SYS_fork);
	if (pid == 0)
		speak(NULL);
	expect_child(pid);
	CHECK(syscall(SYS_mmap, NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != -1);
	CHECK(syscall(9999) == -1 && errno == ENOSYS);
	pid = clone(threadlike, stack + STACK, CLONE_VM | SIGCHLD, &seen);
	CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && seen == 7);
}

/* ---- signals ------------------------------------------------------------- */

static volatile sig_atomic_t handled;
static pthread_t reader;

static void on_signal(int sig)
{
	(void)sig;
	handled++;
}

static void set_handler(int sig, int flags)
{
	struct sigaction a = {.sa_handler = on_signal, .sa_flags = flags};

	CHECK(sigaction(sig, &a, NULL) == 0);
}

static void *disturb(void *arg)
{
	(void)arg;
	usleep(200000);
	pthread_kill(reader, SIGUSR1);
	for (int i = 0; i < 1000 && !handled; i++)
		usleep(1000);
	usleep(50000);
	CHECK(send(fd, HELLO, N, 0) == N);
	return NULL;
}

static void *interrupt(void *arg)
{
	(void)arg;
	usleep(200000);
	pthread_kill(reader, SIGUSR2);
	return NULL;
}

/* SIGUSR1 restarts calls, SIGUSR2 interrupts them, and there are both. */
static void both_kinds(void)
{
	pthread_t thread;

	reader = pthread_self();
	CHECK(pthread_create(&thread, NULL, disturb, NULL) == 0);
	expect_echo(fd);
	CHECK(handled == 1 && pthread_join(thread, NULL) == 0);
	CHECK(pthread_create(&thread, NULL, interrupt, NULL) == 0);
	CHECK(recv(fd, buf, 1, 0) == -1 && errno == EINTR);
	CHECK(handled == 2 && pthread_join(thread, NULL) == 0);
}

#define SIGNALS(name, restarting, interrupting)                                                    \
	CASE(name)                                                                                 \
	{                                                                                          \
		restarting;                                                                        \
		interrupting;                                                                      \
		both_kinds();                                                                      \
	}

/* Old, but programs use them. */
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

static struct sigaction plain_action = {.sa_handler = on_signal};

SIGNALS(sigaction, set_handler(SIGUSR1, SA_RESTART), set_handler(SIGUSR2, 0))
SIGNALS(__sigaction, set_handler(SIGUSR1, SA_RESTART), __sigaction(SIGUSR2, &plain_action, NULL))
SIGNALS(signal, signal(SIGUSR1, on_signal), set_handler(SIGUSR2, 0))
SIGNALS(bsd_signal, bsd_signal(SIGUSR1, on_signal), set_handler(SIGUSR2, 0))
SIGNALS(sysv_signal, set_handler(SIGUSR1, SA_RESTART), sysv_signal(SIGUSR2, on_signal))
SIGNALS(__sysv_signal, set_handler(SIGUSR1, SA_RESTART), __sysv_signal(SIGUSR2, on_signal))
SIGNALS(sigset, set_handler(SIGUSR1, SA_RESTART), sigset(SIGUSR2, on_signal))
SIGNALS(siginterrupt, set_handler(SIGUSR1, SA_RESTART),
	(set_handler(SIGUSR2, SA_RESTART), siginterrupt(SIGUSR2, 1)))

/* ---- libc's own threads -------------------------------------------------- */

static char aio_buf[] = HELLO;
static struct aiocb job;

static ssize_t finish(int err)
{
	const struct aiocb *list[] = {&job};

	CHECK(err == 0);
	while (aio_error(&job) == EINPROGRESS)
		aio_suspend(list, 1, NULL);
	return aio_return(&job);
}

static struct aiocb *job_of(int opcode, void *p)
{
	job = (struct aiocb){
		.aio_fildes = fd, .aio_buf = p, .aio_nbytes = N, .aio_lio_opcode = opcode};
	return &job;
}

static struct aiocb *jobs[1];

static ssize_t listed(void)
{
	jobs[0] = job_of(LIO_WRITE, aio_buf);
	return finish(lio_listio(LIO_WAIT, jobs, 1, NULL));
}

static ssize_t listed64(void)
{
	jobs[0] = job_of(LIO_WRITE, aio_buf);
	return finish(lio_listio64(LIO_WAIT, (struct aiocb64 **)jobs, 1, NULL));
}

SENDS(aio_write, finish(aio_write(job_of(0, aio_buf))))
SENDS(aio_write64, finish(aio_write64((struct aiocb64 *)job_of(0, aio_buf))))
SENDS(lio_listio, listed())
SENDS(lio_listio64, listed64())
RECEIVES(aio_read, finish(aio_read(job_of(0, buf))))
RECEIVES(aio_read64, finish(aio_read64((struct aiocb64 *)job_of(0, buf))))

/* ---- new descriptors ----------------------------------------------------- */

/* Closed where the library does not see it; then `made` has the number. */
static void behind(void)
{
	CHECK(raw_syscall(SYS_close, fd, 0, 0) == 0);
}

static void check_made(int made)
{
	CHECK(made == fd);
	CHECK(send(made, "x", 1, 0) == -1 && errno == ENOTSOCK);
	fd = -1;
}

static char path[64];

static char *template(const char *suffix)
{
	snprintf(path, sizeof(path), "/tmp/symbols-XXXXXX%s", suffix);
	return path;
}

static int temporary(int made)
{
	CHECK(made >= 0 && unlink(path) == 0);
	return made;
}

static int first_of(int r, const int *pair)
{
	CHECK(r == 0);
	return pair[0];
}

static const sigset_t *no_signals(void)
{
	static sigset_t set;

	sigemptyset(&set);
	return &set;
}

static int stream(FILE *f)
{
	CHECK(f);
	return fileno(f);
}

#define SHM "/etran-symbols"

static int shared(void)
{
	int made = shm_open(SHM, O_RDWR | O_CREAT, 0600);

	CHECK(shm_unlink(SHM) == 0);
	return made;
}

static int pair[2];

#define CREATES(name, call)                                                                        \
	CASE(name)                                                                                 \
	{                                                                                          \
		behind();                                                                          \
		check_made(call);                                                                  \
	}

CREATES(pipe, first_of(pipe(pair), pair))
CREATES(__pipe, first_of(__pipe(pair), pair))
CREATES(pipe2, first_of(pipe2(pair, 0), pair))
CREATES(open, open("/dev/null", O_RDWR))
CREATES(open64, open64("/dev/null", O_RDWR))
CREATES(__open, __open("/dev/null", O_RDWR))
CREATES(__open64, __open64("/dev/null", O_RDWR))
CREATES(openat, openat(AT_FDCWD, "/dev/null", O_RDWR))
CREATES(openat64, openat64(AT_FDCWD, "/dev/null", O_RDWR))
CREATES(__open_2, __open_2("/dev/null", O_RDWR))
CREATES(__open64_2, __open64_2("/dev/null", O_RDWR))
CREATES(__openat_2, __openat_2(AT_FDCWD, "/dev/null", O_RDWR))
CREATES(__openat64_2, __openat64_2(AT_FDCWD, "/dev/null", O_RDWR))
CREATES(creat, creat("/dev/null", 0600))
CREATES(creat64, creat64("/dev/null", 0600))
CREATES(mkstemp, temporary(mkstemp(template(""))))
CREATES(mkstemp64, temporary(mkstemp64(template(""))))
CREATES(mkostemp, temporary(mkostemp(template(""), O_CLOEXEC)))
CREATES(mkostemp64, temporary(mkostemp64(template(""), O_CLOEXEC)))
CREATES(mkstemps, temporary(mkstemps(template(".x"), 2)))
CREATES(mkstemps64, temporary(mkstemps64(template(".x"), 2)))
CREATES(mkostemps, temporary(mkostemps(template(".x"), 2, O_CLOEXEC)))
CREATES(mkostemps64, temporary(mkostemps64(template(".x"), 2, O_CLOEXEC)))
CREATES(shm_open, shared())
CREATES(memfd_create, memfd_create("x", 0))
CREATES(eventfd, eventfd(0, 0))
CREATES(signalfd, signalfd(-1, no_signals(), 0))
CREATES(timerfd_create, timerfd_create(CLOCK_MONOTONIC, 0))
CREATES(inotify_init, inotify_init())
CREATES(inotify_init1, inotify_init1(0))
CREATES(fanotify_init, fanotify_init(FAN_CLASS_NOTIF, O_RDONLY))
CREATES(pidfd_open, pidfd_open(getpid(), 0))
CREATES(posix_openpt, posix_openpt(O_RDWR | O_NOCTTY))
CREATES(getpt, getpt())
CREATES(fopen, stream(fopen("/dev/null", "r")))
CREATES(fopen64, stream(fopen64("/dev/null", "r")))

CASE(pidfd_getfd)
{
	int pidfd = pidfd_open(getpid(), 0);

	behind();
	check_made(pidfd_getfd(pidfd, STDIN_FILENO, 0));
}

CASE(socketpair)
{
	behind();
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && pair[0] == fd);
	CHECK(send(pair[0], HELLO, N, 0) == N);
	expect_echo(pair[1]);
	fd = -1;
}

/* ---- beyond single names ------------------------------------------------- */

/* A descriptor that comes in a message, with the number of the connection. */
CASE(rights)
{
	char room[CMSG_SPACE(sizeof(int))] = "";
	struct msghdr m = {.msg_iov = &hello,
			   .msg_iovlen = 1,
			   .msg_control = room,
			   .msg_controllen = sizeof(room)};
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	int null = open("/dev/null", O_RDWR);

	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	*c = (struct cmsghdr){CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS};
	memcpy(CMSG_DATA(c), &null, sizeof(null));
	CHECK(sendmsg(pair[0], &m, 0) == N);
	behind();
	m.msg_iov = &into;
	CHECK(recvmsg(pair[1], &m, 0) == N);
	memcpy(&null, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(null));
	check_made(null);
}

static void *listen_once(void *arg)
{
	(void)arg;
	expect_echo(fd);
	return NULL;
}

static int open_descriptors(void)
{
	int n = 0;

	for (int i = 0; i < 4096; i++)
		n += raw_syscall(SYS_fcntl, i, F_GETFD, 0) >= 0;
	return n;
}

/* Threads that slept in a call and are gone leave no descriptors. */
CASE(threads)
{
	int before = 0;

	for (int i = 0; i < 200; i++) {
		pthread_t thread;

		if (i == 10)
			before = open_descriptors();
		CHECK(pthread_create(&thread, NULL, listen_once, NULL) == 0);
		usleep(1000);
		CHECK(send(fd, HELLO, N, 0) == N && pthread_join(thread, NULL) == 0);
	}
	CHECK(open_descriptors() == before);
}

/* ---- how the connection is made ------------------------------------------ */

static const char *name;
static struct sockaddr_in peer = {.sin_family = AF_INET};

static bool is(const char *other)
{
	return !strcmp(name, other);
}

/* The starter connects to the port that it is told. */
static int accept_one(void)
{
	struct sockaddr_in a = {.sin_family = AF_INET};
	socklen_t n = sizeof(a);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), made;

	CHECK(bind(listener, (struct sockaddr *)&a, n) == 0 && listen(listener, 1) == 0);
	CHECK(getsockname(listener, (struct sockaddr *)&a, &n) == 0);
	printf("port %d\n", ntohs(a.sin_port));
	fflush(stdout);
	made = is("accept4") ? accept4(listener, NULL, NULL, SOCK_CLOEXEC)
			     : accept(listener, NULL, NULL);
	CHECK(made >= 0 && fcntl(made, F_SETFD, FD_CLOEXEC) == 0);
	/* The lowest number, as the other cases have it. */
	CHECK(dup3(made, listener, O_CLOEXEC) == listener && close(made) == 0);
	return listener;
}

static int connect_one(void)
{
	const struct sockaddr *to = (const struct sockaddr *)&peer;
	int made = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	CHECK(made >= 0);
	CHECK((is("__connect") ? __connect : connect)(made, to, sizeof(peer)) == 0);
	return made;
}

CASE(socket)
{
	case_send();
}

CASE(connect)
{
	case_send();
}

CASE(__connect)
{
	case_send();
}

CASE(listen)
{
	case_send();
}

CASE(accept)
{
	case_send();
}

CASE(accept4)
{
	case_send();
}

/* ---- the program --------------------------------------------------------- */

/* Exchange octets until the starter says a word. */
static void warm_up(void)
{
	struct pollfd in = {.fd = STDIN_FILENO, .events = POLLIN};
	char c = 'x';

	while (raw_syscall(SYS_poll, (long)&in, 1, 0) == 0) {
		CHECK(send(fd, &c, 1, 0) == 1 && recv(fd, &c, 1, 0) == 1);
		usleep(500);
	}
	CHECK(raw_syscall(SYS_read, STDIN_FILENO, (long)&c, 1) == 1);
}

static void done(void)
{
	char c;

	alarm(0);
	CHECK(raw_syscall(SYS_write, STDOUT_FILENO, (long)"done\n", 5) == 5);
	while (raw_syscall(SYS_read, STDIN_FILENO, (long)&c, 1) == 1)
		;
	_exit(0);
}

static void check_binding(void)
{
	Dl_info info;
	void *found = dlsym(RTLD_DEFAULT, name);

	CHECK(found && dladdr(found, &info) && strstr(info.dli_fname, "libetran.so"));
}

/* daemon() ends the process, and the starter waits for that. */
static void go_behind(void)
{
	int both[2];
	char c;

	CHECK(pipe(both) == 0);
	if (fork() == 0) {
		close(both[0]);
		return;
	}
	close(both[1]);
	CHECK(read(both[0], &c, 1) == 0);
	_exit(0);
}

static void run_case(void)
{
	for (int i = 0; i < case_count; i++)
		if (is(cases[i].name)) {
			cases[i].run();
			return;
		}
	errno = ENOSYS;
	fail(name);
}

int main(int argc, char **argv)
{
	static char exe[256];
	int one = 1;

	CHECK(argc >= 3 && readlink("/proc/self/exe", exe, sizeof(exe) - 1) > 0);
	self = exe;
	name = argv[1];
	alarm(CASE_SECONDS);
	if (is("say") || is("echo")) { /* the program that was started */
		fd = atoi(argv[2]);
		if (is("say"))
			speak(NULL);
		case_send();
		done();
	}
	CHECK(argc >= 4 && inet_pton(AF_INET, argv[2], &peer.sin_addr) == 1);
	peer.sin_port = htons((uint16_t)atoi(argv[3]));
	if (is("daemon"))
		go_behind();
	if (argc > 4)
		check_binding();
	alarm(0);
	fd = is("accept") || is("accept4") || is("listen") ? accept_one() : connect_one();
	CHECK(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) == 0);
	CHECK(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one)) == 0);
	warm_up();
	alarm(CASE_SECONDS);
	run_case();
	done();
}
