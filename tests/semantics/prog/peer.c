/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The peer of the end that a case is about. Control messages go by raw system
 * calls over a wire of their own, so they are no concern of what is tested.
 */
#include "peer.h"

#include <arpa/inet.h>
#include <sys/syscall.h>

#include "semantics.h"

#define PATIENCE_MS 5000
#define RECEIVE_MS 2000
/* Exchanges after which a connection should be fast, and then those with a
 * pause: the daemon may be slow. */
#define WARM_UP 400
#define WARM_UP_BUSY 100

enum op {
	OP_BEGIN,
	OP_SEND,
	OP_RECEIVE,
	OP_DRAIN,
	OP_CLOSE,
	OP_RESET,
	OP_SHUTDOWN,
	OP_URGENT,
	OP_OPTION,
	OP_ECHO,
	OP_STUFF,
	OP_LISTEN,
	OP_ACCEPT,
	OP_CONNECT,
	OP_UNLISTEN,
	OP_AWAIT,
	OP_END_CASE,
	OP_END,
};

struct request {
	enum op op;
	int later; /* ms; answer at once and do it then */
	long a, b, c;
};

struct reply {
	long result;
	int err;
	int port;
	bool wrong; /* octets that were not the expected ones */
};

struct ends ends;
static int control = -1, listener = -1;
static struct sockaddr_in listening; /* the client knows it, too */
/* The peer's side of the case. */
static int conn = -1, extra = -1;
static char buffer[1 << 18];

/* A system call that nothing can be between. */
static long raw(long nr, long a, long b, long c, long d, long e)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	long r;

	__asm__ volatile("syscall"
			 : "=a"(r)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return r;
}

/* ---- control ---------------------------------------------------------------- */

static void transfer(void *p, size_t n, bool write)
{
	size_t done = 0;

	while (done < n) {
		long r = raw(write ? SYS_write : SYS_read, control, (long)p + (long)done,
			     (long)(n - done), 0, 0);

		if (r > 0)
			done += (size_t)r;
		else if (r != -EINTR)
			give_up("the other end is gone");
	}
}

static struct sockaddr_in address(const char *text, int port)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};

	if (inet_pton(AF_INET, text, &a.sin_addr) != 1)
		give_up("%s is no address", text);
	return a;
}

struct sockaddr_in own_address(void)
{
	return address(ends.own, 0);
}

static int listen_on(const char *text, int port, int backlog, struct sockaddr_in *bound)
{
	struct sockaddr_in a = address(text, port);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
	socklen_t n = sizeof(a);

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, (struct sockaddr *)&a, n) || listen(fd, backlog) ||
	    getsockname(fd, (struct sockaddr *)&a, &n))
		give_up("listening on %s: %s", text, strerror(errno));
	if (bound)
		*bound = a;
	return fd;
}

void control_listen(const char *text, int port)
{
	int fd = listen_on(text, port, 1, NULL);

	control = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
	if (control < 0)
		give_up("no control connection: %s", strerror(errno));
	close(fd);
	listener = listen_on(ends.own, 0, 16, &listening);
	transfer(&listening, sizeof(listening), true);
}

void control_connect(const char *text, int port)
{
	struct sockaddr_in a = address(text, port);

	control = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	for (int i = 0; connect(control, (struct sockaddr *)&a, sizeof(a)); i++) {
		if (i == PATIENCE_MS / 10)
			give_up("no control connection: %s", strerror(errno));
		close(control);
		sleep_ms(10);
		control = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	}
	transfer(&listening, sizeof(listening), false);
}

/* ---- a connection that is in use --------------------------------------------- */

/*
 * Does the kernel's socket sleep? Whoever puts it to sleep attaches an eBPF
 * filter, which this call says it cannot show.
 */
static bool is_fast(int fd)
{
	socklen_t none = 0;

	return raw(SYS_getsockopt, fd, SOL_SOCKET, SO_GET_FILTER, 0, (long)&none) == -EACCES;
}

static char exchange(int fd, char own, bool first)
{
	char other = 0;

	if (first && write(fd, &own, 1) != 1)
		give_up("warming up: %s", strerror(errno));
	if (read(fd, &other, 1) != 1)
		give_up("warming up: %s", strerror(errno));
	if (!first && write(fd, &own, 1) != 1)
		give_up("warming up: %s", strerror(errno));
	return other;
}

/*
 * Both ends say whether they are where they shall be: 'f' fast, 'k' where the
 * kernel has it, 'w' it can be fast but is not yet; the active end ends it by 'e'.
 */
static void warm_up(int fd, bool *was_fast, bool *peer_was_fast)
{
	for (int i = 0;; i++) {
		bool fast = is_fast(fd);
		char own = fast ? 'f' : ends.fast ? 'w' : 'k', other;

		if (i > WARM_UP_BUSY)
			sleep_ms(1);
		other = exchange(fd, own, ends.active);
		if (ends.active && ((own != 'w' && other != 'w') || i == WARM_UP)) {
			exchange(fd, 'e', true);
			*was_fast = fast;
			*peer_was_fast = other == 'f';
			return;
		}
		if (!ends.active && other == 'e')
			return;
	}
}

static int open_connection(void)
{
	int fd, one = 1;

	if (ends.client) {
		fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (connect(fd, (struct sockaddr *)&listening, sizeof(listening)))
			give_up("connecting: %s", strerror(errno));
	} else {
		fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (fd < 0)
			give_up("accepting: %s", strerror(errno));
	}
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	sent = received = 0;
	return fd;
}

/* ---- the active end's side ----------------------------------------------------- */

static struct reply ask(struct request q)
{
	sigset_t all, before;
	struct reply r;

	/* A handler must not jump out of this. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	transfer(&q, sizeof(q), true);
	transfer(&r, sizeof(r), false);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (r.wrong)
		say("peer: WRONG OCTETS");
	return r;
}

int case_begin(bool cold, bool *was_fast, bool *peer_was_fast)
{
	struct request q = {.op = OP_BEGIN, .a = cold};
	int fd;

	transfer(&q, sizeof(q), true);
	fd = open_connection();
	if (!cold)
		warm_up(fd, was_fast, peer_was_fast);
	ask((struct request){.op = OP_AWAIT});
	return fd;
}

void case_end(void)
{
	ask((struct request){.op = OP_END_CASE});
}

void peer_end(void)
{
	ask((struct request){.op = OP_END});
}

static void outcome(const char *what, struct reply r)
{
	if (r.result < 0)
		say("peer: %s: %s", what, errno_name(r.err));
	else
		say("peer: %s: %ld", what, r.result);
}

void peer_send(size_t n)
{
	outcome("send", ask((struct request){.op = OP_SEND, .a = (long)n}));
}

/* How many there are may be chance: it is only said whether all came. */
void peer_receive(size_t n)
{
	struct reply r = ask((struct request){.op = OP_RECEIVE, .a = (long)n});

	if (r.result == (long)n)
		say("peer: receives all");
	else
		say("peer: receives less, then %s", r.err ? errno_name(r.err) : "the end");
}

void peer_drain(void)
{
	struct reply r = ask((struct request){.op = OP_DRAIN});

	say("peer: %ld octets, then %s", r.result, r.err ? errno_name(r.err) : "the end");
}

void peer_close(void)
{
	ask((struct request){.op = OP_CLOSE});
}

void peer_reset(void)
{
	ask((struct request){.op = OP_RESET});
}

void peer_shutdown(int how)
{
	ask((struct request){.op = OP_SHUTDOWN, .a = how});
}

void peer_send_urgent(void)
{
	ask((struct request){.op = OP_URGENT});
}

void peer_option(int level, int name, int value)
{
	outcome("option",
		ask((struct request){.op = OP_OPTION, .a = level, .b = name, .c = value}));
}

void peer_echo(int n)
{
	ask((struct request){.op = OP_ECHO, .later = 1, .a = n});
}

void peer_stuff(void)
{
	ask((struct request){.op = OP_STUFF});
}

void peer_send_later(int ms, size_t n)
{
	ask((struct request){.op = OP_SEND, .later = ms, .a = (long)n});
}

void peer_receive_later(int ms, size_t n)
{
	ask((struct request){.op = OP_RECEIVE, .later = ms, .a = (long)n});
}

void peer_close_later(int ms)
{
	ask((struct request){.op = OP_CLOSE, .later = ms});
}

void peer_shutdown_later(int ms, int how)
{
	ask((struct request){.op = OP_SHUTDOWN, .later = ms, .a = how});
}

void peer_reset_later(int ms)
{
	ask((struct request){.op = OP_RESET, .later = ms});
}

void peer_await(void)
{
	ask((struct request){.op = OP_AWAIT});
}

struct sockaddr_in peer_listen(int backlog)
{
	return address(ends.peer, ask((struct request){.op = OP_LISTEN, .a = backlog}).port);
}

void peer_accept(void)
{
	outcome("accept", ask((struct request){.op = OP_ACCEPT}));
}

void peer_connect(const struct sockaddr_in *to)
{
	outcome("connect", ask((struct request){.op = OP_CONNECT, .a = ntohs(to->sin_port)}));
}

void peer_stop_listening(void)
{
	ask((struct request){.op = OP_UNLISTEN});
}

/* ---- the peer's side ------------------------------------------------------------ */

static bool readable(int fd, int ms)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return poll(&p, 1, ms) == 1;
}

/* Up to n octets; ends early at the end of the stream, an error, or silence. */
static void receive(struct reply *r, size_t n)
{
	size_t done = 0;

	while (done < n) {
		size_t want = n - done < sizeof(buffer) ? n - done : sizeof(buffer);
		ssize_t got;

		if (!readable(conn, RECEIVE_MS)) {
			r->err = ETIMEDOUT;
			break;
		}
		got = read(conn, buffer, want);
		if (got <= 0) {
			r->err = got < 0 ? errno : 0;
			break;
		}
		r->wrong |= memcmp(buffer, stream + received, (size_t)got) != 0;
		received += (size_t)got;
		done += (size_t)got;
	}
	r->result = (long)done;
}

static long send_all(size_t n)
{
	long r = write(conn, OUT, n);

	if (r > 0)
		sent += (size_t)r;
	return r;
}

static long echo(long n)
{
	char c;

	for (long i = 0; i < n; i++) {
		if (!readable(conn, RECEIVE_MS) || read(conn, &c, 1) != 1 || send_all(1) != 1)
			return -1;
		received++;
	}
	return n;
}

static long stuff(void)
{
	ssize_t r;

	do {
		r = send(conn, OUT, 1 << 16, MSG_DONTWAIT);
		if (r > 0)
			sent += (size_t)r;
		if (r < 0)
			sleep_ms(5);
	} while (r > 0 || send(conn, OUT, 0, MSG_DONTWAIT) < 0);
	return 0;
}

static void give_back(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static long reset(void)
{
	struct linger now = {1, 0};

	setsockopt(conn, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	give_back(&conn);
	return 0;
}

/* The connection of the case is another one from here on. */
static long replace(int fd)
{
	if (fd < 0)
		return -1;
	give_back(&conn);
	conn = fd;
	sent = received = 0;
	return 0;
}

static long connect_to(int port)
{
	struct sockaddr_in a = address(ends.peer, port);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0)
		return replace(fd);
	close(fd);
	return -1;
}

static long obey_listen(struct reply *r, int backlog)
{
	struct sockaddr_in a;

	give_back(&extra);
	extra = listen_on(ends.own, 0, backlog, &a);
	r->port = ntohs(a.sin_port);
	return 0;
}

static void obey(const struct request *q, struct reply *r)
{
	int value = (int)q->c;

	errno = 0;
	switch (q->op) {
	case OP_SEND:
		r->result = send_all((size_t)q->a);
		break;
	case OP_RECEIVE:
		receive(r, (size_t)q->a);
		return;
	case OP_DRAIN:
		receive(r, SIZE_MAX);
		return;
	case OP_CLOSE:
		give_back(&conn);
		break;
	case OP_RESET:
		r->result = reset();
		break;
	case OP_SHUTDOWN:
		r->result = shutdown(conn, (int)q->a);
		break;
	case OP_URGENT:
		r->result = send(conn, "!", 1, MSG_OOB);
		break;
	case OP_OPTION:
		r->result = setsockopt(conn, (int)q->a, (int)q->b, &value, sizeof(value));
		break;
	case OP_ECHO:
		r->result = echo(q->a);
		break;
	case OP_STUFF:
		r->result = stuff();
		break;
	case OP_LISTEN:
		r->result = obey_listen(r, (int)q->a);
		break;
	case OP_ACCEPT:
		r->result = replace(accept4(extra, NULL, NULL, SOCK_CLOEXEC));
		break;
	case OP_CONNECT:
		r->result = connect_to((int)q->a);
		break;
	case OP_UNLISTEN:
	case OP_END_CASE:
		give_back(&extra);
		if (q->op == OP_END_CASE)
			give_back(&conn);
		break;
	default:
		break;
	}
	r->err = errno;
}

static void begin(bool cold)
{
	bool ignored;

	give_back(&conn);
	conn = open_connection();
	if (!cold)
		warm_up(conn, &ignored, &ignored);
}

void peer_serve(void)
{
	struct request q;

	do {
		struct reply r = {0};

		transfer(&q, sizeof(q), false);
		if (q.op == OP_BEGIN) {
			begin(q.a);
			continue;
		}
		if (q.later) {
			transfer(&r, sizeof(r), true);
			sleep_ms(q.later);
			obey(&q, &r);
			continue;
		}
		obey(&q, &r);
		transfer(&r, sizeof(r), true);
	} while (q.op != OP_END);
}
