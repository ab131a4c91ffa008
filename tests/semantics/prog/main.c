/* SPDX-License-Identifier: Apache-2.0 */
/*
 * semantics --active|--peer --client|--server [--fast] [--after=CASE]
 *     OWN PEER CONTROL PORT [PATTERN]
 *
 * OWN and PEER are the two hosts' addresses for the connections under test,
 * CONTROL and PORT are the server's for the control connection. Only cases behind
 * CASE whose name contains PATTERN are run. The active end prints, for each case,
 *
 *   == NAME
 *     what happened, one line for each call
 *
 * and lines that begin with #: "# fast OWN PEER", which ends had the connection
 * on a fast path when the case began.
 */
#include "peer.h"
#include "semantics.h"

#include <sys/prctl.h>

/* A case that takes longer hangs. */
#define CASE_MS 8000

static const struct test_case *const groups[] = {
	transfer_cases, vector_cases,   calls_cases,  bad_cases,     ioctl_cases,   options_cases,
	ending_cases,   blocking_cases, signal_cases, poll_cases,    select_cases,  epoll_cases,
	fds_cases,      connect_cases,  stdio_cases,  threads_cases, process_cases,
};

static _Atomic uint64_t case_started;
static const char *_Atomic case_name = "none";

static void *watch(void *arg)
{
	for (;;) {
		sleep_ms(100);
		if (case_started && now_ms() - case_started > CASE_MS)
			give_up("case %s hangs", case_name);
	}
	return arg;
}

static void start_watch(void)
{
	sigset_t all, before;
	pthread_t thread;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	if (pthread_create(&thread, NULL, watch, NULL))
		give_up("no thread");
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static sigjmp_buf out_of_case;

/* Memory faults are what some cases must not have. */
static void fault(int sig)
{
	siglongjmp(out_of_case, sig);
}

static void run(const struct test_case *c)
{
	bool fast = false, peer_fast = false;
	int fd, sig;

	case_name = c->name;
	case_started = now_ms();
	fd = case_begin(c->cold, &fast, &peer_fast);
	printf("== %s\n# fast %d %d%s\n", c->name, fast, peer_fast, c->cold ? " cold" : "");
	handle(SIGPIPE, count_signal, SA_RESTART);
	handle(SIGUSR1, SIG_IGN, 0);
	handle(SIGUSR2, SIG_IGN, 0);
	handle(SIGSEGV, fault, SA_NODEFER);
	sig = sigsetjmp(out_of_case, 1);
	if (sig)
		say("%s", strsignal(sig));
	else
		c->run(fd);
	close(fd); /* unless the case has done so */
	case_end();
	fflush(stdout);
}

/* Those after `after`, if that is given, with `pattern` in their names. */
static void run_all(const char *pattern, const char *after)
{
	for (size_t g = 0; g < sizeof(groups) / sizeof(groups[0]); g++)
		for (const struct test_case *c = groups[g]; c->name; c++) {
			if (!after && (!pattern || strstr(c->name, pattern)))
				run(c);
			else if (after && strcmp(c->name, after) == 0)
				after = NULL;
		}
	peer_end();
}

int main(int argc, char **argv)
{
	const char *after = NULL;
	int i = 1;

	for (; i < argc && argv[i][0] == '-'; i++) {
		ends.active |= strcmp(argv[i], "--active") == 0;
		ends.client |= strcmp(argv[i], "--client") == 0;
		ends.fast |= strcmp(argv[i], "--fast") == 0;
		if (strncmp(argv[i], "--after=", 8) == 0)
			after = argv[i] + 8;
	}
	if (argc - i < 4)
		give_up("see the source for how to call this");
	ends.own = argv[i];
	ends.peer = argv[i + 1];
	signal(SIGPIPE, SIG_IGN);
	for (size_t n = 0; n < STREAM_OCTETS; n++)
		stream[n] = (char)(n * 167 + (n >> 8) * 59 + (n >> 16) * 13);
	if (ends.client)
		control_connect(argv[i + 2], atoi(argv[i + 3]));
	else
		control_listen(argv[i + 2], atoi(argv[i + 3]));
	if (!ends.active) {
		peer_serve();
		return 0;
	}
	start_watch();
	setvbuf(stdout, NULL, _IOLBF, 0);
	run_all(argv[i + 4], after);
	return 0;
}
