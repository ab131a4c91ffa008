/* SPDX-License-Identifier: Apache-2.0 */
#include "control.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#include "sys.h"

int et_control_connect(const char *run_dir)
{
	static const char name[] = "/control.sock";
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	size_t n = strlen(run_dir);
	int fd, err;

	if (n + sizeof(name) > sizeof(a.sun_path))
		return -ENAMETOOLONG;
	memcpy(a.sun_path, run_dir, n);
	memcpy(a.sun_path + n, name, sizeof(name));
	/* No descriptor, not even for a moment, where there is no daemon. */
	err = (int)et_sys6(SYS_faccessat, AT_FDCWD, (long)a.sun_path, F_OK, 0, 0, 0);
	if (err)
		return err;
	fd = (int)et_sys3(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return fd;
	err = (int)et_sys3(SYS_connect, fd, (long)&a, sizeof(a));
	if (!err)
		return fd;
	et_sys_close(fd);
	return err;
}

int et_control_send(int sock, const void *msg, size_t n, int fd)
{
	struct iovec iov = {(void *)msg, n};
	union {
		struct cmsghdr h;
		char room[CMSG_SPACE(sizeof(int))];
	} c = {0};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t sent;

	if (fd >= 0) {
		m.msg_control = &c;
		m.msg_controllen = sizeof(c);
		c.h.cmsg_level = SOL_SOCKET;
		c.h.cmsg_type = SCM_RIGHTS;
		c.h.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&c.h), &fd, sizeof(fd));
	}
	do
		sent = et_sys_sendmsg(sock, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (sent == -EINTR);
	return sent < 0 ? (int)sent : 0;
}

long et_control_recv(int sock, void *msg, size_t n, int *fds, int *nfds)
{
	struct iovec iov = {msg, n};
	union {
		struct cmsghdr h;
		char room[CMSG_SPACE(ET_CONTROL_MAX_FDS * sizeof(int))];
	} c;
	struct msghdr m = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof(c)};
	ssize_t got;
	int max = *nfds;

	*nfds = 0;
	do
		got = et_sys_recvmsg(sock, &m, MSG_CMSG_CLOEXEC);
	while (got == -EINTR);
	if (got <= 0)
		return got;
	for (struct cmsghdr *h = CMSG_FIRSTHDR(&m); h; h = CMSG_NXTHDR(&m, h)) {
		int count = (int)((h->cmsg_len - CMSG_LEN(0)) / sizeof(int)), fd;

		if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS)
			continue;
		for (int i = 0; i < count; i++) {
			memcpy(&fd, CMSG_DATA(h) + (size_t)i * sizeof(int), sizeof(fd));
			if (*nfds < max)
				fds[(*nfds)++] = fd;
			else
				et_sys_close(fd);
		}
	}
	return got;
}

int et_control_valid(const void *msg, size_t got, size_t want, enum etran_msg_type type)
{
	const struct etran_msg_header *h = msg;

	return got == want && h->magic == ETRAN_ABI_MAGIC && h->version == ETRAN_ABI_VERSION &&
	       h->type == type;
}
