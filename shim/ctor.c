/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one constructor. It resolves, reads and remembers; it starts nothing.
 */
#include "intercept.h"

#include <sys/auxv.h>

#include "config.h"
#include "process.h"
#include "start.h"

static __attribute__((constructor)) void constructor(int argc, char **argv, char **envp)
{
	int saved_errno = errno;

	et_resolve();
	/* With the privileges of another: take no orders from this environment. */
	if (!getauxval(AT_SECURE))
		et_config_read();
	et_process_init();
	et_start_ctor(argc, argv, envp);
	errno = saved_errno;
}
