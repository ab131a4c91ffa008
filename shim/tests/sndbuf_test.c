/* SPDX-License-Identifier: Apache-2.0 */
/* The send buffer and the checksum, against plain models. */
#include "sndbuf.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

#include "csum.h"
#include "unit.h"

#define SIZE 4096u

static uint8_t ring[SIZE], scratch[SIZE], stream[1 << 18];

static void one_stream(unsigned seed)
{
	struct etran_sndbuf b;
	uint32_t isn, given = 0, sent = 0;

	srand(seed);
	isn = seed & 1 ? UINT32_MAX - 3000 : (uint32_t)rand();
	b = (struct etran_sndbuf){isn, isn, isn, isn};
	for (unsigned i = 0; i < sizeof(stream); i++)
		stream[i] = (uint8_t)rand();
	while (sent < sizeof(stream)) {
		uint32_t n = (uint32_t)rand() % 1500, m;
		struct iovec iov[2];

		if (n > sizeof(stream) - given)
			n = (uint32_t)sizeof(stream) - given;
		iov[0] = (struct iovec){stream + given, n / 3};
		iov[1] = (struct iovec){stream + given + n / 3, n - n / 3};
		given += (uint32_t)snd_append(&b, ring, SIZE, iov, 2);
		CHECK(b.end - isn == given && b.end - b.una <= SIZE);
		m = b.end - b.nxt < 1448 ? b.end - b.nxt : 1448;
		CHECK(memcmp(snd_view(&b, ring, SIZE, b.nxt, m, scratch), stream + (b.nxt - isn),
			     m) == 0);
		b.nxt += m;
		sent += m;
		/* Acknowledge some; an ACK beyond what was sent changes nothing. */
		if (b.nxt != b.una)
			snd_acked(&b, b.una + (uint32_t)rand() % (b.nxt - b.una + 1));
		snd_acked(&b, b.nxt + 1);
		/* What is in flight can be sent again. */
		m = b.nxt - b.una < 1448 ? b.nxt - b.una : 1448;
		CHECK(memcmp(snd_view(&b, ring, SIZE, b.una, m, scratch), stream + (b.una - isn),
			     m) == 0);
	}
}

static void random_streams(void)
{
	for (unsigned seed = 1; seed <= 8; seed++)
		one_stream(seed);
}

static uint16_t slow_csum(const uint8_t *p, size_t n)
{
	uint32_t sum = 0;

	for (size_t i = 0; i < n; i += 2)
		sum += (uint32_t)p[i] << 8 | (i + 1 < n ? p[i + 1] : 0);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return htons((uint16_t)sum);
}

static void checksum_is_rfc1071(void)
{
	for (size_t n = 0; n < 1600; n++) {
		uint16_t want = slow_csum(stream + n, n), got = et_csum(stream + n, n);

		/* 0 and 0xffff are the same number in one's complement. */
		CHECK(want == got || (uint16_t)(want + got) == 0xffff);
	}
}

int main(void)
{
	RUN(random_streams);
	RUN(checksum_is_rfc1071);
	return unit_result();
}
