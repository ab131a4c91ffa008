/* SPDX-License-Identifier: Apache-2.0 */
/* libc's streams and others of its functions that use a descriptor inside. */
#include "semantics.h"

#include <stdarg.h>
#include <sys/syscall.h>

static void stream_writes(int fd)
{
	FILE *f = fdopen(fd, "w");

	CALL(fwrite(OUT, 1, 10, f));
	CALL(fflush(f));
	peer_receive(10);
	sent += 10;
	CALL(fwrite(OUT, 1, 20, f));
	CALL(fclose(f));
	peer_drain();
}

static void stream_reads(int fd)
{
	FILE *f = fdopen(fd, "r");

	peer_send(10);
	CALL(fread(in, 1, 10, f));
	expect_octets(in, 10);
	peer_close();
	CALL(fread(in, 1, 10, f));
	say("end: %d", feof(f) != 0);
	fclose(f);
}

static void stream_of_both(int fd)
{
	FILE *f = fdopen(fd, "r+");

	CALL(setvbuf(f, NULL, _IONBF, 0));
	CALL(fwrite(OUT, 1, 10, f));
	peer_receive(10);
	peer_send(1);
	CALL(fgetc(f) == (unsigned char)stream[0]);
	CALL(fclose(f));
	peer_drain();
}

static void stream_of_unread(int fd)
{
	FILE *f;

	peer_send(10);
	await_octets(fd, 10);
	f = fdopen(fd, "r");
	CALL(fread(in, 1, 10, f));
	expect_octets(in, 10);
	SENT(write(fd, OUT, 5));
	peer_receive(5);
	fclose(f);
}

static void stream_of_a_dup(int fd)
{
	FILE *f = fdopen(dup(fd), "w");

	CALL(fwrite(OUT, 1, 10, f));
	CALL(fclose(f));
	sent += 10;
	SENT(write(fd, OUT, 5));
	peer_receive(15);
	peer_send(5);
	GOT(read(fd, in, 10));
}

static void stream_with_bad_mode(int fd)
{
	CALL(fdopen(fd, "z") == NULL);
	SENT(write(fd, OUT, 5));
	peer_receive(5);
}

static void formatted_write(int fd)
{
	SENT(write(fd, OUT, 5));
	CALL(dprintf(fd, "%.*s", 0, ""));
	CALL(dprintf(fd, "%c%c%c", stream[5], stream[6], stream[7]));
	sent += 3;
	SENT(write(fd, OUT, 5));
	peer_receive(13);
}

static int formatted(int fd, const char *format, ...)
{
	va_list ap;
	int r;

	va_start(ap, format);
	r = vdprintf(fd, format, ap);
	va_end(ap);
	return r;
}

static void formatted_write_of_a_list(int fd)
{
	CALL(formatted(fd, "%c%c", stream[0], stream[1]));
	sent += 2;
	SENT(write(fd, OUT, 5));
	peer_receive(7);
}

static void standard_output(int fd)
{
	int saved = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 100);

	fflush(stdout);
	dup2(fd, STDOUT_FILENO);
	putchar_unlocked(stream[0]);
	putchar_unlocked(stream[1]);
	fflush(stdout);
	dup2(saved, STDOUT_FILENO);
	close(saved);
	sent += 2;
	SENT(write(fd, OUT, 5));
	peer_receive(7);
}

static void standard_input(int fd)
{
	int saved = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 100);

	peer_send(4);
	dup2(fd, STDIN_FILENO);
	setvbuf(stdin, NULL, _IONBF, 0);
	for (int i = 0; i < 4; i++)
		in[i] = (char)getchar();
	expect_octets(in, 4);
	if (saved >= 0)
		dup2(saved, STDIN_FILENO);
	else
		close(STDIN_FILENO);
	close(saved);
	SENT(write(fd, OUT, 5));
	peer_receive(5);
}

static void raw_system_calls(int fd)
{
	peer_send(5);
	await_octets(fd, 5);
	GOT(syscall(SYS_read, fd, in, 10));
	SENT(syscall(SYS_write, fd, OUT, 5));
	SENT(write(fd, OUT, 5));
	peer_receive(10);
}

const struct test_case stdio_cases[] = {
	CASE(stream_writes),    CASE(stream_reads),
	CASE(stream_of_both),   CASE(stream_of_unread),
	CASE(stream_of_a_dup),  CASE(stream_with_bad_mode),
	CASE(formatted_write),  CASE(formatted_write_of_a_list),
	CASE(standard_output),  CASE(standard_input),
	CASE(raw_system_calls), END_OF_CASES,
};
