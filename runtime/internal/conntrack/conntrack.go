// SPDX-License-Identifier: Apache-2.0

// Package conntrack keeps the kernel's connection tracking from declaring a
// connection dead whose segments it does not see: its window checks are told
// to be liberal, and its time-out is pushed on (ctnetlink). It also tells
// whether a connection's addresses are translated.
package conntrack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Message and attribute types (linux/netfilter/nfnetlink_conntrack.h).
const (
	newEntry      = unix.NFNL_SUBSYS_CTNETLINK<<8 | 0 // IPCTNL_MSG_CT_NEW
	getEntry      = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1 // IPCTNL_MSG_CT_GET
	tupleOrig     = 1                                 // CTA_TUPLE_ORIG
	tupleReply    = 2
	tupleIP       = 1 // CTA_TUPLE_IP
	tupleProto    = 2 // CTA_TUPLE_PROTO
	ipv4Source    = 1
	ipv4Dest      = 2
	protoNumber   = 1
	protoSource   = 2
	protoDest     = 3
	protoinfo     = 4 // CTA_PROTOINFO
	protoinfoTCP  = 1
	flagsOriginal = 4 // CTA_PROTOINFO_TCP_FLAGS_ORIGINAL: flags, then mask
	flagsReply    = 5
	timeout       = 7 // CTA_TIMEOUT

	beLiberal = 0x08 // IP_CT_TCP_FLAG_BE_LIBERAL
	maxAckSet = 0x20 // IP_CT_TCP_FLAG_MAXACK_SET

	answerPatience = 200 * time.Millisecond
	headers        = unix.SizeofNlMsghdr + nl.SizeofNfgenmsg
)

// ErrNotTracked means that there is no entry: nothing tracks this connection,
// and nothing will call it invalid.
var ErrNotTracked = errors.New("connection is not tracked")

// Entry is what connection tracking knows of a connection.
type Entry struct {
	// Translated: the addresses or ports on the wire are not the socket's, on
	// one of the two sides of this host (NAT).
	Translated bool
	// Liberal: its window checks are off already.
	Liberal bool
}

// Find reads the entry of a connection.
func Find(local, remote netip.AddrPort) (Entry, error) {
	answer, err := ask(request(getEntry, 0, tuple(local, remote)))
	if err != nil {
		return Entry{}, err
	}
	return parseEntry(answer)
}

// Relax makes the entry of a connection liberal, and returns the full time-out
// of an established connection, which the entry has from now on; 0 if the host
// has none. The highest acknowledgement is forgotten: it is stale as soon
// as segments go by unseen, and a reset that lies before it would be called
// invalid, one beyond it would not end the entry at once.
func Relax(local, remote netip.AddrPort) (time.Duration, error) {
	seconds := establishedTimeout()
	body := append(tuple(local, remote), setFlags(beLiberal, beLiberal|maxAckSet)...)
	if seconds != 0 {
		body = append(body, attr(timeout, binary.BigEndian.AppendUint32(nil, seconds))...)
	}
	return time.Duration(seconds) * time.Second, change(body)
}

// Restore turns the window checks of an entry on again. It is for connections
// that stayed with the kernel since they were relaxed: only then does
// connection tracking know their windows.
func Restore(local, remote netip.AddrPort) error {
	return change(append(tuple(local, remote), setFlags(0, beLiberal)...))
}

func change(body []byte) error {
	_, err := ask(request(newEntry, unix.NLM_F_ACK, body))
	return err
}

// ask sends a request and returns what follows the headers of its answer.
func ask(request []byte) ([]byte, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		if err == unix.EPROTONOSUPPORT {
			return nil, ErrNotTracked
		}
		return nil, fmt.Errorf("open ctnetlink socket: %w", err)
	}
	defer unix.Close(fd)
	tv := unix.NsecToTimeval(answerPatience.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return nil, fmt.Errorf("set ctnetlink time-out: %w", err)
	}
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("send ctnetlink request: %w", err)
	}
	return readAnswer(fd)
}

func readAnswer(fd int) ([]byte, error) {
	buf := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return nil, fmt.Errorf("read ctnetlink answer: %w", err)
	}
	if n < headers {
		return nil, fmt.Errorf("ctnetlink answered %d octets", n)
	}
	switch kind := binary.NativeEndian.Uint16(buf[4:]); kind {
	case newEntry:
		return buf[headers:n], nil
	case unix.NLMSG_ERROR:
	default:
		return nil, fmt.Errorf("ctnetlink answered with message %#x", kind)
	}
	switch errno := unix.Errno(-int32(binary.NativeEndian.Uint32(buf[unix.SizeofNlMsghdr:]))); errno {
	case 0:
		return nil, nil
	case unix.ENOENT, unix.EOPNOTSUPP, unix.EINVAL: // EINVAL: module not there
		return nil, ErrNotTracked
	default:
		return nil, fmt.Errorf("ask ctnetlink: %w", errno)
	}
}

// attributes are those of one level, by type.
type attributes map[uint16][]byte

func parse(b []byte) (attributes, error) {
	list, err := nl.ParseRouteAttr(b)
	if err != nil {
		return nil, fmt.Errorf("parse ctnetlink answer: %w", err)
	}
	found := make(attributes, len(list))
	for _, a := range list {
		found[a.Attr.Type&nl.NLA_TYPE_MASK] = a.Value
	}
	return found, nil
}

// at follows a path of nested attributes; nil if there is none such.
func (a attributes) at(path ...uint16) ([]byte, error) {
	for _, kind := range path[:len(path)-1] {
		inner, err := parse(a[kind])
		if err != nil {
			return nil, err
		}
		a = inner
	}
	return a[path[len(path)-1]], nil
}

func parseEntry(answer []byte) (e Entry, err error) {
	a, err := parse(answer)
	if err != nil {
		return e, err
	}
	get := func(path ...uint16) []byte {
		value, failed := a.at(path...)
		err = errors.Join(err, failed)
		return value
	}
	e.Translated = !bytes.Equal(get(tupleOrig, tupleIP, ipv4Source), get(tupleReply, tupleIP, ipv4Dest)) ||
		!bytes.Equal(get(tupleOrig, tupleIP, ipv4Dest), get(tupleReply, tupleIP, ipv4Source)) ||
		!bytes.Equal(get(tupleOrig, tupleProto, protoSource), get(tupleReply, tupleProto, protoDest)) ||
		!bytes.Equal(get(tupleOrig, tupleProto, protoDest), get(tupleReply, tupleProto, protoSource))
	e.Liberal = true
	for _, side := range []uint16{flagsOriginal, flagsReply} {
		flags := get(protoinfo, protoinfoTCP, side)
		e.Liberal = e.Liberal && len(flags) > 0 && flags[0]&beLiberal != 0
	}
	return e, err
}

func request(kind, flags uint16, attributes []byte) []byte {
	body := append([]byte{unix.AF_INET, unix.NFNETLINK_V0, 0, 0}, attributes...)
	h := make([]byte, unix.SizeofNlMsghdr)
	binary.NativeEndian.PutUint32(h[0:], uint32(len(h)+len(body)))
	binary.NativeEndian.PutUint16(h[4:], kind)
	binary.NativeEndian.PutUint16(h[6:], unix.NLM_F_REQUEST|flags)
	return append(h, body...)
}

// tuple names a connection; whoever of both opened it.
func tuple(local, remote netip.AddrPort) []byte {
	return nested(tupleOrig,
		nested(tupleIP, attr(ipv4Source, addr(local)), attr(ipv4Dest, addr(remote))),
		nested(tupleProto, attr(protoNumber, []byte{unix.IPPROTO_TCP}),
			attr(protoSource, port(local)), attr(protoDest, port(remote))))
}

// setFlags sets those of mask, in both directions.
func setFlags(value, mask byte) []byte {
	flags := []byte{value, mask}
	return nested(protoinfo, nested(protoinfoTCP, attr(flagsOriginal, flags), attr(flagsReply, flags)))
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
