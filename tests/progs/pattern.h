/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams of bytes that depend on a seed and on the position in the stream, so
 * that a receiver can check any part of one without having seen the rest, and
 * lost, doubled or exchanged bytes show. Plus what the programs that send and
 * check such streams both need.
 */
#ifndef ETRAN_TESTS_PATTERN_H
#define ETRAN_TESTS_PATTERN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

/* The splitmix64 generator's output function. */
static inline uint64_t pattern_mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

/* Writes the bytes [position, position + length) of the stream of a seed. */
static inline void pattern_fill(char *to, size_t length, uint64_t seed, uint64_t position)
{
	size_t done = 0;

	while (done < length) {
		uint64_t at = position + done;
		uint64_t word = pattern_mix(seed + (at / 8) * 0x9e3779b97f4a7c15u);
		size_t skip = at % 8;
		size_t take = sizeof(word) - skip;

		if (take > length - done)
			take = length - done;
		memcpy(to + done, (char *)&word + skip, take);
		done += take;
	}
}

/* A random number generator; advances its state. */
static inline uint64_t pattern_random(uint64_t *state)
{
	return pattern_mix((*state)++);
}

/* A random number from 1 to max whose logarithm is about uniform. */
static inline uint64_t pattern_log_uniform(uint64_t *state, uint64_t max)
{
	unsigned int bits = 64 - (unsigned int)__builtin_clzll(max);
	uint64_t top = 1ull << (pattern_random(state) % bits);
	uint64_t value = top + pattern_random(state) % top;

	return value > max ? max : value;
}

static inline uint64_t pattern_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#endif
