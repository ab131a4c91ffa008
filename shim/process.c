/* SPDX-License-Identifier: Apache-2.0 */
#include "intercept.h"

#include "process.h"

#include <alloca.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>

#include "config.h"
#include "epoll.h"
#include "lock.h"
#include "sock.h"
#include "start.h"

long et_pid;
_Atomic uint64_t et_fork_epoch;

/* Pipes whose write ends the children hold. */
#define MAX_LIFELINES 16
static struct lifeline {
	int fd;         /* read end; 0: not in use */
	uint64_t epoch; /* began with that fork */
} lifelines[MAX_LIFELINES];
static struct et_lock lifeline_lock;
/* Sockets older than this are shared for ever: a fork was not watched. */
static _Atomic uint64_t unwatched;
static int new_line[2] = {-1, -1}; /* between prepare and parent or child */
static _Atomic bool in_use;

/* ---- who shares what ----------------------------------------------------- */

/* Is there a child alive that was forked after `born`? */
static bool children_since(uint64_t born)
{
	static const struct timespec now;
	bool any = false;

	if (!et_lock(&lifeline_lock))
		return true;
	for (int i = 0; i < MAX_LIFELINES; i++) {
		struct lifeline *l = &lifelines[i];
		struct pollfd p = {.fd = l->fd};

		if (!l->fd || l->epoch <= born)
			continue;
		if (et_sys_ppoll(&p, 1, &now) == 1) {
			et_fd_unhide(l->fd);
			et_sys_close(l->fd);
			l->fd = 0;
		} else {
			any = true;
		}
	}
	et_unlock(&lifeline_lock);
	return any;
}

bool et_process_shares(int fd, uint64_t born)
{
	int flags;

	if (et_likely(atomic_load(&et_fork_epoch) == born))
		return false;
	if (born < atomic_load(&unwatched))
		return true;
	flags = et_sys_fcntl(fd, F_GETFD, 0);
	return flags < 0 || !(flags & FD_CLOEXEC) || children_since(born);
}

static struct lifeline *free_line(void)
{
	for (int i = 0; i < MAX_LIFELINES; i++)
		if (!lifelines[i].fd)
			return &lifelines[i];
	return NULL;
}

/* ---- fork ---------------------------------------------------------------- */

static void prepare(void)
{
	atomic_fetch_add(&et_fork_epoch, 1);
	if (!et_fd_limit || !et_policy.promote)
		return;
	children_since(0);
	new_line[0] = -1;
	if (et_sys6(SYS_pipe2, (long)new_line, O_CLOEXEC, 0, 0, 0, 0) < 0)
		new_line[0] = -1;
}

static void in_parent(void)
{
	uint64_t epoch = atomic_load(&et_fork_epoch);
	struct lifeline *l = NULL;

	if (!et_fd_limit || !et_policy.promote)
		return;
	if (new_line[0] >= 0)
		et_sys_close(new_line[1]);
	if (new_line[0] >= 0 && et_lock(&lifeline_lock)) {
		l = free_line();
		if (l) {
			l->fd = et_fd_hide(new_line[0]);
			l->epoch = epoch;
		}
		et_unlock(&lifeline_lock);
	}
	if (l)
		return;
	if (new_line[0] >= 0)
		et_sys_close(new_line[0]);
	atomic_store(&unwatched, epoch);
}

static void in_child(void)
{
	et_pid = et_sys3(SYS_getpid, 0, 0, 0);
	et_tid_cache = 0;
	if (et_fd_limit) {
		et_sock_after_fork();
		et_epoll_after_fork();
	}
	et_after_fork_child();
	atomic_store(&in_use, false);
	lifeline_lock = (struct et_lock){0};
	for (int i = 0; i < MAX_LIFELINES; i++)
		if (lifelines[i].fd) {
			et_sys_close(lifelines[i].fd);
			lifelines[i].fd = 0;
		}
	/* What the transport hid it has closed by now. */
	et_fd_unhide_all();
	if (et_config.log_fd >= 0)
		et_fd_set(et_config.log_fd, NULL, ET_FD_HIDDEN);
	if (et_fd_limit && et_policy.promote && new_line[0] >= 0) {
		et_sys_close(new_line[0]);
		/* Ours until we exit or exec: it tells the parent. */
		et_fd_hide(new_line[1]);
	}
	new_line[0] = new_line[1] = -1;
}

void et_process_init(void)
{
	et_pid = et_sys3(SYS_getpid, 0, 0, 0);
	pthread_atfork(prepare, in_parent, in_child);
}

/* Runs no handlers; may be called by a signal handler. */
ET_EXPORT pid_t _Fork(void)
{
	uint64_t epoch = atomic_fetch_add(&et_fork_epoch, 1) + 1;
	pid_t pid;

	atomic_store(&unwatched, epoch);
	pid = et_real._Fork();
	if (pid == 0)
		in_child();
	return pid;
}

void et_process_use(void)
{
	if (et_likely(atomic_load_explicit(&in_use, memory_order_relaxed)) || !et_policy.promote)
		return;
	if (!et_own_process() || atomic_exchange(&in_use, true))
		return;
	if (!et_go_start())
		et_log("no control side: stays on the kernel");
}

/* ---- exec ---------------------------------------------------------------- */

void et_process_lends(int fd)
{
	struct et_sock *s = et_sock_enter(fd);

	if (!s)
		return;
	if (!et_own_process()) {
		/* The mode is the parent's word: look, do not touch. */
		if (et_sock_mode(s) != ET_MODE_KERNEL)
			et_demote_foreign(fd);
	} else {
		et_sock_to_kernel(s, fd, ETRAN_PATH_FORK);
	}
	et_sock_leave(s);
}

void et_process_hands_on(void)
{
	int saved_errno = errno;

	if (!et_fd_limit)
		return;
	atomic_fetch_add(&et_fork_epoch, 1);
	for (int fd = et_fd_next(0, ET_FD_MAX); fd >= 0;
	     fd = et_fd_next((uint32_t)fd + 1, ET_FD_MAX))
		if (et_fd_is(fd, ET_FD_SOCK) && !(et_sys_fcntl(fd, F_GETFD, 0) & FD_CLOEXEC))
			et_process_lends(fd);
	errno = saved_errno;
}

ET_EXPORT int execve(const char *path, char *const argv[], char *const envp[])
{
	et_process_hands_on();
	return et_real.execve(path, argv, envp);
}

ET_EXPORT int execv(const char *path, char *const argv[])
{
	et_process_hands_on();
	return et_real.execv(path, argv);
}

ET_EXPORT int execvp(const char *file, char *const argv[])
{
	et_process_hands_on();
	return et_real.execvp(file, argv);
}

ET_EXPORT int execvpe(const char *file, char *const argv[], char *const envp[])
{
	et_process_hands_on();
	return et_real.execvpe(file, argv, envp);
}

ET_EXPORT int fexecve(int fd, char *const argv[], char *const envp[])
{
	et_process_hands_on();
	return et_real.fexecve(fd, argv, envp);
}

static size_t count_args(const char *arg, va_list ap)
{
	size_t n = 0;

	for (; arg; arg = va_arg(ap, const char *))
		n++;
	return n;
}

/* libc has the list on the stack, too, and then as an array next to it. */
#define LIST_TO_ARGV(argv, arg, ap)                                                                \
	do {                                                                                       \
		va_start(ap, arg);                                                                 \
		argv = alloca((count_args(arg, ap) + 1) * sizeof(*argv));                          \
		va_end(ap);                                                                        \
		va_start(ap, arg);                                                                 \
		argv[0] = (char *)arg;                                                             \
		for (size_t i = 0; argv[i];)                                                       \
			argv[++i] = va_arg(ap, char *);                                            \
	} while (0)

ET_EXPORT int execl(const char *path, const char *arg, ...)
{
	char **argv;
	va_list ap;

	LIST_TO_ARGV(argv, arg, ap);
	va_end(ap);
	return execv(path, argv);
}

ET_EXPORT int execlp(const char *file, const char *arg, ...)
{
	char **argv;
	va_list ap;

	LIST_TO_ARGV(argv, arg, ap);
	va_end(ap);
	return execvp(file, argv);
}

ET_EXPORT int execle(const char *path, const char *arg, ...)
{
	char **argv, *const *envp;
	va_list ap;

	LIST_TO_ARGV(argv, arg, ap);
	envp = va_arg(ap, char *const *);
	va_end(ap);
	return execve(path, argv, envp);
}

ET_EXPORT int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
			  const posix_spawnattr_t *attr, char *const argv[], char *const envp[])
{
	et_process_hands_on();
	return et_real.posix_spawn(pid, path, actions, attr, argv, envp);
}

ET_EXPORT int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions,
			   const posix_spawnattr_t *attr, char *const argv[], char *const envp[])
{
	et_process_hands_on();
	return et_real.posix_spawnp(pid, file, actions, attr, argv, envp);
}

/* The child will have it under a number without FD_CLOEXEC. */
ET_EXPORT int posix_spawn_file_actions_adddup2(posix_spawn_file_actions_t *actions, int from,
					       int to)
{
	struct et_sock *s = et_sock_enter(from);

	if (s) {
		et_sock_pin_down(s, from, ETRAN_PATH_FORK);
		et_sock_leave(s);
	}
	return et_real.posix_spawn_file_actions_adddup2(actions, from, to);
}

ET_EXPORT int system(const char *command)
{
	et_process_hands_on();
	return et_real.system(command);
}

ET_EXPORT FILE *popen(const char *command, const char *type)
{
	et_process_hands_on();
	return et_real.popen(command, type);
}
