// SPDX-License-Identifier: Apache-2.0
/*
 * The start with a Go side but without the rest of the library, run by
 * tests/preload. (start_test.c is without Go, and with sanitizers, which do
 * not go together with Go.)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "session.h"
#include "start.h"
#include "unit.h"

/* What Go calls. The session is refused, so Go asks once. */
static char session_dir[256];
static sem_t session_asked;

int et_session_open(const char *run_dir)
{
	snprintf(session_dir, sizeof(session_dir), "%s", run_dir);
	sem_post(&session_asked);
	return -EACCES;
}

int et_session_step(int fd, int timeout_ms)
{
	(void)fd, (void)timeout_ms;
	return -EBADF;
}

void et_session_missed(void)
{
}

void et_session_close(int fd)
{
	(void)fd;
}

void et_assist_run(void)
{
	for (;;)
		pause();
}

static void in_child(pid_t pid)
{
	int status = -1;

	REQUIRE(pid > 0 && waitpid(pid, &status, 0) == pid);
	CHECK_EQ(status, 0);
}

/* Not known to pthread_atfork, and on the parent's memory. */
TEST(refuses_in_a_vfork_child)
{
	pid_t pid = vfork();

	if (pid == 0)
		_exit(et_go_start());
	in_child(pid);
}

TEST(child_of_an_unstarted_process_starts_its_own)
{
	pid_t pid = fork();

	if (pid == 0)
		_exit(!et_go_start() || et_go_dead_after_fork());
	in_child(pid);
}

/* The program has overwritten its environment, as setproctitle does. */
TEST(go_sees_the_original_environment)
{
	struct timespec until;

	REQUIRE(et_go_start());
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 10;
	REQUIRE(sem_timedwait(&session_asked, &until) == 0);
	CHECK(!strcmp(session_dir, "/tmp/start_go"));
}

static void *start_thread(void *refused)
{
	return et_go_start() ? NULL : refused;
}

TEST(starts_once_for_many_threads)
{
	pthread_t threads[8];
	void *result;

	for (int i = 0; i < 8; i++)
		REQUIRE(pthread_create(&threads[i], NULL, start_thread, "refused") == 0);
	for (int i = 0; i < 8; i++) {
		pthread_join(threads[i], &result);
		CHECK(!result);
	}
	errno = EXFULL;
	CHECK(et_go_start());
	CHECK_EQ(errno, EXFULL);
	CHECK(!et_go_dead_after_fork());
}

TEST(dead_in_descendants_for_good)
{
	pid_t pid = fork();

	if (pid == 0) {
		unit_failures = 0;
		CHECK(!et_go_start());
		CHECK(et_go_dead_after_fork());
		pid = fork();
		if (pid == 0)
			_exit(et_go_start() || !et_go_dead_after_fork());
		in_child(pid);
		_exit(unit_failures != 0);
	}
	in_child(pid);
	CHECK(et_go_start());
}

/* pthread_atfork's handlers do not run here. */
TEST(dead_after_bare_fork)
{
	pid_t pid = _Fork();

	if (pid == 0)
		_exit(et_go_start() || !et_go_dead_after_fork());
	in_child(pid);
}

int main(int argc, char **argv)
{
	char variable[] = "ETRAN_RUN_DIR=/tmp/start_go", *env[] = {variable, NULL};

	sem_init(&session_asked, 0, 0);
	et_start_ctor(argc, argv, env);
	memset(variable, 'x', sizeof(variable) - 1);
	RUN(refuses_in_a_vfork_child);
	RUN(child_of_an_unstarted_process_starts_its_own);
	RUN(starts_once_for_many_threads);
	RUN(go_sees_the_original_environment);
	RUN(dead_in_descendants_for_good);
	RUN(dead_after_bare_fork);
	return unit_result();
}
