/* SPDX-License-Identifier: Apache-2.0 */
#include "intercept.h"

#include "process.h"

#include <alloca.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <unistd.h>

#include "config.h"
#include "epoll.h"
#include "fds.h"
#include "lock.h"
#include "sock.h"
#include "start.h"

long et_pid;
_Atomic uint64_t et_fork_epoch;
__thread bool et_vforked;
const uint32_t *et_own_mark;

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
/* Threads that wait in vfork(): their children have all descriptors. */
static _Atomic uint32_t vforks;

/* ---- who shares what ----------------------------------------------------- */

/* Is there a child alive that was forked after `born`? */
static bool children_since(uint64_t born)
{
	static const struct timespec now;
	bool any = atomic_load(&vforks) != 0;

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
	const int line = new_line[0];

	if (!et_fd_limit || !et_policy.promote)
		return;
	if (line >= 0)
		et_sys_close(new_line[1]);
	/* A child that no handler is run for must not take it for its own. */
	new_line[0] = new_line[1] = -1;
	if (line >= 0 && et_lock(&lifeline_lock)) {
		l = free_line();
		if (l) {
			l->fd = et_fd_hide(line);
			l->epoch = epoch;
		}
		et_unlock(&lifeline_lock);
	}
	if (l)
		return;
	if (line >= 0)
		et_sys_close(line);
	atomic_store(&unwatched, epoch);
}

static void mark_own(void)
{
	if (et_own_mark)
		*(volatile uint32_t *)et_own_mark = 1;
}

void et_process_child(void)
{
	et_pid = et_sys3(SYS_getpid, 0, 0, 0);
	mark_own();
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
	const size_t size = (size_t)sysconf(_SC_PAGESIZE);
	void *page = et_sys_mmap(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	et_pid = et_sys3(SYS_getpid, 0, 0, 0);
	if (!et_sys_error(page) &&
	    et_sys3(SYS_madvise, (long)page, (long)size, MADV_WIPEONFORK) == 0)
		et_own_mark = page;
	mark_own();
	pthread_atfork(prepare, in_parent, et_process_child);
}

void et_process_unwatched(void)
{
	atomic_store(&unwatched, atomic_fetch_add(&et_fork_epoch, 1) + 1);
}

/* Runs no handlers; may be called by a signal handler. */
ET_EXPORT pid_t _Fork(void)
{
	pid_t pid;

	et_process_unwatched();
	pid = et_real._Fork();
	if (pid == 0)
		et_process_child();
	return pid;
}

/* Its parent ends at once, so all that is the parent's is the child's. */
ET_EXPORT int daemon(int nochdir, int noclose)
{
	int r;

	for (int fd = et_fd_next(0, ET_FD_MAX); fd >= 0;
	     fd = et_fd_next((uint32_t)fd + 1, ET_FD_MAX))
		et_process_lends(fd);
	r = et_real.daemon(nochdir, noclose);
	for (int fd = 0; r == 0 && !noclose && fd <= STDERR_FILENO; fd++)
		et_fd_new(fd);
	return r;
}

/* ---- vfork, see vfork.S -------------------------------------------------- */

void et_vfork_begin(void);
int et_vfork_child(void);
int et_vfork_parent(long r);

void et_vfork_begin(void)
{
	atomic_fetch_add(&vforks, 1);
	atomic_fetch_add(&et_fork_epoch, 1);
}

int et_vfork_child(void)
{
	et_vforked = true;
	return 0;
}

/* The child is gone or has another program. r: its id, or a negative errno. */
int et_vfork_parent(long r)
{
	atomic_fetch_sub(&vforks, 1);
	if (et_vforked && et_own_process())
		et_vforked = false;
	return (int)et_return(r);
}

/* ---- clone --------------------------------------------------------------- */

struct start {
	int (*run)(void *);
	void *arg;
};

/* In memory of its own. */
static int run_copy(void *arg)
{
	const struct start s = *(const struct start *)arg;

	et_process_child();
	return s.run(s.arg);
}

/* As after vfork(). */
static int run_borrowing(void *arg)
{
	const struct start *s = arg;

	et_vfork_child();
	return s->run(s->arg);
}

/* What shares the memory and does not stop its parent is a thread to us. */
ET_EXPORT int clone(int (*run)(void *), void *stack, int flags, void *arg, ...)
{
	struct start s = {run, arg};
	pid_t *parent, *child;
	void *tls;
	va_list ap;
	int r;

	va_start(ap, arg);
	parent = va_arg(ap, pid_t *);
	tls = va_arg(ap, void *);
	child = va_arg(ap, pid_t *);
	va_end(ap);
	if (!(flags & (CLONE_VM | CLONE_FILES))) {
		et_process_unwatched();
		return et_real.clone(run_copy, stack, flags, &s, parent, tls, child);
	}
	if (!(flags & CLONE_VM) || !(flags & CLONE_VFORK) || flags & (CLONE_SETTLS | CLONE_FILES))
		return et_real.clone(run, stack, flags, arg, parent, tls, child);
	et_vfork_begin();
	r = et_real.clone(run_borrowing, stack, flags, &s, parent, tls, child);
	return et_vfork_parent(r < 0 ? -errno : r);
}

int __clone(int (*run)(void *), void *stack, int flags, void *arg, ...)
	__attribute__((alias("clone"), copy(clone), visibility("default")));

void et_process_use(void)
{
	if (et_likely(atomic_load_explicit(&in_use, memory_order_relaxed)) || !et_policy.promote)
		return;
	if (!et_own_process() || atomic_exchange(&in_use, true))
		return;
	if (!et_go_start())
		et_log("no control side: stays on the kernel");
}

bool et_process_denies(void)
{
	static _Atomic int naps = 2000; /* for all connections together */
	const struct timespec nap = {.tv_nsec = 1000000};

	if (et_likely(!et_config.strict) || !et_config.promote)
		return false;
	et_process_use();
	while (!et_up() && atomic_load(&naps) > 0) {
		atomic_fetch_sub(&naps, 1);
		et_sys3(SYS_nanosleep, (long)&nap, 0, 0);
	}
	return !et_up();
}

/* ---- exec ---------------------------------------------------------------- */

void et_process_lends(int fd)
{
	struct et_sock *s = et_sock_enter(fd);

	if (!s)
		return;
	if (!et_own_process())
		et_process_reclaims(fd);
	else
		et_sock_to_kernel(s, fd, ETRAN_PATH_FORK);
	et_sock_leave(s);
}

void et_process_reclaims(int fd)
{
	struct et_sock *s = et_entry_object(et_fd_entry(fd));

	/* The mode is the owner's word: look, do not touch. */
	if (et_fd_is(fd, ET_FD_SOCK) && et_sock_mode(s) != ET_MODE_KERNEL)
		et_demote_foreign(fd);
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

ET_EXPORT int execveat(int dir, const char *path, char *const argv[], char *const envp[], int flags)
{
	et_process_hands_on();
	return et_real.execveat(dir, path, argv, envp, flags);
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
