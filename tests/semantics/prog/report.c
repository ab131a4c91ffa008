/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The transcript, and what cases need to get into the states they are about.
 */
#include "semantics.h"

#include <stdarg.h>

#define PATIENCE_MS 5000
/* So long a call must last to count as blocking. */
#define BLOCKING_MS 40

char stream[STREAM_OCTETS];
size_t sent, received;
char in[1 << 20];
volatile sig_atomic_t handled;

void say(const char *format, ...)
{
	va_list ap;

	printf("  ");
	va_start(ap, format);
	vprintf(format, ap);
	va_end(ap);
	putchar('\n');
}

void give_up(const char *format, ...)
{
	va_list ap;

	fflush(stdout);
	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	fputc('\n', stderr);
	_exit(1);
}

const char *errno_name(int err)
{
	const char *name = err == 0 ? "0" : strerrorname_np(err);

	return name ? name : "of no name";
}

static void put_result(const char *text, long result, int err)
{
	if (result == -1)
		say("%s = -1 %s", text, errno_name(err));
	else
		say("%s = %ld%s", text, result, err == UNTOUCHED ? "" : ", and errno changed");
}

long reported(const char *text, long result)
{
	int err = errno;

	put_result(text, result, err);
	errno = err;
	return result;
}

long unreported(const char *text, long result)
{
	return result == -1 ? reported(text, result) : result;
}

long did_send(long n)
{
	if (n > 0)
		sent += (size_t)n;
	return n;
}

long did_receive(long n, bool consumed)
{
	size_t before = received;

	if (n <= 0)
		return n;
	expect_octets(in, (size_t)n);
	if (!consumed)
		received = before;
	return n;
}

void expect_octets(const void *p, size_t n)
{
	if (received + n > STREAM_OCTETS || memcmp(p, stream + received, n) != 0)
		say("WRONG OCTETS among %zu behind %zu", n, received);
	received += n;
}

const char *event_names(uint32_t events)
{
	static const struct {
		uint32_t bit;
		const char *name;
	} names[] = {{POLLIN, "IN"},         {POLLPRI, "PRI"},       {POLLOUT, "OUT"},
		     {POLLRDNORM, "RDNORM"}, {POLLRDBAND, "RDBAND"}, {POLLWRNORM, "WRNORM"},
		     {POLLWRBAND, "WRBAND"}, {POLLERR, "ERR"},       {POLLHUP, "HUP"},
		     {POLLRDHUP, "RDHUP"},   {POLLNVAL, "NVAL"}};
	static char text[4][100];
	static unsigned int next;
	char *at = text[next++ % 4], *begin = at;

	*at = 0;
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (events & names[i].bit)
			at += sprintf(at, "%s%s", at == begin ? "" : "|", names[i].name);
	return *begin ? begin : "none";
}

/* ---- time and signals ------------------------------------------------------ */

void sleep_ms(int ms)
{
	struct timespec t = {ms / 1000, ms % 1000 * 1000000L};

	while (nanosleep(&t, &t) < 0)
		;
}

uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* A busy machine makes anything later, but nothing earlier. */
const char *punctual(uint64_t start, int ms)
{
	uint64_t took = now_ms() - start;

	if (took + 2 < (uint64_t)ms)
		return "early";
	return took < (uint64_t)ms + 2000 ? "in time" : "late";
}

void count_signal(int sig)
{
	(void)sig;
	handled++;
}

void handle(int sig, void (*handler)(int), int flags)
{
	struct sigaction action = {.sa_handler = handler, .sa_flags = flags};

	handled = 0;
	sigaction(sig, &action, NULL);
}

struct interruption {
	pthread_t whom;
	int ms, sig;
};

static void *interrupt(void *arg)
{
	struct interruption i = *(struct interruption *)arg;

	free(arg);
	sleep_ms(i.ms);
	pthread_kill(i.whom, i.sig);
	return NULL;
}

/* A thread whose signals are the others'. */
static pthread_t quiet_thread(void *(*f)(void *), void *arg)
{
	sigset_t all, before;
	pthread_t thread;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	if (pthread_create(&thread, NULL, f, arg))
		give_up("no thread");
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return thread;
}

void interrupt_in(int ms, int sig)
{
	struct interruption *i = malloc(sizeof(*i));

	*i = (struct interruption){pthread_self(), ms, sig};
	pthread_detach(quiet_thread(interrupt, i));
}

/* ---- blocking -------------------------------------------------------------- */

struct start {
	struct blocked *b;
	long (*f)(int fd);
};

static void *call(void *arg)
{
	struct start s = *(struct start *)arg;

	free(arg);
	s.b->result = s.f(s.b->fd);
	s.b->err = errno;
	s.b->done = true;
	return NULL;
}

void block_in(struct blocked *b, long (*f)(int fd), int fd, const char *what)
{
	struct start *s = malloc(sizeof(*s));

	*s = (struct start){b, f};
	b->fd = fd;
	b->done = false;
	b->thread = quiet_thread(call, s);
	still_blocked(b, what);
}

void still_blocked(struct blocked *b, const char *what)
{
	for (int ms = 0; ms < BLOCKING_MS && !b->done; ms += 5)
		sleep_ms(5);
	say("%s %s", what, b->done ? "does not block" : "blocks");
}

void unblocked(struct blocked *b, const char *what)
{
	for (int ms = 0; ms < PATIENCE_MS && !b->done; ms++)
		sleep_ms(1);
	if (!b->done) {
		/* Nothing can be done about the thread. */
		say("%s is still blocked", what);
		pthread_detach(b->thread);
		return;
	}
	pthread_join(b->thread, NULL);
	errno = b->err;
	if (b->result == -1)
		say("%s returns -1 %s", what, errno_name(b->err));
	else
		say("%s returns %ld", what, b->result);
}

/* ---- full buffers ---------------------------------------------------------- */

/* Until nothing goes any more, though what was taken moves on for a while. */
void fill_up(int fd)
{
	int refused = 0, octets = 100000;

	/* A buffer whose size was set does not grow. */
	setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &octets, sizeof(octets));
	while (refused < 50) {
		if (did_send(send(fd, OUT, 50000, MSG_DONTWAIT)) > 0) {
			refused = 0;
			continue;
		}
		refused++;
		sleep_ms(5);
	}
}

/* ---- arrival --------------------------------------------------------------- */

void await_octets(int fd, int n)
{
	uint64_t start = now_ms();
	int have = 0;

	while (ioctl(fd, FIONREAD, &have) == 0 && have < n && now_ms() - start < PATIENCE_MS)
		sleep_ms(1);
	if (have != n)
		say("there are %d octets instead of %d", have, n);
}

void settle(void)
{
	sleep_ms(30);
}
