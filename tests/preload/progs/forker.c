// SPDX-License-Identifier: Apache-2.0
/*
 * Uses TCP, forks without exec, and uses TCP on both sides, three generations
 * deep. Then the other ways to make a process: vfork, posix_spawn, clone.
 */
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define GENERATIONS 3

extern char **environ;

static void check(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		_exit(1);
	}
}

/* One connection to ourselves over the loopback device, one message each way. */
static void exchange(void)
{
	struct sockaddr_in addr = {.sin_family = AF_INET};
	socklen_t len = sizeof(addr);
	int server = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0), fd;
	char buf[8] = "";

	addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	check(server >= 0 && client >= 0, "socket");
	check(bind(server, (struct sockaddr *)&addr, len) == 0, "bind");
	check(listen(server, 1) == 0, "listen");
	check(getsockname(server, (struct sockaddr *)&addr, &len) == 0, "getsockname");
	check(connect(client, (struct sockaddr *)&addr, len) == 0, "connect");
	fd = accept(server, NULL, NULL);
	check(fd >= 0, "accept");
	check(write(client, "ping", 4) == 4, "write");
	check(read(fd, buf, sizeof(buf)) == 4 && !memcmp(buf, "ping", 4), "read");
	check(send(fd, "pong", 4, 0) == 4, "send");
	check(recv(client, buf, sizeof(buf), 0) == 4 && !memcmp(buf, "pong", 4), "recv");
	close(fd);
	close(client);
	close(server);
}

static void await(pid_t pid, const char *what)
{
	int status = -1;

	check(pid > 0 && waitpid(pid, &status, 0) == pid, what);
	if (status != 0) {
		fprintf(stderr, "%s: status %#x\n", what, status);
		_exit(1);
	}
}

static void generation(int left)
{
	pid_t pid;

	exchange();
	if (left == 0)
		return;
	pid = fork();
	if (pid == 0) {
		generation(left - 1);
		_exit(0);
	}
	exchange();
	await(pid, "fork");
}

static void other_ways(const char *self)
{
	char *const args[] = {(char *)self, "child", NULL};
	pid_t pid;

	pid = vfork();
	if (pid == 0) {
		execv(self, args);
		_exit(127);
	}
	await(pid, "vfork");
	check(posix_spawn(&pid, self, NULL, NULL, args, environ) == 0, "posix_spawn");
	await(pid, "posix_spawn");
	pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (pid == 0) {
		exchange();
		_exit(0);
	}
	await(pid, "clone");
}

int main(int argc, char **argv)
{
	alarm(30);
	if (argc > 1) {
		exchange();
		return 0;
	}
	generation(GENERATIONS);
	other_ways(argv[0]);
	puts("done");
	return 0;
}
