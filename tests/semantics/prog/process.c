/* SPDX-License-Identifier: Apache-2.0 */
/* Connections that several processes have. */
#include "semantics.h"

#include <spawn.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

extern char **environ;

static void exchange(int fd)
{
	SENT(write(fd, OUT, 5));
	peer_receive(5);
	peer_send(5);
	GOT(read(fd, in, 10));
}

/* In a child: what it finds goes by its status, since it must not print. */
static pid_t child(int (*f)(int fd), int fd)
{
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid < 0)
		give_up("no child");
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		alarm(10);
		_exit(f(fd));
	}
	return pid;
}

static void ended(pid_t pid)
{
	int status = 0;

	while (waitpid(pid, &status, 0) < 0)
		;
	if (WIFSIGNALED(status))
		say("the child dies of %s", strsignal(WTERMSIG(status)));
	else
		say("the child ends with %d", WEXITSTATUS(status));
}

static int just_exits(int fd)
{
	(void)fd;
	return 7;
}

static int closes(int fd)
{
	return close(fd);
}

static int reads_five(int fd)
{
	long n = recv(fd, in, 5, MSG_WAITALL);

	return n < 0 ? 100 + errno : (int)n;
}

static int writes_five(int fd)
{
	return (int)write(fd, OUT, 5);
}

static int polls(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return poll(&p, 1, 5000) == 1 ? p.revents : 99;
}

static int shuts_down(int fd)
{
	return shutdown(fd, SHUT_WR);
}

static int echoes(int fd)
{
	char buf[5];

	for (int i = 0; i < 3; i++)
		if (recv(fd, buf, 5, MSG_WAITALL) != 5 || write(fd, buf, 5) != 5)
			return 1;
	return 0;
}

static int asks_options(int fd)
{
	int value = 0;
	socklen_t n = sizeof(value);

	if (getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &value, &n))
		return 99;
	return value;
}

static int counts_unread(int fd)
{
	int n = -1;

	return ioctl(fd, FIONREAD, &n) ? 99 : n;
}

static void child_exits(int fd)
{
	ended(child(just_exits, fd));
	exchange(fd);
}

static void child_closes(int fd)
{
	ended(child(closes, fd));
	exchange(fd);
	CALL(close(fd));
	peer_drain();
}

static void child_reads(int fd)
{
	pid_t pid = child(reads_five, fd);

	peer_send(5);
	ended(pid);
	received += 5;
	exchange(fd);
}

static void child_reads_what_was_there(int fd)
{
	peer_send(10);
	await_octets(fd, 10);
	ended(child(reads_five, fd));
	received += 5;
	GOT(read(fd, in, 10));
	exchange(fd);
}

static void child_writes(int fd)
{
	SENT(write(fd, OUT, 5));
	ended(child(writes_five, fd));
	sent += 5;
	SENT(write(fd, OUT, 5));
	peer_receive(15);
	exchange(fd);
}

static void child_polls(int fd)
{
	pid_t pid = child(polls, fd);

	peer_send(5);
	ended(pid);
	GOT(read(fd, in, 10));
}

static void child_shuts_down(int fd)
{
	ended(child(shuts_down, fd));
	peer_drain();
	CALL(send(fd, OUT, 5, MSG_NOSIGNAL));
	peer_send(5);
	GOT(read(fd, in, 5));
}

static void child_asks_options(int fd)
{
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &(int){1}, sizeof(int));
	ended(child(asks_options, fd));
	exchange(fd);
}

static void child_counts_unread(int fd)
{
	peer_send(10);
	await_octets(fd, 10);
	ended(child(counts_unread, fd));
	GOT(read(fd, in, 10));
	exchange(fd);
}

static void child_serves_parent_closes(int fd)
{
	pid_t pid = child(echoes, fd);

	CALL(close(fd));
	for (int i = 0; i < 3; i++) {
		peer_send(5);
		peer_receive(5);
	}
	ended(pid);
	peer_drain();
}

static int exits_by_kill(int fd)
{
	(void)fd;
	raise(SIGKILL);
	return 0;
}

static void child_is_killed(int fd)
{
	ended(child(exits_by_kill, fd));
	exchange(fd);
	CALL(close(fd));
	peer_drain();
}

static int grandchild_reads(int fd)
{
	pid_t pid = fork();
	int status = 0;

	if (pid == 0)
		_exit(reads_five(fd));
	waitpid(pid, &status, 0);
	return WEXITSTATUS(status);
}

static void grandchild(int fd)
{
	pid_t pid = child(grandchild_reads, fd);

	peer_send(5);
	ended(pid);
	received += 5;
	exchange(fd);
}

static int outlives(int fd)
{
	sleep_ms(60);
	return (int)write(fd, OUT, 5);
}

/* Closing in the parent ends nothing as long as the child has it. */
static void child_outlives_close(int fd)
{
	pid_t pid = child(outlives, fd);

	CALL(close(fd));
	peer_receive(5);
	ended(pid);
	peer_drain();
}

static int uses_its_own(int fd)
{
	int pair[2];
	char c;

	(void)fd;
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || write(pair[0], "x", 1) != 1)
		return 1;
	return read(pair[1], &c, 1) == 1 ? 0 : 2;
}

static void child_has_others(int fd)
{
	ended(child(uses_its_own, fd));
	exchange(fd);
}

static int child_epoll(int fd)
{
	struct epoll_event e;

	/* fd is the set. */
	return epoll_wait(fd, &e, 1, 3000) == 1 ? (int)e.events : 99;
}

static void child_waits_in_the_parents_set(int fd)
{
	int ep = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event e = {.events = EPOLLIN};
	pid_t pid;

	epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
	pid = child(child_epoll, ep);
	peer_send(5);
	ended(pid);
	CALL(epoll_wait(ep, &e, 1, 2000));
	GOT(read(fd, in, 10));
	close(ep);
}

/* ---- vfork, exec, spawn ------------------------------------------------------- */

static void vfork_exits(int fd)
{
	pid_t pid = vfork();

	if (pid == 0)
		_exit(3);
	ended(pid);
	exchange(fd);
}

static void vfork_execs(int fd)
{
	pid_t pid = vfork();

	if (pid == 0) {
		execl("/bin/true", "true", NULL);
		_exit(99);
	}
	ended(pid);
	exchange(fd);
}

static void exec_fails(int fd)
{
	char *argv[] = {"nothing", NULL};

	CALL(execve("/nonexistent", argv, environ));
	CALL(execvp("nonexistent-program", argv));
	exchange(fd);
}

static int becomes_cat(int fd)
{
	dup2(fd, STDIN_FILENO);
	dup2(fd, STDOUT_FILENO);
	execl("/bin/cat", "cat", NULL);
	return 99;
}

static void exec_inherits(int fd)
{
	pid_t pid = child(becomes_cat, fd);

	peer_send(20);
	peer_receive(20);
	peer_shutdown(SHUT_WR);
	ended(pid);
	CALL(close(fd));
	peer_drain();
}

static void exec_after_unread(int fd)
{
	pid_t pid;

	peer_send(20);
	await_octets(fd, 20);
	pid = child(becomes_cat, fd);
	peer_receive(20);
	peer_shutdown(SHUT_WR);
	ended(pid);
}

static void spawned(int fd)
{
	char *argv[] = {"cat", NULL};
	posix_spawn_file_actions_t actions;
	pid_t pid;

	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, fd, STDIN_FILENO);
	posix_spawn_file_actions_adddup2(&actions, fd, STDOUT_FILENO);
	CALL(posix_spawn(&pid, "/bin/cat", &actions, NULL, argv, environ));
	posix_spawn_file_actions_destroy(&actions);
	peer_send(20);
	peer_receive(20);
	peer_shutdown(SHUT_WR);
	ended(pid);
}

static void spawned_beside(int fd)
{
	char *argv[] = {"true", NULL};
	pid_t pid;

	CALL(posix_spawnp(&pid, "true", NULL, NULL, argv, environ));
	ended(pid);
	exchange(fd);
	CALL(posix_spawn(&pid, "/nonexistent", NULL, NULL, argv, environ));
	exchange(fd);
}

static void command_beside(int fd)
{
	CALL(system("exit 3") >> 8);
	exchange(fd);
}

static void pipe_to_a_command(int fd)
{
	FILE *f;

	fflush(stdout);
	f = popen("cat > /dev/null", "w");
	CALL(fputs("x", f) >= 0);
	CALL(pclose(f));
	exchange(fd);
}

static void command_has_the_socket(int fd)
{
	char command[100];

	fcntl(fd, F_SETFD, 0);
	snprintf(command, sizeof(command), "printf %%s x >&%d", fd);
	CALL(system(command));
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	settle();
	CALL(close(fd));
}

/* ---- descriptors that are sent --------------------------------------------------- */

static void pass(int to, int fd)
{
	union {
		struct cmsghdr c;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {.c = {.cmsg_len = CMSG_LEN(sizeof(int)),
			   .cmsg_level = SOL_SOCKET,
			   .cmsg_type = SCM_RIGHTS}};
	struct iovec v = {"x", 1};
	struct msghdr m = {.msg_iov = &v,
			   .msg_iovlen = 1,
			   .msg_control = &control,
			   .msg_controllen = sizeof(control)};

	memcpy(CMSG_DATA(&control.c), &fd, sizeof(fd));
	CALL(sendmsg(to, &m, 0));
}

static int passed(int from)
{
	union {
		struct cmsghdr c;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	char c;
	struct iovec v = {&c, 1};
	struct msghdr m = {.msg_iov = &v,
			   .msg_iovlen = 1,
			   .msg_control = &control,
			   .msg_controllen = sizeof(control)};
	int fd = -1;

	if (recvmsg(from, &m, MSG_CMSG_CLOEXEC) == 1 && m.msg_controllen >= CMSG_LEN(sizeof(int)))
		memcpy(&fd, CMSG_DATA(&control.c), sizeof(fd));
	return fd;
}

static void passed_to_itself(int fd)
{
	int pair[2], other;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		give_up("no pair");
	pass(pair[0], fd);
	other = passed(pair[1]);
	exchange(other);
	CALL(close(fd));
	exchange(other);
	CALL(close(other));
	peer_drain();
	close(pair[0]);
	close(pair[1]);
}

static int takes_and_echoes(int from)
{
	int fd = passed(from);

	return fd < 0 ? 98 : echoes(fd);
}

static void passed_to_a_child(int fd)
{
	int pair[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		give_up("no pair");
	pid = child(takes_and_echoes, pair[1]);
	peer_send(5);
	await_octets(fd, 5);
	pass(pair[0], fd);
	CALL(close(fd));
	peer_receive(5);
	for (int i = 0; i < 2; i++) {
		peer_send(5);
		peer_receive(5);
	}
	ended(pid);
	peer_drain();
	close(pair[0]);
	close(pair[1]);
}

static void fetched_by_pidfd(int fd)
{
	int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0), other;

	other = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	say("fetched: %d", other >= 0);
	close(other);
	close(pidfd);
	exchange(fd);
}

const struct test_case process_cases[] = {
	CASE(child_exits),
	CASE(child_closes),
	CASE(child_reads),
	CASE(child_reads_what_was_there),
	CASE(child_writes),
	CASE(child_polls),
	CASE(child_shuts_down),
	CASE(child_asks_options),
	CASE(child_counts_unread),
	CASE(child_serves_parent_closes),
	CASE(child_is_killed),
	CASE(grandchild),
	CASE(child_outlives_close),
	CASE(child_has_others),
	CASE(child_waits_in_the_parents_set),
	CASE(vfork_exits),
	CASE(vfork_execs),
	CASE(exec_fails),
	CASE(exec_inherits),
	CASE(exec_after_unread),
	CASE(spawned),
	CASE(spawned_beside),
	CASE(command_beside),
	CASE(pipe_to_a_command),
	CASE(command_has_the_socket),
	CASE(passed_to_itself),
	CASE(passed_to_a_child),
	CASE(fetched_by_pidfd),
	END_OF_CASES,
};
