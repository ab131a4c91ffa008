/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a unit test of the C side needs. A test is a program: functions declared
 * with TEST, called by RUN from main, which ends with `return unit_result();`.
 * A failed check is reported and the test goes on; use REQUIRE where it cannot.
 */
#ifndef ET_UNIT_H
#define ET_UNIT_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *unit_test = "";
static int unit_failures, unit_tests;

#define TEST(name) static void name(void)
#define RUN(name) (unit_test = #name, unit_tests++, name())

#define UNIT_FAIL(...)                                                                             \
	do {                                                                                       \
		unit_failures++;                                                                   \
		fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, unit_test);                     \
		fprintf(stderr, __VA_ARGS__);                                                      \
		fputc('\n', stderr);                                                               \
	} while (0)

#define CHECK(cond)                                                                                \
	do {                                                                                       \
		if (!(cond))                                                                       \
			UNIT_FAIL("%s", #cond);                                                    \
	} while (0)

/* Integers of any type up to long long. */
#define CHECK_EQ(got, want)                                                                        \
	do {                                                                                       \
		long long unit_got = (long long)(got), unit_want = (long long)(want);              \
		if (unit_got != unit_want)                                                         \
			UNIT_FAIL("%s is %lld, should be %lld", #got, unit_got, unit_want);        \
	} while (0)

#define CHECK_MEM(got, want, size)                                                                 \
	do {                                                                                       \
		if (memcmp(got, want, size) != 0)                                                  \
			UNIT_FAIL("%s differs from %s", #got, #want);                              \
	} while (0)

#define REQUIRE(cond)                                                                              \
	do {                                                                                       \
		if (!(cond)) {                                                                     \
			UNIT_FAIL("%s", #cond);                                                    \
			exit(1);                                                                   \
		}                                                                                  \
	} while (0)

static inline int unit_result(void)
{
	printf("%d tests, %d failed checks\n", unit_tests, unit_failures);
	return unit_failures != 0;
}

#endif
