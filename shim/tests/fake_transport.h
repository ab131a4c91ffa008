/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A transport for tests of the surface: it "promotes" a socket by a copy of
 * its descriptor and carries the octets with plain recv() and send(). The
 * socket's own readiness is suppressed meanwhile (SO_RCVLOWAT), so a surface
 * that still asks the kernel for it hangs.
 */
#ifndef ET_FAKE_TRANSPORT_H
#define ET_FAKE_TRANSPORT_H

#include <stdatomic.h>
#include <stdbool.h>

#include "transport.h"

struct fake {
	bool up;
	unsigned switch_us;   /* duration of a switch, at most; random */
	unsigned abort_every; /* every Nth switch is aborted; 0: none */
	unsigned demote_every; /* every Nth read asks for a demotion */
	bool please;           /* an operator asks for promotion all the time */
	unsigned fail_demote; /* demotions that shall fail */
	_Atomic unsigned opened, inherited, switched, aborted, demoted, released;
	_Atomic unsigned long fast_in, fast_out, kernel_in, kernel_out;
};
extern struct fake fake;

/* The state of `conn` as somebody outside sees it. */
bool fake_is_fast(const struct et_conn *c);
void fake_want_demote(struct et_conn *c, enum etran_path_reason why);

#endif
