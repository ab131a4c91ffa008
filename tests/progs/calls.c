// SPDX-License-Identifier: Apache-2.0
/*
 * Times calls on descriptors that are no TCP sockets, in a process that has one:
 * a line per call with its name and nanoseconds, of libc's function and of what
 * the program would call. The two take turns every few calls; what counts is the
 * median of the turns' differences, so a machine that has other work does not
 * matter much.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define TURNS 2001
#define CALLS 20

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

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *values)
{
	qsort(values, TURNS, sizeof(*values), by_size);
	return values[TURNS / 2];
}

static long sum;
static double plain[TURNS], added[TURNS];

#define TURN(f, args)                                                                              \
	({                                                                                         \
		double start = now();                                                              \
                                                                                                   \
		for (int i = 0; i < CALLS; i++)                                                    \
			sum += (long)f args;                                                       \
		(now() - start) / CALLS;                                                           \
	})

#define TIME(name, args)                                                                           \
	do {                                                                                       \
		__typeof__(&name) libcs = (__typeof__(&name))dlsym(libc, #name), ours = name;      \
                                                                                                   \
		for (int turn = 0; turn < TURNS; turn++) {                                         \
			/* Who is first changes. */                                                \
			double first = turn % 2 ? TURN(ours, args) : 0, one = TURN(libcs, args),   \
			       other = turn % 2 ? first : TURN(ours, args);                        \
                                                                                                   \
			plain[turn] = one;                                                         \
			added[turn] = other - one;                                                 \
		}                                                                                  \
		printf("%s %.1f %.1f\n", #name, median(plain), median(added));                     \
	} while (0)

int main(void)
{
	void *libc = dlopen("libc.so.6", RTLD_LAZY);
	socklen_t n = sizeof(int);
	int on;

	null = open("/dev/null", O_RDWR);
	epfd = epoll_create1(0);
	/* The library has a table once there is such a socket. */
	if (!libc || null < 0 || epfd < 0 || socket(AF_INET, SOCK_STREAM, 0) < 0 ||
	    socketpair(AF_UNIX, SOCK_DGRAM, 0, pair))
		return 1;
	set = (struct pollfd){.fd = pair[0], .events = POLLIN};
	TIME(read, (null, buf, sizeof(buf)));
	TIME(write, (null, buf, sizeof(buf)));
	TIME(recv, (pair[0], buf, sizeof(buf), MSG_DONTWAIT));
	TIME(poll, (&set, 1, 0));
	TIME(epoll_wait, (epfd, &event, 1, 0));
	TIME(fcntl, (null, F_GETFL));
	TIME(ioctl, (pair[0], FIONREAD, &on));
	TIME(getsockopt, (pair[0], SOL_SOCKET, SO_TYPE, &on, &n));
	TIME(close, (-1));
	TIME(syscall, (SYS_getppid));
	return sum == 42;
}
