/* SPDX-License-Identifier: Apache-2.0 */
#include "intercept.h"

#include "config.h"

#include <arpa/inet.h>
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

/* "1-3" or "1". */
static bool read_ports(const char *text, const char *end, struct et_range *r)
{
	char *at;

	r->first = r->last = (uint32_t)strtoul(text, &at, 10);
	if (at < end && *at == '-')
		r->last = (uint32_t)strtoul(at + 1, &at, 10);
	return at == end && r->first <= r->last && r->last <= UINT16_MAX;
}

/* "10.0.0.0/8". */
static bool read_network(const char *text, const char *end, struct et_range *r)
{
	char address[INET_ADDRSTRLEN];
	const char *slash = memchr(text, '/', (size_t)(end - text));
	struct in_addr in;
	unsigned long bits;
	uint32_t hosts;
	char *at;

	if (!slash || (size_t)(slash - text) >= sizeof(address))
		return false;
	memcpy(address, text, (size_t)(slash - text));
	address[slash - text] = 0;
	bits = strtoul(slash + 1, &at, 10);
	if (at != end || bits > 32 || inet_pton(AF_INET, address, &in) != 1)
		return false;
	hosts = bits ? (uint32_t)((1ull << (32 - bits)) - 1) : UINT32_MAX;
	r->first = ntohl(in.s_addr) & ~hosts;
	r->last = r->first | hosts;
	return true;
}

/* A list with commas; what cannot be read leaves nothing allowed. */
static void read_ranges(const char *name, struct et_ranges *out,
			bool (*read)(const char *, const char *, struct et_range *))
{
	const char *text = getenv(name);

	if (!text || !*text)
		return;
	out->given = true;
	for (;;) {
		const char *end = text + strcspn(text, ",");

		if (out->count == ET_CONFIG_RANGES || !read(text, end, &out->range[out->count])) {
			out->count = 0;
			return;
		}
		out->count++;
		if (!*end)
			return;
		text = end + 1;
	}
}

static bool within(const struct et_ranges *list, uint32_t value)
{
	for (unsigned i = 0; i < list->count; i++)
		if (value >= list->range[i].first && value <= list->range[i].last)
			return true;
	return !list->given;
}

bool et_config_allows(int fd)
{
	const struct et_config *c = &et_config;
	struct sockaddr_in local = {0}, peer = {0};
	socklen_t n = sizeof(local);

	if (et_likely(!c->ports.given && !c->networks.given))
		return true;
	if (et_sys3(SYS_getsockname, fd, (long)&local, (long)&n) < 0)
		return false;
	n = sizeof(peer);
	if (et_sys3(SYS_getpeername, fd, (long)&peer, (long)&n) < 0)
		return false;
	return (within(&c->ports, ntohs(local.sin_port)) ||
		within(&c->ports, ntohs(peer.sin_port))) &&
	       within(&c->networks, ntohl(peer.sin_addr.s_addr));
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
		   *log = getenv("ETRAN_LOG"), *strict = getenv("ETRAN_STRICT");
	int saved_errno = errno;

	et_config.promote = !promote || strcmp(promote, "off") != 0;
	et_config.spin_us = number("ETRAN_SPIN_US");
	et_config.promote_after = number("ETRAN_PROMOTE_AFTER");
	et_config.promote_bytes = number("ETRAN_PROMOTE_BYTES");
	et_config.strict = strict && !strcmp(strict, "1");
	read_ranges("ETRAN_PORTS", &et_config.ports, read_ports);
	read_ranges("ETRAN_NETWORKS", &et_config.networks, read_network);
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
	atomic_store(&et_page.watching, !et_config.promote);
	errno = saved_errno;
}

static uint32_t chosen(uint32_t own, uint32_t policy)
{
	return own != ET_CONFIG_UNSET ? own : policy;
}

/* What the program has chosen costs its own time, and is bounded by what the
 * daemon does for one program. */
void et_config_policy(uint32_t promote_after, uint32_t promote_bytes, uint32_t spin_us)
{
	const struct et_config *c = &et_config;

	et_policy.promote_after = chosen(c->promote_after, promote_after);
	et_policy.promote_bytes = chosen(c->promote_bytes, promote_bytes);
	et_policy.spin_us = chosen(c->spin_us, spin_us);
	et_policy.promote = c->promote;
	atomic_store(&et_page.watching, true);
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
