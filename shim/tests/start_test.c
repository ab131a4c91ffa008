// SPDX-License-Identifier: Apache-2.0
/*
 * The start without a Go side linked in: it must say no and leave no trace.
 * How it says yes is a matter for tests/preload.
 */
#include <errno.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "start.h"
#include "unit.h"

TEST(refuses_without_go)
{
	errno = EXFULL;
	CHECK(!et_go_start());
	CHECK(!et_go_start());
	CHECK_EQ(errno, EXFULL);
	CHECK(!et_go_dead_after_fork());
}

TEST(keeps_the_signal_mask)
{
	sigset_t set, now;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_SETMASK, &set, NULL);
	et_go_start();
	sigprocmask(SIG_SETMASK, NULL, &now);
	for (int sig = 1; sig < NSIG; sig++)
		CHECK_EQ(sigismember(&now, sig), sig == SIGUSR1);
}

/* The lock held across fork must be free on both sides. */
TEST(works_across_fork)
{
	pid_t pid = fork();
	int status;

	REQUIRE(pid >= 0);
	if (pid == 0)
		_exit(et_go_start() || et_go_dead_after_fork());
	REQUIRE(waitpid(pid, &status, 0) == pid);
	CHECK_EQ(status, 0);
	CHECK(!et_go_start());
}

int main(int argc, char **argv, char **envp)
{
	et_start_ctor(argc, argv, envp);
	RUN(keeps_the_signal_mask);
	RUN(refuses_without_go);
	RUN(works_across_fork);
	return unit_result();
}
