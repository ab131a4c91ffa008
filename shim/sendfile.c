/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sendfile(). A fast socket gets a regular file by read and send; for any other
 * file the connection goes back to the kernel first.
 */
#include "intercept.h"

#include <sys/stat.h>

#include "sock.h"
#include "sys.h"

/* Lies on the program's stack. */
#define PIECE 16384u
/* What Linux moves in one call at most (MAX_RW_COUNT). */
#define MOST 0x7ffff000u

static bool is_regular(int fd)
{
	int saved_errno = errno;
	struct stat st;
	bool regular = fstat(fd, &st) == 0 && S_ISREG(st.st_mode);

	errno = saved_errno;
	return regular;
}

/* As the kernel: what was sent counts, an error only if nothing was. */
static ssize_t copy(int out, int in, off64_t *offset, size_t n)
{
	off64_t at = offset ? *offset : lseek64(in, 0, SEEK_CUR);
	int saved_errno = errno;
	char piece[PIECE];
	size_t done = 0;
	ssize_t r = 0;

	while (done < n) {
		size_t want = n - done < PIECE ? n - done : PIECE;

		r = pread64(in, piece, want, at + (off64_t)done);
		if (r > 0)
			r = send(out, piece, (size_t)r, 0);
		if (r <= 0)
			break;
		done += (size_t)r;
		if ((size_t)r < want)
			break;
	}
	if (!done && r < 0)
		return -1;
	if (offset)
		*offset = at + (off64_t)done;
	else
		lseek64(in, at + (off64_t)done, SEEK_SET);
	errno = saved_errno;
	return (ssize_t)done;
}

ET_EXPORT ssize_t sendfile64(int out, int in, off64_t *offset, size_t n)
{
	struct et_sock *s = et_sock_enter(out);
	ssize_t r;

	if (et_likely(!s))
		return et_real.sendfile64(out, in, offset, n);
	if (et_sock_steady(s, out) && is_regular(in)) {
		et_sock_leave(s);
		return copy(out, in, offset, n < MOST ? n : MOST);
	}
	et_sock_to_kernel(s, out, ETRAN_PATH_API);
	r = et_real.sendfile64(out, in, offset, n);
	if (r > 0)
		et_sock_sent(s, (size_t)r);
	else
		et_sock_leave(s);
	return r;
}

/* off_t has 64 bits. */
ET_EXPORT ssize_t sendfile(int out, int in, off_t *offset, size_t n)
{
	return sendfile64(out, in, offset, n);
}
