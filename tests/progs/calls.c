// SPDX-License-Identifier: Apache-2.0
/*
 * Times calls on descriptors that are no TCP sockets, in a process that has one:
 * a line per call with its name and nanoseconds, the least of several rounds.
 */
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define ROUNDS 15
#define CALLS 20000

static int null, epfd, pair[2];
static char buf[16];
static struct epoll_event event;
static struct pollfd set;

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

/* The least time is the one that nothing else was in. */
#define TIME(name, call)                                                                           \
	do {                                                                                       \
		double least = 1e18;                                                               \
                                                                                                   \
		for (int round = 0; round < ROUNDS; round++) {                                     \
			double start = now();                                                      \
                                                                                                   \
			for (int i = 0; i < CALLS; i++)                                            \
				sum += (long)(call);                                               \
			start = (now() - start) / CALLS;                                           \
			if (start < least)                                                         \
				least = start;                                                     \
		}                                                                                  \
		printf("%s %.1f\n", name, least);                                                  \
	} while (0)

int main(void)
{
	long sum = 0;
	socklen_t n = sizeof(int);
	int on;

	null = open("/dev/null", O_RDWR);
	epfd = epoll_create1(0);
	/* The library has a table once there is such a socket. */
	if (null < 0 || epfd < 0 || socket(AF_INET, SOCK_STREAM, 0) < 0 ||
	    socketpair(AF_UNIX, SOCK_DGRAM, 0, pair))
		return 1;
	set = (struct pollfd){.fd = pair[0], .events = POLLIN};
	TIME("read", read(null, buf, sizeof(buf)));
	TIME("write", write(null, buf, sizeof(buf)));
	TIME("recv", recv(pair[0], buf, sizeof(buf), MSG_DONTWAIT));
	TIME("poll", poll(&set, 1, 0));
	TIME("epoll_wait", epoll_wait(epfd, &event, 1, 0));
	TIME("fcntl", fcntl(null, F_GETFL));
	TIME("ioctl", ioctl(pair[0], FIONREAD, &on));
	TIME("getsockopt", getsockopt(pair[0], SOL_SOCKET, SO_TYPE, &on, &n));
	TIME("close", close(-1));
	TIME("syscall", syscall(SYS_getppid));
	return sum == 42;
}
