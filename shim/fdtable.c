/* SPDX-License-Identifier: Apache-2.0 */
#include "fdtable.h"

#include <fcntl.h>
#include <sys/mman.h>

#include "epoll.h"
#include "process.h"
#include "sock.h"
#include "sys.h"

#define HIDE_FLOOR 700

static _Atomic uint32_t high; /* one beyond the highest entry ever made */

static bool map_table(void)
{
	const size_t size = ET_FD_MAX * sizeof(*et_fd_table);
	_Atomic uintptr_t *mapped, *expected = NULL;

	if (__atomic_load_n(&et_fd_limit, __ATOMIC_ACQUIRE))
		return true;
	mapped = et_sys_mmap(size, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (et_sys_error(mapped))
		return false;
	if (!__atomic_compare_exchange_n(&et_fd_table, &expected, mapped, false, __ATOMIC_ACQ_REL,
					 __ATOMIC_ACQUIRE))
		et_sys3(SYS_munmap, (long)mapped, (long)size, 0);
	/* Readers look at the limit first. */
	__atomic_store_n(&et_fd_limit, ET_FD_MAX, __ATOMIC_RELEASE);
	return true;
}

static void raise_high(int fd)
{
	uint32_t seen = atomic_load(&high), want = (uint32_t)fd + 1;

	while (seen < want && !atomic_compare_exchange_weak(&high, &seen, want))
		;
}

void et_file_put(struct et_file *f, enum et_kind kind, uint64_t sub)
{
	uint64_t before = atomic_fetch_sub(&f->users, sub);

	if (et_likely((uint32_t)(before - sub)))
		return;
	if (kind == ET_FD_EPOLL)
		et_epoll_free((struct et_epoll *)f);
	else
		et_sock_free((struct et_sock *)f);
}

void *et_fd_pin(int fd, enum et_kind kind, uint64_t add)
{
	if (et_borrowed()) {
		et_process_reclaims(fd);
		return NULL;
	}
	for (;;) {
		uintptr_t entry = et_fd_entry(fd);
		struct et_file *f = et_entry_object(entry);

		if (!f || et_entry_kind(entry) != kind)
			return NULL;
		if (!et_file_pin(f, add))
			continue;
		/* Still the same: the pin holds what the entry names. */
		if (et_fd_entry(fd) == entry)
			return f;
		et_file_put(f, kind, add);
	}
}

bool et_fd_set(int fd, struct et_file *f, enum et_kind kind)
{
	if ((uint32_t)fd >= ET_FD_MAX || et_borrowed() || !map_table())
		return false;
	raise_high(fd);
	if (f) {
		atomic_fetch_add(&f->users, ET_PIN);
		if (atomic_fetch_add(&f->fds, 1) == 0)
			atomic_store(&f->fd, fd);
	}
	atomic_store_explicit(&et_fd_table[fd], (uintptr_t)f | kind, memory_order_release);
	if (fd < ET_FD_QUICK)
		atomic_fetch_or(&et_page.seen[fd / 64], 1ull << (fd % 64));
	return true;
}

void et_fd_turn(int fd, struct et_file *f, enum et_kind from, enum et_kind to)
{
	uintptr_t expected = (uintptr_t)f | from;

	atomic_compare_exchange_strong(&et_fd_table[fd], &expected, (uintptr_t)f | to);
}

/* Another descriptor of the file, for calls that need one. */
static void move_fd(int fd, struct et_file *f)
{
	uint32_t end = atomic_load(&high);

	if (atomic_load(&f->fd) != fd)
		return;
	for (uint32_t i = 0; i < end; i++)
		if ((int)i != fd && et_entry_object(et_fd_entry((int)i)) == f) {
			atomic_store(&f->fd, (int)i);
			return;
		}
}

int et_fd_clear(int fd, struct et_file *f, enum et_kind kind)
{
	uintptr_t expected = (uintptr_t)f | kind;
	uint32_t left;

	if (!atomic_compare_exchange_strong(&et_fd_table[fd], &expected, 0))
		return -1;
	left = atomic_fetch_sub(&f->fds, 1) - 1;
	if (left)
		move_fd(fd, f);
	return (int)left;
}

int et_fd_next(uint32_t from, uint32_t to)
{
	uint32_t end = atomic_load(&high);

	for (uint32_t i = from; i < end && i <= to; i++)
		if (et_fd_entry((int)i))
			return (int)i;
	return -1;
}

int et_fd_hide(int fd)
{
	int moved = et_sys_fcntl(fd, F_DUPFD_CLOEXEC, HIDE_FLOOR);

	if (moved >= 0) {
		et_sys_close(fd);
		fd = moved;
	}
	et_fd_set(fd, NULL, ET_FD_HIDDEN);
	return fd;
}

void et_fd_unhide(int fd)
{
	uintptr_t expected = ET_FD_HIDDEN;

	if (et_fd_entry(fd))
		atomic_compare_exchange_strong(&et_fd_table[fd], &expected, 0);
}

void et_fd_unhide_all(void)
{
	for (int fd = et_fd_next(0, ET_FD_MAX); fd >= 0;
	     fd = et_fd_next((uint32_t)fd + 1, ET_FD_MAX))
		et_fd_unhide(fd);
}
