/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the daemon's eBPF programs tell it about kernel sockets.
 */
#ifndef ETRAN_SOCKET_H
#define ETRAN_SOCKET_H

#include <linux/types.h>

/*
 * Properties of a TCP socket that no socket option tells: the octets that the
 * program `etran_inspect` writes for a socket, one __u32 of these bits.
 */
enum etran_sock_trait {
	/* bound to a port by the program */
	ETRAN_SOCK_PORT_BOUND = 0x1,
	/* bound to an address by the program (or its listener's was) */
	ETRAN_SOCK_ADDRESS_BOUND = 0x2,
	/* in a sockmap, or another subsystem took its callbacks over */
	ETRAN_SOCK_TAKEN = 0x4,
	/* has keys of TCP-MD5 (RFC 2385) or TCP-AO (RFC 5925) */
	ETRAN_SOCK_SIGNED = 0x8,
	/* urgent data has come and was not read */
	ETRAN_SOCK_URGENT = 0x10,
	/* more than two hold the file: the daemon, and one descriptor of the program */
	ETRAN_SOCK_SHARED = 0x20,
};

#endif
