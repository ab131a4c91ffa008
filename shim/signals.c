/* SPDX-License-Identifier: Apache-2.0 */
#include "intercept.h"

#include "signals.h"

#include <stdatomic.h>
#include <sys/signalfd.h>

#include "fdtable.h"
#include "sys.h"

#define SIG_BIT(sig) (1ull << ((sig) - 1))
/* Signals that end no sleep: raised by the thread's own instructions, and two
 * of libc's own. */
#define SYNCHRONOUS                                                                                \
	(SIG_BIT(SIGSEGV) | SIG_BIT(SIGBUS) | SIG_BIT(SIGFPE) | SIG_BIT(SIGILL) |                  \
	 SIG_BIT(SIGTRAP) | SIG_BIT(SIGSYS) | SIG_BIT(SIGABRT) | SIG_BIT(32) | SIG_BIT(33))

/* Signals with handlers, by kind. One that is set without libc is missing here;
 * it is seen after an interruption, as long as the others are of one kind. */
static _Atomic uint64_t restarting, interrupting;

enum reaction { NONE, RESTARTS, INTERRUPTS };

static enum reaction reaction_to(int sig)
{
	struct {
		void *handler;
		unsigned long flags;
		void *restorer;
		uint64_t mask;
	} action;

	if (SYNCHRONOUS & SIG_BIT(sig) ||
	    et_sys6(SYS_rt_sigaction, sig, 0, (long)&action, sizeof(action.mask), 0, 0) < 0 ||
	    (uintptr_t)action.handler <= (uintptr_t)SIG_IGN)
		return NONE;
	return action.flags & SA_RESTART ? RESTARTS : INTERRUPTS;
}

static uint64_t blocked_now(void)
{
	uint64_t blocked = 0;

	et_sys6(SYS_rt_sigprocmask, SIG_BLOCK, 0, (long)&blocked, sizeof(blocked), 0, 0);
	return blocked;
}

bool et_signals_restart(void)
{
	uint64_t blocked = blocked_now();

	for (int sig = 1; sig < _NSIG; sig++)
		if (!(blocked & SIG_BIT(sig)) && reaction_to(sig) == INTERRUPTS)
			return false;
	return true;
}

void et_signals_learn(int sig)
{
	enum reaction now;

	if (sig < 1 || sig >= _NSIG)
		return;
	now = reaction_to(sig);
	if (now == RESTARTS)
		atomic_fetch_or(&restarting, SIG_BIT(sig));
	else
		atomic_fetch_and(&restarting, ~SIG_BIT(sig));
	if (now == INTERRUPTS)
		atomic_fetch_or(&interrupting, SIG_BIT(sig));
	else
		atomic_fetch_and(&interrupting, ~SIG_BIT(sig));
}

bool et_restart_begin(struct et_restart *r)
{
	uint64_t hold = atomic_load(&restarting), mask;
	int fd;

	r->fd = -1;
	if (et_likely(!hold || !atomic_load(&interrupting)))
		return false;
	fd = (int)et_sys6(SYS_signalfd4, -1, (long)&hold, sizeof(hold), SFD_CLOEXEC | SFD_NONBLOCK,
			  0, 0);
	if (fd < 0)
		return false;
	r->fd = et_fd_hide(fd);
	mask = blocked_now() | hold;
	sigemptyset(&r->mask);
	for (int sig = 1; sig < _NSIG; sig++)
		if (mask & SIG_BIT(sig))
			sigaddset(&r->mask, sig);
	return true;
}

void et_restart_end(const struct et_restart *r)
{
	if (et_likely(r->fd < 0))
		return;
	et_fd_unhide(r->fd);
	et_sys_close(r->fd);
}

/* ---- the program's changes ----------------------------------------------- */

ET_EXPORT int sigaction(int sig, const struct sigaction *action, struct sigaction *old)
{
	int r = et_real.sigaction(sig, action, old);

	if (r == 0 && action)
		et_signals_learn(sig);
	return r;
}

#define SETS_HANDLER(name)                                                                         \
	ET_EXPORT sighandler_t name(int sig, sighandler_t handler)                                 \
	{                                                                                          \
		sighandler_t old = et_real.name(sig, handler);                                     \
                                                                                                   \
		et_signals_learn(sig);                                                             \
		return old;                                                                        \
	}

SETS_HANDLER(signal)
SETS_HANDLER(sysv_signal)
SETS_HANDLER(sigset)

ET_EXPORT int siginterrupt(int sig, int interrupt)
{
	int r = et_real.siginterrupt(sig, interrupt);

	et_signals_learn(sig);
	return r;
}
