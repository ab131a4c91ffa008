/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Why a frame was dropped, a promotion refused or a connection demoted.
 *
 * Each list is written once: X(NAME, value, "name for tools", "sentence").
 * The enum, the counters and the tools' texts all come from it.
 */
#ifndef ETRAN_REASONS_H
#define ETRAN_REASONS_H

/* Frames of ours that an XDP program did not pass on (all are counted). */
#define ETRAN_DROP_REASONS(X)                                                                      \
	X(NONE, 0, "none", "not a drop: delivered")                                                \
	X(CONSUMED, 1, "consumed", "a pure ACK that only moved state")                             \
	X(MALFORMED, 2, "malformed", "IP or TCP lengths contradict the frame")                     \
	X(CHECKSUM, 3, "checksum", "TCP checksum wrong on a verifying device")                     \
	X(NO_META, 4, "no_meta", "no room for metadata in front of the frame")                     \
	X(TOO_LONG, 5, "too_long", "frame longer than a UMEM frame")                               \
	X(NO_XSK, 6, "no_xsk", "no AF_XDP socket for this queue")                                  \
	X(NO_CREDIT, 7, "no_credit", "the owner's ring is full")                                   \
	X(PAWS, 8, "paws", "timestamp older than TS.Recent (RFC 7323)")                            \
	X(BAD_SEQ, 9, "bad_seq", "outside the receive window")                                     \
	X(BAD_ACK, 10, "bad_ack", "ACK outside [SND.UNA-MAX.WND, SND.NXT] (RFC 5961)")             \
	X(NO_ACK_BIT, 11, "no_ack_bit", "segment without ACK (RFC 9293 3.10.7.4)")                 \
	X(RATE_LIMIT, 12, "rate_limit", "challenge ACK or event limited (RFC 5961 7)")             \
	X(FRAGMENT, 13, "fragment", "IP fragment of a promoted tuple")                             \
	X(TX_MALFORMED, 14, "tx_malformed", "tap frame: header or length wrong")                   \
	X(TX_NO_APP, 15, "tx_no_app", "tap belongs to no live application")                        \
	X(TX_NO_CONN, 16, "tx_no_conn", "tap frame: no such slot")                                 \
	X(TX_GENERATION, 17, "tx_generation", "tap frame: slot was re-used")                       \
	X(TX_STATE, 18, "tx_state", "tap frame: flow not active")                                  \
	X(TX_SEQ, 19, "tx_seq", "tap frame: not SND.NXT, nor a retransmission in flight")          \
	X(TX_WINDOW, 20, "tx_window", "tap frame: beyond the send window")                         \
	X(TX_NO_HOP, 21, "tx_no_hop", "next hop unknown")                                          \
	X(TX_MTU, 22, "tx_mtu", "tap frame: larger than the device's MTU or the MSS")              \
	X(TX_CREDIT_ONLY, 23, "tx_credit_only", "tap frame that only reported credit")             \
	X(REDIRECT_RX, 24, "redirect_rx", "redirect into an AF_XDP socket failed")                 \
	X(REDIRECT_TX, 25, "redirect_tx", "redirect to the device failed")                         \
	X(INTERNAL, 26, "internal", "a map lookup that cannot fail failed")                        \
	X(PAIR_FULL, 27, "pair_full", "the owner's veth pair is full")                             \
	X(PAIR_FOREIGN, 28, "pair_foreign", "in a veth pair, but not from ingress")                \
	X(RING_BROKEN, 29, "ring_broken", "the owner's fill ring makes no sense")

/* Why a connection is on the kernel path or has left the fast path. */
#define ETRAN_PATH_REASONS(X)                                                                      \
	X(OK, 0, "ok", "no reason: on the fast path or on its way")                                \
	X(WARMUP, 1, "warmup", "has not shown yet that it will live")                              \
	X(POLICY, 2, "policy", "excluded by configuration")                                        \
	X(NO_DAEMON, 3, "no_daemon", "no daemon to talk to")                                       \
	X(NOT_IPV4, 4, "not_ipv4", "not TCP over IPv4")                                            \
	X(LOCAL, 5, "local", "both ends on this host")                                             \
	X(NO_DEVICE, 6, "no_device", "route leaves by a device that is not attached")              \
	X(NO_HOP, 7, "no_hop", "next hop not resolved")                                            \
	X(NOT_ESTABLISHED, 8, "not_established", "TCP state is not ESTABLISHED")                   \
	X(OPTION, 9, "option", "a TCP or socket option the fast path does not do")                 \
	X(FILTER, 10, "filter", "the program has its own socket filter")                           \
	X(SHARED_FILE, 11, "shared_file", "another process may hold the socket")                   \
	X(DEVICE_BUSY, 12, "device_busy", "another application has the device's queues")           \
	X(LIMIT, 13, "limit", "quota of connections, applications or memory reached")              \
	X(NOT_SEEN, 14, "not_seen", "XDP has not seen this flow on the device")                    \
	X(UNSENT, 15, "unsent", "the kernel had unacknowledged data")                              \
	X(BUSY, 16, "busy", "segments in flight during the switch")                                \
	X(MISMATCH, 17, "mismatch", "kernel and XDP disagree about the sequence")                  \
	X(SYSCALL, 18, "syscall", "a system call of the switch failed")                            \
	X(EPOLL, 19, "epoll", "registered with EPOLLONESHOT, EPOLLEXCLUSIVE or in many sets")      \
	X(REQUEST, 20, "request", "asked for by an operator")                                      \
	X(CLOSE, 21, "close", "closed or shut down by the program")                                \
	X(PEER_FIN, 22, "peer_fin", "the peer closed its direction")                               \
	X(PEER_RST, 23, "peer_rst", "the peer reset the connection")                               \
	X(PEER_UNUSUAL, 24, "peer_unusual", "SYN, URG or another unusual segment")                 \
	X(RTO, 25, "rto", "two retransmission time-outs without progress")                         \
	X(TX_ERROR, 26, "tx_error", "the device refused a frame")                                  \
	X(API, 27, "api", "a call or option the fast path does not do")                            \
	X(FORK, 28, "fork", "a forked child, exec or descriptor passing")                          \
	X(DEVICE, 29, "device", "device down, changed, or its XDP program gone")                   \
	X(ROUTE, 30, "route", "route or next hop changed")                                         \
	X(SHUTDOWN, 31, "shutdown", "the daemon stops")                                            \
	X(DEATH, 32, "death", "the program died")                                                  \
	X(KEEPALIVE, 33, "keepalive", "keepalive or user timeout expired")                         \
	X(PROTOCOL, 34, "protocol", "the program's shared state makes no sense")                   \
	X(DESTROYED, 35, "destroyed", "the kernel's socket was ended by other means (ss -K)")      \
	X(NAT, 36, "nat", "this host translates the connection's addresses or ports")              \
	X(IPSEC, 37, "ipsec", "an IPsec policy applies to the connection")                         \
	X(STRAY, 38, "stray", "segments reached the kernel socket past XDP")                       \
	X(MULTIPATH, 39, "multipath", "the route has several next hops")                           \
	X(RESTART, 40, "restart", "asked for while the daemon was restarted")

#define ETRAN_ENUM_DROP(name, value, tool, text) ETRAN_DROP_##name = value,
enum etran_drop_reason { ETRAN_DROP_REASONS(ETRAN_ENUM_DROP) ETRAN_DROP_MAX };
#undef ETRAN_ENUM_DROP

#define ETRAN_ENUM_PATH(name, value, tool, text) ETRAN_PATH_##name = value,
enum etran_path_reason { ETRAN_PATH_REASONS(ETRAN_ENUM_PATH) ETRAN_PATH_MAX };
#undef ETRAN_ENUM_PATH

#endif
