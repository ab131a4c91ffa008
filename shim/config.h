/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the environment asks for. Read once, in the constructor, into copies:
 * programs change and overwrite their environment.
 *
 *   ETRAN_PROMOTE=off      stay on the kernel; no daemon, no Go runtime
 *   ETRAN_SPIN_US=N        spin for at most N µs before sleeping; 0 = never
 *   ETRAN_PROMOTE_AFTER=N  promote after N exchanges
 *   ETRAN_PROMOTE_BYTES=N  or after N octets
 *   ETRAN_RUN_DIR=DIR      the daemon's directory
 *   ETRAN_LOG=FILE         append log lines to this file
 */
#ifndef ET_CONFIG_H
#define ET_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#define ET_CONFIG_UNSET UINT32_MAX

struct et_config {
	bool active;  /* false: every call goes straight through */
	bool promote; /* the fast path may be used */
	uint32_t spin_us;
	uint32_t promote_after;
	uint32_t promote_bytes;
	int log_fd;
	char run_dir[96];
};
extern struct et_config et_config;

void et_config_read(void);
/* The daemon's policy has come: into et_policy, as far as the program allows. */
void et_config_policy(uint32_t promote_after, uint32_t promote_bytes, uint32_t spin_us);

/* One line into the log file, if there is one. Bounded; keeps errno. */
void et_log(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
