// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/etran-go/etran/runtime/internal/testnet"
)

func TestMain(m *testing.M) { testnet.Main(m) }

func TestRequestIsWellFormed(t *testing.T) {
	r := request(netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:4000"))
	if n := binary.NativeEndian.Uint32(r); int(n) != len(r) || n%4 != 0 {
		t.Errorf("length field %d, message %d", n, len(r))
	}
	var kinds []uint16
	for rest := r[20:]; len(rest) > 0; {
		length := int(binary.NativeEndian.Uint16(rest))
		kinds = append(kinds, binary.NativeEndian.Uint16(rest[2:])&0x3fff)
		rest = rest[(length+3)&^3:]
	}
	if len(kinds) < 2 || kinds[0] != tupleOrig || kinds[1] != protoinfo {
		t.Errorf("attributes %v", kinds)
	}
}

func TestUntrackedConnection(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("ctnetlink needs CAP_NET_ADMIN")
	}
	err := Refresh(netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:2"))
	if !errors.Is(err, ErrNotTracked) {
		t.Errorf("error %v", err)
	}
}

// An entry made by hand stands for one that a firewall rule made.
func TestTrackedConnection(t *testing.T) {
	testnet.Require(t)
	local, remote := netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("192.0.2.2:4000")
	tuple := func(from, to netip.AddrPort) netlink.IPTuple {
		return netlink.IPTuple{SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice(),
			SrcPort: from.Port(), DstPort: to.Port(), Protocol: unix.IPPROTO_TCP}
	}
	const established, short = 3, 60
	err := netlink.ConntrackCreate(netlink.ConntrackTable, unix.AF_INET, &netlink.ConntrackFlow{
		FamilyType: unix.AF_INET, Forward: tuple(remote, local), Reverse: tuple(local, remote),
		ProtoInfo: &netlink.ProtoInfoTCP{State: established}, TimeOut: short})
	if err != nil {
		t.Skipf("no connection tracking on this kernel: %v", err)
	}
	// Whoever of both opened it: the entry is found from either side.
	for _, ends := range [][2]netip.AddrPort{{local, remote}, {remote, local}} {
		if err := Refresh(ends[0], ends[1]); err != nil {
			t.Errorf("%v: %v", ends, err)
		}
	}
	list, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	if err != nil || len(list) != 1 {
		t.Fatalf("%d entries, %v", len(list), err)
	}
	if want := establishedTimeout(); want != 0 && list[0].TimeOut < want-5 {
		t.Errorf("time-out %d, want %d", list[0].TimeOut, want)
	}
}
