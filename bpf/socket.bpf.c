//go:build ignore

// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)
/*
 * Programs about the kernel's own sockets: one keeps segments from a sleeping
 * socket, one looks into a socket where no option does.
 */
#include <etran/socket.h>
#include <linux/bpf.h>
#include <stdbool.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

/*
 * The little of the kernel's types that is needed; the loader finds the fields'
 * places in the running kernel's own.
 */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct tcp_md5sig_info;
struct tcp_ao_info;

/* Older kernels have sk_userlocks as a bit field. */
struct sock {
	__u8 sk_userlocks;
	void *sk_user_data;
};

struct tcp_sock {
	__u16 urg_data;
	struct tcp_md5sig_info *md5sig_info;
	struct tcp_ao_info *ao_info; /* since 6.7 */
};

struct bpf_iter_meta {
	struct seq_file *seq;
};

typedef struct {
	__s64 counter;
} atomic64_t;

typedef struct {
	atomic64_t refcnt;
} file_ref_t;

struct file {
	file_ref_t f_ref; /* since 6.13; 0 is one reference */
};

struct file___counted {
	atomic64_t f_count;
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	__u32 fd;
	struct file *file;
};

struct socket {
	struct sock *sk;
};
#pragma clang attribute pop

/* include/net/sock.h */
#define SOCK_BINDADDR_LOCK 4
#define SOCK_BINDPORT_LOCK 8
/* include/net/tcp.h: a valid octet waits */
#define TCP_URG_VALID 0x0100

/* References to a file of which the daemon has one descriptor and the program
 * one: the walk has the third. */
#define FILE_REFERENCES 3

/* Segments that the filter kept from sleeping sockets, in all. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} stray_total SEC(".maps");

/* The same by socket cookie; the least recent ones may be forgotten. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, __u64);
} strays SEC(".maps");

/* The descriptor, in the daemon, of the socket to inspect. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} inspected SEC(".maps");

/*
 * The filter of a sleeping socket. What gets here has come by a way that XDP
 * does not see. It is dropped without an answer: the peer sends it again.
 */
SEC("socket")
int etran_drop(struct __sk_buff *skb)
{
	__u64 cookie = bpf_get_socket_cookie(skb), one = 1, *count;
	__u32 zero = 0;

	count = bpf_map_lookup_elem(&strays, &cookie);
	if (count)
		__sync_fetch_and_add(count, 1);
	else
		bpf_map_update_elem(&strays, &cookie, &one, BPF_NOEXIST);
	count = bpf_map_lookup_elem(&stray_total, &zero);
	if (count)
		__sync_fetch_and_add(count, 1);
	return 0;
}

static __always_inline __u32 tcp_traits(struct tcp_sock *tcp)
{
	__u32 traits = 0;

	if (tcp->md5sig_info)
		traits |= ETRAN_SOCK_SIGNED;
	if (bpf_core_field_exists(tcp->ao_info) && tcp->ao_info)
		traits |= ETRAN_SOCK_SIGNED;
	if (tcp->urg_data & TCP_URG_VALID)
		traits |= ETRAN_SOCK_URGENT;
	return traits;
}

static __always_inline __u32 sock_traits(struct sock *sk)
{
	__u64 locks = BPF_CORE_READ_BITFIELD_PROBED(sk, sk_userlocks);
	__u32 traits = 0;

	if (locks & SOCK_BINDPORT_LOCK)
		traits |= ETRAN_SOCK_PORT_BOUND;
	if (locks & SOCK_BINDADDR_LOCK)
		traits |= ETRAN_SOCK_ADDRESS_BOUND;
	if (sk->sk_user_data)
		traits |= ETRAN_SOCK_TAKEN;
	return traits;
}

static __always_inline __u32 file_traits(struct file *file)
{
	__s64 references;

	if (bpf_core_field_exists(file->f_ref))
		references = file->f_ref.refcnt.counter + 1;
	else
		references = ((struct file___counted *)file)->f_count.counter;
	return references > FILE_REFERENCES ? ETRAN_SOCK_SHARED : 0;
}

/* Walks over the daemon's descriptors and tells the inspected one's traits. */
SEC("iter/task_file")
int etran_inspect(struct bpf_iter__task_file *ctx)
{
	__u32 zero = 0, traits, *fd = bpf_map_lookup_elem(&inspected, &zero);
	struct file *file = ctx->file;
	struct tcp_sock *tcp;
	struct socket *socket;
	struct sock *sk;

	if (!file || !fd || ctx->fd != *fd)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk)
		return 0;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (!tcp)
		return 0;
	traits = sock_traits(sk) | tcp_traits(tcp) | file_traits(file);
	bpf_seq_write(ctx->meta->seq, &traits, sizeof(traits));
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
