/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Everything that two sides of eTran share, defined once.
 *
 * Rules: natural alignment, padding spelled out, no bitfields, no packed
 * structures, no anonymous unions (bpf2go gets those wrong without a word).
 * The Go twins are generated from the BTF of c-abi/abi.bpf.c; a test compares
 * both with what a C compiler makes of these headers.
 */
#ifndef ETRAN_ABI_H
#define ETRAN_ABI_H

#include "arena.h"
#include "control.h"
#include "datapath.h"
#include "limits.h"
#include "reasons.h"
#include "socket.h"

#endif
