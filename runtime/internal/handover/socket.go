// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"math"
	"net/netip"

	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/repair"
)

// socket is what the daemon knows of a program's socket.
type socket struct {
	local, remote netip.AddrPort
	cookie        uint64
	options       repair.Options
	strays        uint64 // that its filter had dropped when last looked at
}

// mustBe are integer options that the fast path does not do, except with the
// value given or 0. An option that this kernel does not know cannot be set
// either.
var mustBe = []struct {
	level, option, value int
	reason               abi.PathReason
}{
	{unix.SOL_SOCKET, unix.SO_ZEROCOPY, 0, abi.PathReasonOption},
	{unix.SOL_SOCKET, unix.SO_MARK, 0, abi.PathReasonOption},
	{unix.SOL_SOCKET, unix.SO_LOCK_FILTER, 0, abi.PathReasonFilter},
	{unix.SOL_SOCKET, unix.SO_RCVLOWAT, 1, abi.PathReasonOption},
	// Also in a VRF: the route is another than that of our look-up.
	{unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, 0, abi.PathReasonOption},
	// The program reads them as control messages of recvmsg().
	{unix.SOL_SOCKET, unix.SO_TIMESTAMP_OLD, 0, abi.PathReasonOption},
	{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_OLD, 0, abi.PathReasonOption},
	{unix.SOL_SOCKET, unix.SO_TIMESTAMPING_OLD, 0, abi.PathReasonOption},
	{unix.IPPROTO_TCP, unix.TCP_INQ, 0, abi.PathReasonOption},
	{unix.IPPROTO_IP, unix.IP_MINTTL, 0, abi.PathReasonOption},
	{unix.IPPROTO_IP, unix.IP_TRANSPARENT, 0, abi.PathReasonOption},
	{unix.IPPROTO_TCP, unix.TCP_REPAIR, 0, abi.PathReasonOption},
}

// mustBeEmpty are options of variable length that must not be there.
var mustBeEmpty = []struct {
	level, option, room int
	reason              abi.PathReason
}{
	{unix.IPPROTO_IP, unix.IP_OPTIONS, 40, abi.PathReasonOption},
	{unix.IPPROTO_TCP, unix.TCP_ULP, 16, abi.PathReasonOption},
	// Length 0 only asks how many instructions there are; a filter that
	// was not made from classic BPF gives an error.
	{unix.SOL_SOCKET, unix.SO_GET_FILTER, 0, abi.PathReasonFilter},
}

// examine says whether a socket is one that the fast path can carry. A program
// that inherited it must have it alone; of others the library knows.
func examine(fd int, env *Env, inherited bool) (socket, abi.PathReason) {
	var s socket
	if r := examineKind(fd, env.NetnsCookie); r != abi.PathReasonOk {
		return s, r
	}
	info, err := repair.ReadInfo(fd)
	if err != nil {
		return s, abi.PathReasonSyscall
	}
	if !info.Established() {
		return s, abi.PathReasonNotEstablished
	}
	if info.ECN() || info.MicrosecondTimestamps() || info.Max_pacing_rate != math.MaxUint64 {
		return s, abi.PathReasonOption
	}
	s.options = info.Negotiated()
	if s.local, s.remote, err = repair.Addresses(fd); err != nil {
		return s, abi.PathReasonNotEstablished // closed since
	}
	if s.local.Addr().IsLoopback() || s.local.Addr() == s.remote.Addr() {
		return s, abi.PathReasonLocal
	}
	if s.cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE); err != nil {
		return s, abi.PathReasonSyscall
	}
	if s.strays, err = env.Sockets.StraysOf(s.cookie); err != nil {
		return s, abi.PathReasonSyscall
	}
	if r := examineTraits(fd, env, inherited); r != abi.PathReasonOk {
		return s, r
	}
	return s, examineOptions(fd)
}

// examineTraits checks what no socket option tells.
func examineTraits(fd int, env *Env, inherited bool) abi.PathReason {
	traits, err := env.Sockets.Inspect(fd)
	switch {
	case err != nil:
		env.Log.Warn("socket not inspected", "error", err)
		return abi.PathReasonSyscall
	case inherited && traits&abi.SockTraitShared != 0:
		return abi.PathReasonSharedFile
	case traits&(abi.SockTraitTaken|abi.SockTraitSigned) != 0:
		return abi.PathReasonOption
	case traits&abi.SockTraitUrgent != 0:
		return abi.PathReasonPeerUnusual
	case traits&(abi.SockTraitPortBound|abi.SockTraitAddressBound) == abi.SockTraitPortBound:
		// When it is rebuilt it keeps the port and can be given no address:
		// the kernel would choose one by the routes of that moment.
		return abi.PathReasonOption
	}
	return abi.PathReasonOk
}

// examineKind checks that it is a TCP over IPv4 socket of our namespace: in
// another one the same addresses mean another connection.
func examineKind(fd int, netns uint64) abi.PathReason {
	for _, want := range []struct {
		option, value int
		reason        abi.PathReason
	}{
		{unix.SO_DOMAIN, unix.AF_INET, abi.PathReasonNotIpv4},
		{unix.SO_TYPE, unix.SOCK_STREAM, abi.PathReasonNotIpv4},
		{unix.SO_PROTOCOL, unix.IPPROTO_TCP, abi.PathReasonOption}, // MPTCP
	} {
		v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, want.option)
		if err != nil || v != want.value {
			return want.reason
		}
	}
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil || cookie != netns {
		return abi.PathReasonNoDevice
	}
	return abi.PathReasonOk
}

func examineOptions(fd int) abi.PathReason {
	for _, o := range mustBe {
		if v, err := unix.GetsockoptInt(fd, o.level, o.option); err == nil && v != 0 && v != o.value {
			return o.reason
		}
	}
	for _, o := range mustBeEmpty {
		n, err := optionLength(fd, o.level, o.option, o.room)
		if err == unix.ENOPROTOOPT {
			continue
		}
		if err != nil || n != 0 {
			return o.reason
		}
	}
	return abi.PathReasonOk
}
