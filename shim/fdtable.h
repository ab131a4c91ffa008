/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Descriptor numbers that mean something to us.
 *
 * A sparse array: number → object and kind, one word. Readers take no lock;
 * writers store an entry whole. An object has one `fds` per entry and lives as
 * long as it has pins: an entry is a pin, a thread that uses it is another.
 */
#ifndef ET_FDTABLE_H
#define ET_FDTABLE_H

#include "intercept.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define ET_FD_MAX (1u << 20)

/* Kinds, in the low bits of an entry. */
enum et_kind {
	ET_FD_SOCK = 0,     /* struct et_sock that may be promoted */
	ET_FD_LISTENER = 1, /* struct et_sock that listens */
	ET_FD_EPOLL = 2,    /* struct et_epoll */
	ET_FD_HIDDEN = 3,   /* the library's own descriptor, no object */
};
#define ET_KIND_MASK 3ul

/* Start of every object in the table: one open file description. */
struct et_file {
	_Atomic uint64_t users; /* pins below, threads inside a call above */
	_Atomic uint32_t fds;   /* entries of the table */
	_Atomic int fd;         /* one of them */
};
#define ET_PIN 1ull
#define ET_INSIDE (1ull << 32)

#define et_fd_table et_page.fd_table
#define et_fd_limit et_page.fd_limit

/* The quick look: a number that never was ours has its bit clear. Bits stay, so
 * that no order of events can lose one. */
static inline bool et_fd_unseen(int fd)
{
	return (uint32_t)fd < ET_FD_QUICK &&
	       !(atomic_load_explicit(&et_page.seen[(uint32_t)fd / 64], memory_order_relaxed) >>
			 ((uint32_t)fd % 64) &
		 1);
}

static inline uintptr_t et_fd_entry(int fd)
{
	if (et_likely(et_fd_unseen(fd)) || et_unlikely((uint32_t)fd >= et_fd_limit))
		return 0;
	return atomic_load_explicit(&et_fd_table[fd], memory_order_acquire);
}

static inline enum et_kind et_entry_kind(uintptr_t entry)
{
	return entry & ET_KIND_MASK;
}

static inline void *et_entry_object(uintptr_t entry)
{
	return (void *)(entry & ~ET_KIND_MASK);
}

/* A descriptor of this kind? Says nothing about the next moment. */
static inline bool et_fd_is(int fd, enum et_kind kind)
{
	uintptr_t entry = et_fd_entry(fd);

	return et_unlikely(entry) && et_entry_kind(entry) == kind;
}

/* Add `add` (ET_PIN, perhaps ET_INSIDE) unless the object is being freed. */
static inline bool et_file_pin(struct et_file *f, uint64_t add)
{
	uint64_t users = atomic_load_explicit(&f->users, memory_order_relaxed);

	do {
		if (!(uint32_t)users)
			return false;
	} while (!atomic_compare_exchange_weak(&f->users, &users, users + add));
	return true;
}

/* Threads inside a call on the file. */
static inline uint32_t et_file_inside(struct et_file *f)
{
	return (uint32_t)(atomic_load(&f->users) >> 32);
}

/* Give back what was added; frees the object with its last pin. */
void et_file_put(struct et_file *f, enum et_kind kind, uint64_t sub);

/* The pinned object behind a descriptor of that kind, or NULL. A vfork child is
 * given none: the numbers are its own, the objects are its parent's. */
void *et_fd_pin(int fd, enum et_kind kind, uint64_t add);

/* Enter an object; takes a pin for the entry. False: fd is beyond the table, or
 * this is a vfork child. */
bool et_fd_set(int fd, struct et_file *f, enum et_kind kind);
/* Change the kind of an entry. */
void et_fd_turn(int fd, struct et_file *f, enum et_kind from, enum et_kind to);
/*
 * Take the entry out if it is this object. The pin of the entry passes to the
 * caller, and file->fd is moved to another descriptor of it, if any. Returns
 * the entries that are left, or -1: somebody else took it out.
 */
int et_fd_clear(int fd, struct et_file *f, enum et_kind kind);
/* First descriptor >= from that has an entry and is <= to; -1: none. */
int et_fd_next(uint32_t from, uint32_t to);

/*
 * For descriptors of the library itself: moved to a high number, out of the
 * program's way, and safe from its close(). Returns the new number, or fd if it
 * cannot be moved.
 */
int et_fd_hide(int fd);
void et_fd_unhide(int fd);
void et_fd_unhide_all(void);

#endif
