// SPDX-License-Identifier: Apache-2.0
/*
 * Uses a TCP socket and reports what that changed in the process and should
 * not have: signal dispositions and mask, RLIMIT_NOFILE, the environment,
 * descriptors. Then reports threads other than its own that would take a signal
 * sent to the process. Prints nothing and returns 0 if all is well.
 */
#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SIGNALS 64
#define FDS 256
/* Descriptors below this are the program's by habit; the rest must be CLOEXEC. */
#define FIRST_FOREIGN_FD 10
#define RT_CANCEL 32
#define RT_SETXID 33

extern char **environ;

struct kernel_sigaction {
	void *handler;
	unsigned long flags;
	void *restorer;
	unsigned long mask;
};

struct snapshot {
	struct kernel_sigaction action[SIGNALS + 1];
	unsigned long mask;
	struct rlimit nofile;
	int fd_flags[FDS]; /* -1: not open */
	char env[1 << 16];
};

static int faults;

static void on_signal(int sig)
{
	(void)sig;
}

static void take(struct snapshot *s)
{
	size_t used = 0;

	memset(s, 0, sizeof(*s));
	for (int sig = 1; sig <= SIGNALS; sig++)
		syscall(SYS_rt_sigaction, sig, NULL, &s->action[sig], 8);
	syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &s->mask, 8);
	getrlimit(RLIMIT_NOFILE, &s->nofile);
	for (int fd = 0; fd < FDS; fd++)
		s->fd_flags[fd] = fcntl(fd, F_GETFD);
	for (char **e = environ; *e; e++)
		used += snprintf(s->env + used, sizeof(s->env) - used, "%p %s\n", (void *)*e, *e);
}

static void fault(const char *what, long which)
{
	printf("%s %ld\n", what, which);
	faults++;
}

static void compare(const struct snapshot *a, const struct snapshot *b, int own_fd)
{
	for (int sig = 1; sig <= SIGNALS; sig++) {
		/* glibc's own, installed with the first thread */
		if (sig != RT_CANCEL && sig != RT_SETXID &&
		    memcmp(&a->action[sig], &b->action[sig], sizeof(a->action[sig])))
			fault("disposition changed: signal", sig);
	}
	if (a->mask != b->mask)
		fault("signal mask changed to", b->mask);
	if (memcmp(&a->nofile, &b->nofile, sizeof(a->nofile)))
		fault("RLIMIT_NOFILE changed to", b->nofile.rlim_cur);
	if (strcmp(a->env, b->env))
		fault("environment changed", 0);
	for (int fd = 0; fd < FDS; fd++) {
		if (fd == own_fd || a->fd_flags[fd] == b->fd_flags[fd])
			continue;
		if (fd < FIRST_FOREIGN_FD || a->fd_flags[fd] != -1 ||
		    !(b->fd_flags[fd] & FD_CLOEXEC))
			fault("descriptor changed:", fd);
	}
}

/* Everything that can be blocked, but for the two signals glibc needs. */
static void check_blocked(const char *tid)
{
	const unsigned long never = 1ul << (SIGKILL - 1) | 1ul << (SIGSTOP - 1) |
				    1ul << (RT_CANCEL - 1) | 1ul << (RT_SETXID - 1);
	char path[64], line[256];
	unsigned long blocked;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/task/%.20s/status", tid);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "SigBlk: %lx", &blocked) == 1 && (blocked | never) != ~0ul)
			fault("thread takes signals:", atol(tid));
	}
	if (f)
		fclose(f);
}

/* Returns how many other threads there are. */
static int check_threads(void)
{
	DIR *dir = opendir("/proc/self/task");
	struct dirent *entry;
	int others = 0;

	while (dir && (entry = readdir(dir))) {
		if (entry->d_name[0] == '.' || atol(entry->d_name) == getpid())
			continue;
		others++;
		check_blocked(entry->d_name);
	}
	if (dir)
		closedir(dir);
	return others;
}

int main(int argc, char **argv)
{
	static struct snapshot before, after;
	struct sockaddr_in nobody = {.sin_family = AF_INET, .sin_port = htons(1)};
	struct sigaction sa = {.sa_handler = on_signal};
	int fd;

	nobody.sin_addr.s_addr = htonl(INADDR_LOOPBACK);

	/* Handlers as Redis and nginx install them: without SA_ONSTACK. */
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGCHLD, &sa, NULL);
	sigaction(SIGSEGV, &sa, NULL);
	signal(SIGHUP, SIG_IGN);

	take(&before);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	if (fd < 0) {
		perror("socket");
		return 1;
	}
	connect(fd, (struct sockaddr *)&nobody, sizeof(nobody));
	take(&after);
	compare(&before, &after, fd);
	/* The argument says that eTran's threads are expected. */
	if (check_threads() == 0 && argc > 1 && !strcmp(argv[1], "threads"))
		fault("no thread was started", 0);
	return faults != 0;
}
