/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0) */
/* Sequence number arithmetic modulo 2^32 (RFC 9293 3.4). */
#ifndef ETRAN_BPF_SEQ_H
#define ETRAN_BPF_SEQ_H

#include <linux/types.h>
#include <stdbool.h>

static __always_inline bool seq_before(__u32 a, __u32 b)
{
	return (__s32)(a - b) < 0;
}

static __always_inline bool seq_after(__u32 a, __u32 b)
{
	return (__s32)(a - b) > 0;
}

static __always_inline __u32 seq_max(__u32 a, __u32 b)
{
	return seq_after(a, b) ? a : b;
}

static __always_inline __u32 seq_min(__u32 a, __u32 b)
{
	return seq_before(a, b) ? a : b;
}

/* start <= s <= end */
static __always_inline bool seq_within(__u32 s, __u32 start, __u32 end)
{
	return s - start <= end - start;
}

#endif
