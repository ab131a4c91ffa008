// SPDX-License-Identifier: Apache-2.0
/*
 * Starting the Go side of the library (see start.h).
 *
 * A Go archive starts its runtime from .init_array, which would give every
 * preloaded `ls` five threads. The build renames that section (see
 * shim/CMakeLists.txt), so nothing happens at load, and the entries are called
 * from here when the process first uses TCP.
 *
 * Go behaves in a library as if the process were its own. Against that:
 *  - signals: the runtime's table of signals is cleared before the start. For
 *    signals without flags Go installs no handler, touches none of the
 *    program's and unblocks nothing, so its threads keep the full mask that
 *    the start runs under and never take a signal meant for the program.
 *    The price: a nil dereference in Go is a plain SIGSEGV, not a panic.
 *  - RLIMIT_NOFILE: package syscall raises it; et_go_ready() puts it back.
 *  - environment: Go sees a private block, not the program's.
 *  - descriptors: the runtime opens an epoll set with its first timer, and a
 *    program that closes all descriptors would then end in a Go panic. So no
 *    timers: the Go side sleeps in C, and GOGC=off keeps the collector and its
 *    timers still (the Go side allocates nothing while it runs; the memory
 *    limit is for the case that it does). The GODEBUG settings but the first
 *    keep the cgroup's files from staying open.
 *  - fork: the start lock is held across fork, and a child of a process in
 *    which Go ran never enters Go again.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "session.h"
#include "start.h"
#include "sys.h"

/*
 * Go reserves 1.3 GB of addresses at its start, without memory behind them, and
 * ends the process if it cannot (ulimit -v). This leaves the program some.
 */
#define ADDRESS_SPACE (2ull << 30)
/* A start takes 1 ms; this is for a machine that is badly overloaded. */
#define START_TIMEOUT_S 5

/* Variables for the Go runtime and, at most, copies of the program's ETRAN_*. */
#define RUNTIME_ENV 5
#define MAX_ENV 32
#define ENV_BYTES 4096
#define MAX_AUXV 64
#define GO_SIGNALS 65

typedef void (*go_init_fn)(int argc, char **argv, char **envp);

/* Weak: the unit tests link these files without any Go. */
extern go_init_fn __start_et_go_init[] __attribute__((weak));
extern go_init_fn __stop_et_go_init[] __attribute__((weak));

/* runtime.sigTabT, one per signal number. */
extern struct go_signal {
	int32_t flags;
	const char *name; /* a Go string: no terminator */
	intptr_t name_len;
} go_sigtable[GO_SIGNALS] __asm__("runtime.sigtable") __attribute__((weak));

/*
 * The relocations of Go's data that the build took out of the dynamic linker's
 * list (shim/relocs): where they are in the library, and how many.
 */
extern const char __ehdr_start[] __attribute__((visibility("hidden")));
static const volatile struct {
	uint64_t at, count;
} deferred __attribute__((section("et_deferred"), used)) = {0, 0};

enum start_state {
	START_IDLE, /* may be tried */
	START_NEVER,
	START_ENTERED, /* Go's entry has been called in this process */
	START_DEAD,    /* … in an ancestor, without exec since */
};

static pthread_mutex_t start_lock = PTHREAD_MUTEX_INITIALIZER;
static enum start_state state; /* written under start_lock, read without */
static uint32_t go_ready;      /* futex; 1 once Go is up */
static long start_pid; /* process the two words above are about */

static struct rlimit nofile_before;

/*
 * What Go takes for the process's initial stack: argv, NULL, envp, NULL, auxv.
 * It must stay; Go keeps pointers into it.
 */
static struct {
	char *argv[2];
	char *envp[RUNTIME_ENV + MAX_ENV + 1 + 2 * MAX_AUXV]; /* auxv directly behind */
} go_block = {
	.argv = {"etran", NULL},
	.envp = {"GODEBUG=asyncpreemptoff=1,containermaxprocs=0,updatemaxprocs=0", "GOMAXPROCS=2",
		 "GOGC=off", "GOMEMLIMIT=32MiB", "GOTRACEBACK=none"},
};
static char env_copy[ENV_BYTES];
static bool secure;

static void fork_prepare(void)
{
	pthread_mutex_lock(&start_lock);
}

static void fork_parent(void)
{
	pthread_mutex_unlock(&start_lock);
}

static void fork_child(void)
{
	if (state == START_ENTERED)
		__atomic_store_n(&state, START_DEAD, __ATOMIC_RELEASE);
	start_pid = et_sys3(SYS_getpid, 0, 0, 0);
	pthread_mutex_unlock(&start_lock);
}

/* Copies ETRAN_* behind the fixed variables; returns how many there are then. */
static size_t copy_environment(char **envp)
{
	size_t count = RUNTIME_ENV, used = 0;

	for (; *envp && count < RUNTIME_ENV + MAX_ENV; envp++) {
		size_t len = strlen(*envp) + 1;

		if (strncmp(*envp, "ETRAN_", 6) != 0 || len > ENV_BYTES - used)
			continue;
		memcpy(env_copy + used, *envp, len);
		go_block.envp[count++] = env_copy + used;
		used += len;
	}
	return count;
}

/* The auxiliary vector lies behind the original environment's NULL. */
static void copy_auxv(char **argv_end, size_t env_count)
{
	char **p = argv_end + 1;
	Elf64_auxv_t *from, *to = (Elf64_auxv_t *)&go_block.envp[env_count + 1];

	while (*p)
		p++;
	from = (Elf64_auxv_t *)(p + 1);
	for (int i = 0; i < MAX_AUXV - 1 && from[i].a_type != AT_NULL; i++) {
		to[i] = from[i];
		if (from[i].a_type == AT_SECURE && from[i].a_un.a_val)
			secure = true;
	}
}

void et_start_ctor(int argc, char **argv, char **envp)
{
	size_t env_count;

	/* A second registration would take start_lock twice at fork. */
	if (start_pid)
		return;
	env_count = copy_environment(envp);
	copy_auxv(argv + argc, env_count);
	start_pid = et_sys3(SYS_getpid, 0, 0, 0);
	pthread_atfork(fork_prepare, fork_parent, fork_child);
}

/* True if the ELF image has a section of that name. Trusts no offset in it. */
static bool has_section(const uint8_t *image, size_t size, const char *name)
{
	const Elf64_Ehdr *eh = (const Elf64_Ehdr *)image;
	const Elf64_Shdr *sh, *strings;
	size_t name_size = strlen(name) + 1;

	if (size < sizeof(*eh) || memcmp(eh->e_ident, ELFMAG, SELFMAG) != 0 ||
	    eh->e_ident[EI_CLASS] != ELFCLASS64 || eh->e_shentsize != sizeof(*sh) ||
	    eh->e_shoff % _Alignof(Elf64_Shdr) != 0 || eh->e_shoff > size ||
	    (size - eh->e_shoff) / sizeof(*sh) < eh->e_shnum || eh->e_shstrndx >= eh->e_shnum)
		return false;
	sh = (const Elf64_Shdr *)(image + eh->e_shoff);
	strings = &sh[eh->e_shstrndx];
	if (strings->sh_offset > size || strings->sh_size > size - strings->sh_offset)
		return false;
	for (int i = 0; i < eh->e_shnum; i++) {
		size_t at = sh[i].sh_name;

		if (at < strings->sh_size && strings->sh_size - at >= name_size &&
		    memcmp(image + strings->sh_offset + at, name, name_size) == 0)
			return true;
	}
	return false;
}

/*
 * Two Go runtimes in one process do not work. The file cannot shrink under the
 * mapping: the kernel refuses writes to a running program (ETXTBSY).
 */
static bool is_go_program(void)
{
	bool found = false;
	struct stat st;
	void *image;
	int fd = et_sys6(SYS_openat, AT_FDCWD, (long)"/proc/self/exe", O_RDONLY | O_CLOEXEC, 0, 0,
			 0);

	if (fd < 0)
		return false;
	if (fstat(fd, &st) == 0 && st.st_size > 0) {
		image = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
		if (image != MAP_FAILED) {
			found = has_section(image, st.st_size, ".go.buildinfo");
			munmap(image, st.st_size);
		}
	}
	et_sys_close(fd);
	return found;
}

static void *probe_thread(void *arg)
{
	return arg;
}

/* Go's start ends the process when it cannot have a thread, so try first. */
static bool can_create_thread(void)
{
	pthread_t thread;

	return pthread_create(&thread, NULL, probe_thread, NULL) == 0 &&
	       pthread_join(thread, NULL) == 0;
}

static bool has_address_space(void)
{
	void *p = mmap(NULL, ADDRESS_SPACE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		       -1, 0);

	if (p == MAP_FAILED)
		return false;
	munmap(p, ADDRESS_SPACE);
	return true;
}

static bool may_start(void)
{
	if (&__start_et_go_init[0] == &__stop_et_go_init[0] || secure || !start_pid)
		return false;
	return !is_go_program() && has_address_space() && can_create_thread();
}

/*
 * Makes Go blind to signals. The names are checked because the layout of the
 * table is Go's own affair: a Go version that changed it must not be started.
 */
static bool clear_go_signals(void)
{
	static const char hangup[] = "SIGHUP:", last[] = "signal 64";
	const struct go_signal *first = &go_sigtable[SIGHUP], *end = &go_sigtable[GO_SIGNALS - 1];

	if (!go_sigtable || first->name_len < (intptr_t)sizeof(hangup) ||
	    memcmp(first->name, hangup, sizeof(hangup) - 1) != 0 ||
	    end->name_len != sizeof(last) - 1 || memcmp(end->name, last, sizeof(last) - 1) != 0)
		return false;
	for (int i = 0; i < GO_SIGNALS; i++)
		go_sigtable[i].flags = 0;
	return true;
}

static void wait_until_ready(void)
{
	struct timespec left = {.tv_sec = START_TIMEOUT_S};

	/* No signal can interrupt the wait: all are blocked. */
	while (!__atomic_load_n(&go_ready, __ATOMIC_ACQUIRE) &&
	       et_futex_wait(&go_ready, 0, &left) != -ETIMEDOUT)
		;
}

/* Called by Go's init, on a Go thread, after package syscall's init. */
void et_go_ready(void)
{
	struct rlimit now;

	/* Go sets the soft limit to one below the hard one; anything else was
	 * set by the program in the meantime and stays. */
	if (getrlimit(RLIMIT_NOFILE, &now) == 0 && now.rlim_max == nofile_before.rlim_max &&
	    now.rlim_cur == now.rlim_max - 1)
		setrlimit(RLIMIT_NOFILE, &nofile_before);
	__atomic_store_n(&go_ready, 1, __ATOMIC_RELEASE);
	et_futex_wake(&go_ready, INT32_MAX);
}

/* What the dynamic linker has made read-only, as it has it; may be empty. */
static void find_relro(uintptr_t base, uintptr_t *start, size_t *size)
{
	const Elf64_Ehdr *eh = (const Elf64_Ehdr *)base;
	const Elf64_Phdr *ph = (const Elf64_Phdr *)(base + eh->e_phoff);
	const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE) - 1;

	*start = *size = 0;
	for (int i = 0; i < eh->e_phnum; i++)
		if (ph[i].p_type == PT_GNU_RELRO) {
			*start = (base + ph[i].p_vaddr) & ~page;
			*size = ((base + ph[i].p_vaddr + ph[i].p_memsz) & ~page) - *start;
		}
}

static bool relocate_go(void)
{
	const uintptr_t base = (uintptr_t)__ehdr_start;
	const Elf64_Rela *list = (const Elf64_Rela *)(base + deferred.at);
	uintptr_t start;
	size_t size;

	if (!deferred.count)
		return true;
	find_relro(base, &start, &size);
	if (mprotect((void *)start, size, PROT_READ | PROT_WRITE) != 0)
		return false;
	for (uint64_t i = 0; i < deferred.count; i++)
		*(uintptr_t *)(base + list[i].r_offset) = base + (uintptr_t)list[i].r_addend;
	return mprotect((void *)start, size, PROT_READ) == 0;
}

static void enter_go(void)
{
	go_init_fn *fn;

	if (!may_start() || !relocate_go() || getrlimit(RLIMIT_NOFILE, &nofile_before) != 0 ||
	    !clear_go_signals()) {
		__atomic_store_n(&state, START_NEVER, __ATOMIC_RELEASE);
		return;
	}
	__atomic_store_n(&state, START_ENTERED, __ATOMIC_RELEASE);
	for (fn = __start_et_go_init; fn < __stop_et_go_init; fn++)
		(*fn)(1, go_block.argv, go_block.envp);
	wait_until_ready();
}

/*
 * True in a vfork child, which shares this memory with its parent, and after a
 * bare clone or _Fork, of which pthread_atfork does not tell.
 */
static bool in_other_process(void)
{
	return et_sys3(SYS_getpid, 0, 0, 0) != start_pid;
}

static bool is_running(void)
{
	return __atomic_load_n(&state, __ATOMIC_ACQUIRE) == START_ENTERED &&
	       __atomic_load_n(&go_ready, __ATOMIC_ACQUIRE);
}

static void start_locked(void)
{
	sigset_t all, mask;
	int cancel;

	/* pthread_join is a cancellation point. */
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &mask);
	pthread_mutex_lock(&start_lock);
	if (state == START_IDLE)
		enter_go();
	pthread_mutex_unlock(&start_lock);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	pthread_setcancelstate(cancel, NULL);
}

bool et_go_start(void)
{
	enum start_state now = __atomic_load_n(&state, __ATOMIC_ACQUIRE);
	int saved_errno = errno;

	if (in_other_process() || now == START_NEVER || now == START_DEAD)
		return false;
	/* The lock also waits for another thread that is at it. */
	if (!is_running())
		start_locked();
	errno = saved_errno;
	return is_running();
}

bool et_go_dead_after_fork(void)
{
	enum start_state now = __atomic_load_n(&state, __ATOMIC_ACQUIRE);

	return now == START_DEAD || (now == START_ENTERED && in_other_process());
}
