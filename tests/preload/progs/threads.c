// SPDX-License-Identifier: Apache-2.0
/*
 * Prints how many threads the process has after it has opened, and tried to
 * connect, one socket of the kind named by the argument: none, udp, unix or tcp.
 */
#include <dirent.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int count_threads(void)
{
	DIR *dir = opendir("/proc/self/task");
	struct dirent *entry;
	int count = 0;

	if (!dir)
		return -1;
	while ((entry = readdir(dir)))
		count += entry->d_name[0] != '.';
	closedir(dir);
	return count;
}

int main(int argc, char **argv)
{
	/* Nobody listens there; that is good enough. */
	struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons(1)};
	const char *kind = argc > 1 ? argv[1] : "none";
	int fd = 0;

	addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);

	if (!strcmp(kind, "udp"))
		fd = socket(AF_INET, SOCK_DGRAM, 0);
	else if (!strcmp(kind, "unix"))
		fd = socket(AF_UNIX, SOCK_STREAM, 0);
	else if (!strcmp(kind, "tcp"))
		fd = socket(AF_INET, SOCK_STREAM, 0);
	if (fd < 0) {
		perror("socket");
		return 1;
	}
	connect(fd, (struct sockaddr *)&addr, sizeof(addr));
	printf("%d\n", count_threads());
	return 0;
}
