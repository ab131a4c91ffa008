/* SPDX-License-Identifier: Apache-2.0 */
/* sendfile(), splice() and what else moves octets or is no socket call. */
#include "semantics.h"

#include <sys/mman.h>
#include <sys/sendfile.h>

/* A file with what is to be sent next. */
static int file_of(size_t n)
{
	int f = memfd_create("octets", MFD_CLOEXEC);

	if (f < 0 || write(f, OUT, n) != (ssize_t)n)
		give_up("no file");
	lseek(f, 0, SEEK_SET);
	return f;
}

static void sendfile_whole(int fd)
{
	int file = file_of(50000);

	SENT(sendfile(fd, file, NULL, 50000));
	CALL(sendfile(fd, file, NULL, 10));
	SENT(write(fd, OUT, 10));
	peer_receive(50010);
	close(file);
}

static void sendfile_at_offset(int fd)
{
	int file = file_of(5000);
	off_t at = 0;

	SENT(sendfile(fd, file, &at, 1000));
	say("offset %ld", (long)at);
	SENT(sendfile(fd, file, &at, 100000));
	say("offset %ld", (long)at);
	peer_receive(5000);
	close(file);
}

static void sendfile_from_socket(int fd)
{
	int file = file_of(10);

	peer_send(5);
	await_octets(fd, 5);
	CALL(sendfile(file, fd, NULL, 5));
	GOT(read(fd, in, 10));
	close(file);
}

static void sendfile_between_writes(int fd)
{
	int file;

	SENT(write(fd, OUT, 1000));
	file = file_of(1000);
	SENT(sendfile(fd, file, NULL, 1000));
	SENT(write(fd, OUT, 1000));
	peer_receive(3000);
	close(file);
}

static void splice_out(int fd)
{
	int p[2];

	if (pipe2(p, O_CLOEXEC))
		give_up("no pipe");
	CALL(write(p[1], OUT, 100));
	SENT(splice(p[0], NULL, fd, NULL, 100, 0));
	SENT(write(fd, OUT, 10));
	peer_receive(110);
	close(p[0]);
	close(p[1]);
}

static void splice_in(int fd)
{
	int p[2];

	if (pipe2(p, O_CLOEXEC))
		give_up("no pipe");
	peer_send(100);
	await_octets(fd, 100);
	CALL(splice(fd, NULL, p[1], NULL, 60, 0));
	GOT(read(p[0], in, 100));
	GOT(read(fd, in, 100));
	fcntl(fd, F_SETFL, O_NONBLOCK); /* SPLICE_F_NONBLOCK is about the pipe */
	CALL(splice(fd, NULL, p[1], NULL, 60, 0));
	close(p[0]);
	close(p[1]);
}

static void splice_needs_a_pipe(int fd)
{
	int file = file_of(10);

	CALL(splice(file, NULL, fd, NULL, 10, 0));
	SENT(write(fd, OUT, 1));
	peer_receive(1);
	close(file);
}

static void tee_and_copy_file_range(int fd)
{
	int file = file_of(10), p[2];

	if (pipe2(p, O_CLOEXEC))
		give_up("no pipe");
	CALL(tee(fd, p[1], 10, 0));
	CALL(copy_file_range(fd, NULL, file, NULL, 10, 0));
	CALL(copy_file_range(file, NULL, fd, NULL, 10, 0));
	SENT(write(fd, OUT, 1));
	peer_receive(1);
	close(p[0]);
	close(p[1]);
	close(file);
}

static void memory_mapping(int fd)
{
	void *p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0); /* to receive without copies */

	say("mapped: %d", p != MAP_FAILED);
	munmap(p, 4096);
	SENT(write(fd, OUT, 1));
	peer_receive(1);
}

static void file_calls(int fd)
{
	CALL(ftruncate(fd, 0));
	CALL(fsync(fd));
	CALL(fdatasync(fd));
	CALL(fallocate(fd, 0, 0, 10));
	CALL(isatty(fd));
	CALL(fchdir(fd));
	SENT(write(fd, OUT, 1));
	peer_receive(1);
}

static void stat_says_socket(int fd)
{
	struct stat s;

	CALL(fstat(fd, &s));
	say("socket: %d, size %ld", S_ISSOCK(s.st_mode), (long)s.st_size);
}

static void link_in_proc(int fd)
{
	char path[40], text[80] = "";

	sprintf(path, "/proc/self/fd/%d", fd);
	if (readlink(path, text, sizeof(text) - 1) < 0)
		say("no link");
	say("it begins with %.8s", text);
	CALL(open(path, O_RDWR));
}

static void own_name(int fd)
{
	struct sockaddr_in a = {0}, own = own_address();
	socklen_t n = sizeof(a);

	CALL(getsockname(fd, (struct sockaddr *)&a, &n));
	say("family %d, length %u, address is own: %d, port: %d", a.sin_family, n,
	    a.sin_addr.s_addr == own.sin_addr.s_addr, a.sin_port != 0);
	n = 4;
	CALL(getsockname(fd, (struct sockaddr *)&a, &n));
	say("length %u", n);
	n = (socklen_t)-1;
	CALL(getsockname(fd, (struct sockaddr *)&a, &n));
}

static void peers_name(int fd)
{
	struct sockaddr_in a = {0}, own = own_address();
	socklen_t n = sizeof(a);

	CALL(getpeername(fd, (struct sockaddr *)&a, &n));
	say("family %d, length %u, address is own: %d, port: %d", a.sin_family, n,
	    a.sin_addr.s_addr == own.sin_addr.s_addr, a.sin_port != 0);
	n = 100;
	CALL(getpeername(fd, (struct sockaddr *)&a, &n));
	say("length %u", n);
}

static void peers_name_after_the_end(int fd)
{
	struct sockaddr_in a = {0};
	socklen_t n = sizeof(a);

	peer_close();
	settle();
	CALL(getpeername(fd, (struct sockaddr *)&a, &n));
	CALL(shutdown(fd, SHUT_WR));
	settle();
	CALL(getpeername(fd, (struct sockaddr *)&a, &n));
	CALL(getsockname(fd, (struct sockaddr *)&a, &n));
}

static void bind_and_listen_when_connected(int fd)
{
	struct sockaddr_in a = own_address();

	CALL(bind(fd, (struct sockaddr *)&a, sizeof(a)));
	CALL(listen(fd, 5));
	CALL(accept(fd, NULL, NULL));
	SENT(write(fd, OUT, 1));
	peer_receive(1);
}

const struct test_case calls_cases[] = {
	CASE(sendfile_whole),
	CASE(sendfile_at_offset),
	CASE(sendfile_from_socket),
	CASE(sendfile_between_writes),
	CASE(splice_out),
	CASE(splice_in),
	CASE(splice_needs_a_pipe),
	CASE(tee_and_copy_file_range),
	CASE(memory_mapping),
	CASE(file_calls),
	CASE(stat_says_socket),
	CASE(link_in_proc),
	CASE(own_name),
	CASE(peers_name),
	CASE(peers_name_after_the_end),
	CASE(bind_and_listen_when_connected),
	END_OF_CASES,
};
