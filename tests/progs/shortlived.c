// SPDX-License-Identifier: Apache-2.0
/*
 * shortlived serve PORT: accepts a connection, reads an octet, answers it,
 * closes, and so on. shortlived ask ADDRESS PORT COUNT: makes COUNT such
 * connections, one after the other, and prints how many that is per second.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static struct sockaddr_in at = {.sin_family = AF_INET};
static const struct linger reset = {.l_onoff = 1};

static int fail(const char *what)
{
	perror(what);
	return 1;
}

static int serve(void)
{
	int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1, fd;
	char c;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listener, (struct sockaddr *)&at, sizeof(at)) || listen(listener, 128))
		return fail("listen");
	while ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
		if (read(fd, &c, 1) == 1 && write(fd, &c, 1) != 1)
			perror("write");
		close(fd);
	}
	return fail("accept4");
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int ask(int count)
{
	double start = now();
	char c = 'x';

	for (int i = 0; i < count; i++) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);

		if (connect(fd, (struct sockaddr *)&at, sizeof(at)))
			return fail("connect");
		if (write(fd, &c, 1) != 1 || read(fd, &c, 1) != 1)
			return fail("exchange");
		/* Without a reset all ports would soon be in TIME_WAIT. */
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		close(fd);
	}
	printf("%.0f\n", count / (now() - start));
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "serve")) {
		at.sin_port = htons((uint16_t)atoi(argv[2]));
		return serve();
	}
	if (argc == 5 && !strcmp(argv[1], "ask") &&
	    inet_pton(AF_INET, argv[2], &at.sin_addr) == 1) {
		at.sin_port = htons((uint16_t)atoi(argv[3]));
		return ask(atoi(argv[4]));
	}
	fprintf(stderr, "usage: shortlived serve PORT | ask ADDRESS PORT COUNT\n");
	return 2;
}
