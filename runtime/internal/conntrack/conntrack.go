// SPDX-License-Identifier: Apache-2.0

// Package conntrack keeps the kernel's connection tracking from declaring a
// connection dead whose segments it does not see: its window checks are told
// to be liberal, and its time-out is pushed on (ctnetlink).
package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Attribute types (linux/netfilter/nfnetlink_conntrack.h).
const (
	tupleOrig      = 1 // CTA_TUPLE_ORIG
	tupleIP        = 1 // CTA_TUPLE_IP
	tupleProto     = 2 // CTA_TUPLE_PROTO
	ipv4Source     = 1
	ipv4Dest       = 2
	protoNumber    = 1
	protoSource    = 2
	protoDest      = 3
	protoinfo      = 4 // CTA_PROTOINFO
	protoinfoTCP   = 1
	flagsOriginal  = 4 // CTA_PROTOINFO_TCP_FLAGS_ORIGINAL
	flagsReply     = 5
	timeout        = 7 // CTA_TIMEOUT
	beLiberal      = 8 // IP_CT_TCP_FLAG_BE_LIBERAL
	newConntrack   = unix.NFNL_SUBSYS_CTNETLINK << 8
	answerPatience = 200 * time.Millisecond
)

// ErrNotTracked means that there is no entry to change: nothing tracks this
// connection, and nothing will call it invalid.
var ErrNotTracked = errors.New("connection is not tracked")

// Refresh makes the entry of a connection liberal and gives it the full
// time-out of an established connection.
func Refresh(local, remote netip.AddrPort) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		if err == unix.EPROTONOSUPPORT {
			return ErrNotTracked
		}
		return fmt.Errorf("open ctnetlink socket: %w", err)
	}
	defer unix.Close(fd)
	tv := unix.NsecToTimeval(answerPatience.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return fmt.Errorf("set ctnetlink time-out: %w", err)
	}
	if err := unix.Sendto(fd, request(local, remote), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send ctnetlink request: %w", err)
	}
	return readAnswer(fd)
}

func readAnswer(fd int) error {
	buf := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return fmt.Errorf("read ctnetlink answer: %w", err)
	}
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(buf[4:]) != unix.NLMSG_ERROR {
		return fmt.Errorf("ctnetlink answered %d octets that are no acknowledgement", n)
	}
	switch errno := unix.Errno(-int32(binary.NativeEndian.Uint32(buf[unix.SizeofNlMsghdr:]))); errno {
	case 0:
		return nil
	case unix.ENOENT, unix.EOPNOTSUPP, unix.EINVAL: // EINVAL: module not there
		return ErrNotTracked
	default:
		return fmt.Errorf("change conntrack entry: %w", errno)
	}
}

func request(local, remote netip.AddrPort) []byte {
	flags := []byte{beLiberal, beLiberal}
	body := []byte{unix.AF_INET, unix.NFNETLINK_V0, 0, 0}
	body = append(body, nested(tupleOrig,
		nested(tupleIP, attr(ipv4Source, addr(local)), attr(ipv4Dest, addr(remote))),
		nested(tupleProto, attr(protoNumber, []byte{unix.IPPROTO_TCP}),
			attr(protoSource, port(local)), attr(protoDest, port(remote))))...)
	body = append(body, nested(protoinfo, nested(protoinfoTCP,
		attr(flagsOriginal, flags), attr(flagsReply, flags)))...)
	if seconds := establishedTimeout(); seconds != 0 {
		body = append(body, attr(timeout, binary.BigEndian.AppendUint32(nil, seconds))...)
	}
	h := make([]byte, unix.SizeofNlMsghdr)
	binary.NativeEndian.PutUint32(h[0:], uint32(len(h)+len(body)))
	binary.NativeEndian.PutUint16(h[4:], newConntrack)
	binary.NativeEndian.PutUint16(h[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	return append(h, body...)
}

func nested(kind uint16, parts ...[]byte) []byte {
	var body []byte
	for _, p := range parts {
		body = append(body, p...)
	}
	return attr(kind|unix.NLA_F_NESTED, body)
}

func attr(kind uint16, data []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofNlAttr+len(data)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), data...)
	return append(b, make([]byte, -len(b)&3)...)
}

func addr(a netip.AddrPort) []byte { return a.Addr().AsSlice() }

func port(a netip.AddrPort) []byte { return binary.BigEndian.AppendUint16(nil, a.Port()) }

// establishedTimeout is the host's setting, 0 if it has none.
func establishedTimeout() uint32 {
	text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established")
	if err != nil {
		return 0
	}
	seconds, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return 0
	}
	return uint32(seconds)
}
