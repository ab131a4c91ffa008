/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* Every frame of ours that a program does not pass on is counted here. */
#ifndef ETRAN_BPF_COUNT_H
#define ETRAN_BPF_COUNT_H

#include "maps.h"

static __always_inline void count(__u32 reason)
{
	__u64 *n = bpf_map_lookup_elem(&drops, &reason);

	if (n)
		*n += 1;
}

/* Returns the verdict, so that a drop is one statement. */
static __always_inline int drop(__u32 reason)
{
	count(reason);
	return XDP_DROP;
}

#endif
