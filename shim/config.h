/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the environment asks for. Read once, in the constructor, into copies:
 * programs change and overwrite their environment.
 *
 *   ETRAN_PROMOTE=off      stay on the kernel; no daemon, no Go runtime
 *   ETRAN_SPIN_US=N        spin for at most N µs before sleeping; 0 = never
 *   ETRAN_PROMOTE_AFTER=N  promote after N exchanges
 *   ETRAN_PROMOTE_BYTES=N  or after N octets
 *   ETRAN_PORTS=N,N-N      promote only connections with one of these at an end
 *   ETRAN_NETWORKS=A/N,…   … with a peer in one of these
 *   ETRAN_STRICT=1         a connection that is refused the fast path ends as by a
 *                          reset; without a daemon: ENETDOWN
 *   ETRAN_RUN_DIR=DIR      the daemon's directory
 *   ETRAN_LOG=FILE         append log lines to this file
 */
#ifndef ET_CONFIG_H
#define ET_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#define ET_CONFIG_UNSET UINT32_MAX
/* Ranges of ports, and networks, that a program's rules may have. */
#define ET_CONFIG_RANGES 16

/* From first to last, in host byte order. */
struct et_range {
	uint32_t first, last;
};

/* No ranges: all. One that could not be read: none. */
struct et_ranges {
	struct et_range range[ET_CONFIG_RANGES];
	unsigned count;
	bool given;
};

struct et_config {
	bool active;  /* false: every call goes straight through */
	bool promote; /* the fast path may be used */
	uint32_t spin_us;
	uint32_t promote_after;
	uint32_t promote_bytes;
	bool strict;
	struct et_ranges ports, networks;
	int log_fd;
	char run_dir[96];
};
extern struct et_config et_config;

void et_config_read(void);
/* The daemon's policy has come: into et_policy, where the program has no own. */
void et_config_policy(uint32_t promote_after, uint32_t promote_bytes, uint32_t spin_us);

/* May the connection of this socket be promoted, by the program's rules? */
bool et_config_allows(int fd);

/* One line into the log file, if there is one. Bounded; keeps errno. */
void et_log(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
