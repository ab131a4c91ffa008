/* SPDX-License-Identifier: Apache-2.0 */
/* The Internet checksum's sum (RFC 1071), not inverted, octets as in memory. */
#ifndef ET_CSUM_H
#define ET_CSUM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint16_t et_csum_fold(uint64_t sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

static inline uint16_t et_csum(const void *data, size_t n)
{
	const uint8_t *p = data;
	uint64_t a = 0, b = 0, word;

	/* Two chains of 32-bit halves: no carry to chase, and it vectorises. */
	for (; n >= 8; n -= 8, p += 8) {
		memcpy(&word, p, 8);
		a += (uint32_t)word;
		b += word >> 32;
	}
	word = 0;
	memcpy(&word, p, n);
	a += (uint32_t)word;
	b += word >> 32;
	return et_csum_fold((uint64_t)et_csum_fold(a) + et_csum_fold(b));
}

#endif
