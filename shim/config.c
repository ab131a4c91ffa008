/* SPDX-License-Identifier: Apache-2.0 */
#include "intercept.h"

#include "config.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "fdtable.h"
#include "sys.h"
#include "transport.h"

#define DEFAULT_RUN_DIR "/run/etran"
#define DEFAULT_SPIN_US 50u
#define LINE_MAX_OCTETS 256

struct et_config et_config = {
	.spin_us = ET_CONFIG_UNSET,
	.promote_after = ET_CONFIG_UNSET,
	.promote_bytes = ET_CONFIG_UNSET,
	.log_fd = -1,
	.run_dir = DEFAULT_RUN_DIR,
};

/* A whole decimal number, or unset. */
static uint32_t number(const char *name)
{
	const char *text = getenv(name);
	char *end;
	unsigned long value;

	if (!text || *text < '0' || *text > '9')
		return ET_CONFIG_UNSET;
	value = strtoul(text, &end, 10);
	return *end || value >= ET_CONFIG_UNSET ? ET_CONFIG_UNSET : (uint32_t)value;
}

static void open_log(const char *path)
{
	int fd = (int)et_sys6(SYS_openat, AT_FDCWD, (long)path,
			      O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY, 0644, 0, 0);

	if (fd >= 0)
		et_config.log_fd = et_fd_hide(fd);
}

void et_config_read(void)
{
	const char *promote = getenv("ETRAN_PROMOTE"), *dir = getenv("ETRAN_RUN_DIR"),
		   *log = getenv("ETRAN_LOG");
	int saved_errno = errno;

	et_config.promote = !promote || strcmp(promote, "off") != 0;
	et_config.spin_us = number("ETRAN_SPIN_US");
	et_config.promote_after = number("ETRAN_PROMOTE_AFTER");
	et_config.promote_bytes = number("ETRAN_PROMOTE_BYTES");
	if (dir && *dir && strlen(dir) < sizeof(et_config.run_dir))
		strcpy(et_config.run_dir, dir);
	if (log && *log)
		open_log(log);
	et_policy.promote = et_config.promote;
	/* Without a daemon nothing spins, unless the program is to be measured
	 * on the kernel path. */
	if (!et_config.promote)
		et_policy.spin_us =
			et_config.spin_us != ET_CONFIG_UNSET ? et_config.spin_us : DEFAULT_SPIN_US;
	et_config.active = et_config.promote || et_policy.spin_us;
	errno = saved_errno;
}

/* The program may ask for less spinning and for later promotion only. */
void et_config_policy(uint32_t promote_after, uint32_t promote_bytes, uint32_t spin_us)
{
	const struct et_config *c = &et_config;

	if (c->promote_after != ET_CONFIG_UNSET && c->promote_after > promote_after)
		promote_after = c->promote_after;
	if (c->promote_bytes != ET_CONFIG_UNSET && c->promote_bytes > promote_bytes)
		promote_bytes = c->promote_bytes;
	if (c->spin_us < spin_us)
		spin_us = c->spin_us;
	et_policy.promote_after = promote_after;
	et_policy.promote_bytes = promote_bytes;
	et_policy.spin_us = spin_us;
	et_policy.promote = c->promote;
}

void et_log(const char *format, ...)
{
	char line[LINE_MAX_OCTETS];
	int n, saved_errno = errno;
	va_list ap;

	if (et_config.log_fd < 0)
		return;
	n = snprintf(line, sizeof(line), "etran[%d]: ", (int)et_sys3(SYS_getpid, 0, 0, 0));
	va_start(ap, format);
	n += vsnprintf(line + n, sizeof(line) - (size_t)n, format, ap);
	va_end(ap);
	if (n > LINE_MAX_OCTETS - 1)
		n = LINE_MAX_OCTETS - 1;
	line[n] = '\n';
	et_sys_write(et_config.log_fd, line, (size_t)n + 1);
	errno = saved_errno;
}
