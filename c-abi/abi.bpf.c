//go:build ignore

// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)
/*
 * Never loaded. This object exists for its BTF, from which bpf2go makes the Go
 * twins of the shared structures, and for its .rodata, which carries the texts
 * of the reason lists to Go. A structure is named here once, as a variable;
 * the layout test fails when one of the headers is missing.
 */
#include "etran/abi.h"

#define SHARED_STRUCTS(X)                                                                          \
	X(etran_aconn)                                                                             \
	X(etran_app)                                                                               \
	X(etran_arena)                                                                             \
	X(etran_conn)                                                                              \
	X(etran_ctl)                                                                               \
	X(etran_flow_key)                                                                          \
	X(etran_hop)                                                                               \
	X(etran_msg_done)                                                                          \
	X(etran_msg_header)                                                                        \
	X(etran_msg_refused)                                                                       \
	X(etran_msg_register)                                                                      \
	X(etran_msg_registered)                                                                    \
	X(etran_msg_rings)                                                                         \
	X(etran_msg_slot)                                                                          \
	X(etran_pub)                                                                               \
	X(etran_pub_ring)                                                                          \
	X(etran_range)                                                                             \
	X(etran_rcvbuf)                                                                            \
	X(etran_ring)                                                                              \
	X(etran_rx_meta)                                                                           \
	X(etran_sndbuf)                                                                            \
	X(etran_stash)                                                                             \
	X(etran_tap)                                                                               \
	X(etran_tx_header)                                                                         \
	X(etran_tx_sack)

#define SHARED_ENUMS(X)                                                                            \
	X(etran_ctl_op)                                                                            \
	X(etran_drop_reason)                                                                       \
	X(etran_flow_state)                                                                        \
	X(etran_msg_type)                                                                          \
	X(etran_path_reason)                                                                       \
	X(etran_phase)                                                                             \
	X(etran_rx_kind)                                                                           \
	X(etran_sock_trait)                                                                        \
	X(etran_transport)

/*
 * Numbers that the headers define as macros, which BTF does not know. As
 * enumerators of one type they reach Go with the value C sees.
 */
enum etran_limit {
	LIMIT_MAGIC = ETRAN_ABI_MAGIC,
	LIMIT_VERSION = ETRAN_ABI_VERSION,
	LIMIT_MAX_APPS = ETRAN_MAX_APPS,
	LIMIT_APP_SLOTS = ETRAN_APP_SLOTS,
	LIMIT_MAX_CONNS = ETRAN_MAX_CONNS,
	LIMIT_MAX_CONTEXTS = ETRAN_MAX_CONTEXTS,
	LIMIT_MAX_QUEUES = ETRAN_MAX_QUEUES,
	LIMIT_SHARED_RING = ETRAN_SHARED_RING,
	LIMIT_MAX_RINGS = ETRAN_MAX_RINGS,
	LIMIT_PAIR_FRAMES = ETRAN_PAIR_FRAMES,
	LIMIT_FIRST_SLOT = ETRAN_FIRST_SLOT,
	LIMIT_MAX_XSKS = ETRAN_MAX_XSKS,
	LIMIT_MAX_DEVICES = ETRAN_MAX_DEVICES,
	LIMIT_MAX_HOPS = ETRAN_MAX_HOPS,
	LIMIT_MAX_TAPS = ETRAN_MAX_TAPS,
	LIMIT_FRAME_SIZE = ETRAN_FRAME_SIZE,
	LIMIT_FRAME_HEADROOM = ETRAN_FRAME_HEADROOM,
	LIMIT_RING_SIZE = ETRAN_RING_SIZE,
	LIMIT_STASH_SIZE = ETRAN_STASH_SIZE,
	LIMIT_SND_BUF = ETRAN_SND_BUF,
	LIMIT_RCV_BUF = ETRAN_RCV_BUF,
	LIMIT_FIXED_WINDOW = ETRAN_FIXED_WINDOW,
	LIMIT_OOO_RANGES = ETRAN_OOO_RANGES,
	LIMIT_HEADER_ROOM = ETRAN_HEADER_ROOM,
	LIMIT_TCP_OPTIONS = ETRAN_TCP_OPTIONS,
	LIMIT_SACK_BLOCKS = ETRAN_SACK_BLOCKS,
	LIMIT_COMM_LEN = ETRAN_COMM_LEN,
};

enum etran_flag {
	FLAG_CONN_TIMESTAMPS = ETRAN_CONN_TIMESTAMPS,
	FLAG_CONN_TS_VALID = ETRAN_CONN_TS_VALID,
	FLAG_CONN_VERIFY_CSUM = ETRAN_CONN_VERIFY_CSUM,
	FLAG_CONN_NOTIFY_ACK = ETRAN_CONN_NOTIFY_ACK,
	FLAG_CONN_OBSERVED = ETRAN_CONN_OBSERVED,
	FLAG_CONN_SACK = ETRAN_CONN_SACK,
	FLAG_CONN_RECOVERY = ETRAN_CONN_RECOVERY,
	FLAG_EVENT_CTL = ETRAN_EVENT_CTL,
	FLAG_EVENT_TX_ERROR = ETRAN_EVENT_TX_ERROR,
	FLAG_TX_RETRANSMIT = ETRAN_TX_RETRANSMIT,
	FLAG_TX_NOTIFY = ETRAN_TX_NOTIFY,
	FLAG_TX_CREDIT = ETRAN_TX_CREDIT,
	FLAG_TX_PROBE = ETRAN_TX_PROBE,
	FLAG_TX_PUSH = ETRAN_TX_PUSH,
	FLAG_LOCK_SEIZED = ETRAN_LOCK_SEIZED,
	FLAG_REGISTER_RESUME = ETRAN_REGISTER_RESUME,
	FLAG_REGISTER_RINGS = ETRAN_REGISTER_RINGS,
	FLAG_TX_WITH_SACK = ETRAN_TX_SACK, /* Go: TxSack is the structure */
};

/* Sizes hold the longest text; the compiler warns when one does not fit. */
struct etran_reason {
	__u32 value;
	char tool[20];
	char text[80];
};

#define REASON(name, value, tool, text) {value, tool, text},
const struct etran_reason drop_reasons[] = {ETRAN_DROP_REASONS(REASON)};
const struct etran_reason path_reasons[] = {ETRAN_PATH_REASONS(REASON)};

#define STRUCT_VAR(name) struct name var_##name;
SHARED_STRUCTS(STRUCT_VAR)

#define ENUM_VAR(name) enum name var_##name;
SHARED_ENUMS(ENUM_VAR)
enum etran_limit var_etran_limit;
enum etran_flag var_etran_flag;

char _license[] __attribute__((section("license"), used)) = "Dual BSD/GPL";
