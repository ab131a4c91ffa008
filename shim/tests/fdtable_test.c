/* SPDX-License-Identifier: Apache-2.0 */
/* The table of descriptors: entries, kinds, pins, and reuse under threads. */
#include "surface.h"

#include "pool.h"

#define THREADS 3
#define ROUNDS 20000

static void test_pool(void)
{
	struct et_pool p = {.size = 64, .max = 3};
	void *a = et_pool_get(&p), *b = et_pool_get(&p), *c = et_pool_get(&p);

	CHECK(a && b && c && a != b && b != c);
	CHECK(!et_pool_get(&p));
	et_pool_put(&p, b);
	et_pool_put(&p, a);
	CHECK(et_pool_get(&p) == a && et_pool_get(&p) == b && !et_pool_get(&p));
}

static void test_entries(void)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0), copy = dup(fd), far = fcntl(fd, F_DUPFD, 300);
	struct et_sock *s = et_sock_enter(fd);

	CHECK(s && far >= 300);
	CHECK(et_entry_object(et_fd_entry(copy)) == s && et_entry_object(et_fd_entry(far)) == s);
	CHECK(atomic_load(&s->file.fds) == 3 && atomic_load(&s->file.fd) == fd);
	CHECK(close(fd) == 0);
	CHECK(!et_fd_entry(fd) && atomic_load(&s->file.fd) == copy);
	CHECK(dup2(0, copy) == copy && !et_fd_entry(copy));
	CHECK(atomic_load(&s->file.fd) == far);
	CHECK(close_range(300, ~0u, 0) == 0 && !et_fd_entry(far));
	CHECK(atomic_load(&s->file.fds) == 0);
	et_sock_leave(s);
	CHECK((uint32_t)atomic_load(&s->file.users) == 0);
	CHECK_ERR(close(fd), EBADF);
	close(copy);
}

static void test_not_candidates(void)
{
	int udp = socket(AF_INET, SOCK_DGRAM, 0), v6 = socket(AF_INET6, SOCK_STREAM, 0),
	    local = socket(AF_UNIX, SOCK_STREAM, 0), tcp = socket(AF_INET, SOCK_STREAM, 0);

	CHECK(!et_fd_entry(udp) && !et_fd_entry(v6) && !et_fd_entry(local));
	CHECK(et_fd_is(tcp, ET_FD_SOCK));
	CHECK(listen(tcp, 1) == 0 && et_fd_is(tcp, ET_FD_LISTENER) && !et_sock_enter(tcp));
	close(udp);
	close(v6);
	close(local);
	CHECK(close(tcp) == 0 && !et_fd_entry(tcp));
	CHECK(!et_fd_entry(-1) && !et_fd_entry(1 << 30));
	CHECK_ERR(read(-1, &udp, 1), EBADF);
}

static void test_hidden(void)
{
	int fd = et_fd_hide(dup(0));

	CHECK_ERR(close(fd), EBADF);
	CHECK_ERR(dup2(0, fd), EBUSY);
	CHECK(close_range((unsigned)fd, (unsigned)fd + 5, 0) == 0);
	CHECK(et_sys_fcntl(fd, F_GETFD, 0) >= 0);
	et_fd_unhide(fd);
	CHECK(close(fd) == 0);
}

/* The number is taken by something else behind our back. */
static void test_stale(void)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0), p[2];
	char c;

	CHECK(pipe(p) == 0 && et_sys3(SYS_dup2, p[0], fd, 0) == fd);
	CHECK(write(p[1], "y", 1) == 1);
	CHECK(et_fd_entry(fd) && read(fd, &c, 1) == 1 && c == 'y');
	CHECK(!et_fd_entry(fd));
	close(fd);
	close(p[0]);
	close(p[1]);
}

static _Atomic int shared_fd = -1;
static _Atomic bool stop;

static void *user(void *arg)
{
	unsigned long seen = 0;

	while (!atomic_load(&stop)) {
		struct et_sock *s = et_sock_enter(atomic_load(&shared_fd));

		if (!s)
			continue;
		CHECK((uint32_t)atomic_load(&s->file.users) > 0);
		seen++;
		et_sock_leave(s);
	}
	*(unsigned long *)arg = seen;
	return NULL;
}

/* Objects come and go while others use what they find. */
static void test_reuse(void)
{
	unsigned long seen[THREADS], all = 0;
	pthread_t thread[THREADS];

	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_create(&thread[i], NULL, user, &seen[i]) == 0);
	for (int i = 0; i < ROUNDS; i++) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);

		atomic_store(&shared_fd, fd);
		if (i % 64 == 0)
			usleep(100);
		CHECK(close(fd) == 0);
	}
	atomic_store(&stop, true);
	for (int i = 0; i < THREADS; i++) {
		pthread_join(thread[i], NULL);
		all += seen[i];
	}
	CHECK(all > 0);
}

int main(void)
{
	surface_init();
	test_pool();
	test_entries();
	test_not_candidates();
	test_hidden();
	test_stale();
	test_reuse();
	puts("ok");
	return 0;
}
