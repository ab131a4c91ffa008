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
	r := request(newEntry, unix.NLM_F_ACK, append(tuple(netip.MustParseAddrPort("10.0.0.1:80"),
		netip.MustParseAddrPort("10.0.0.2:4000")), setFlags(beLiberal, beLiberal)...))
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
	local, remote := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:2")
	if _, err := Relax(local, remote); !errors.Is(err, ErrNotTracked) {
		t.Errorf("error %v", err)
	}
	if _, err := Find(local, remote); !errors.Is(err, ErrNotTracked) {
		t.Errorf("error %v", err)
	}
}

// Whoever of both ends opened it: the entry is found from either side.
func TestTrackedConnection(t *testing.T) {
	local, remote := netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("192.0.2.2:4000")
	testnet.Track(t, remote, local, local, remote)
	for _, ends := range [][2]netip.AddrPort{{local, remote}, {remote, local}} {
		expect := func(when string, want Entry) {
			t.Helper()
			if e, err := Find(ends[0], ends[1]); err != nil || e != want {
				t.Errorf("%s: %+v, %v", when, e, err)
			}
		}
		expect("before", Entry{})
		if _, err := Relax(ends[0], ends[1]); err != nil {
			t.Errorf("%v: %v", ends, err)
		}
		expect("relaxed", Entry{Liberal: true})
		if err := Restore(ends[0], ends[1]); err != nil {
			t.Errorf("%v: %v", ends, err)
		}
		expect("restored", Entry{})
	}
	list, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	if err != nil || len(list) != 1 {
		t.Fatalf("%d entries, %v", len(list), err)
	}
	if want := establishedTimeout(); want != 0 && list[0].TimeOut < want-5 {
		t.Errorf("time-out %d, want %d", list[0].TimeOut, want)
	}
}

func TestTranslatedConnection(t *testing.T) {
	client, server := netip.MustParseAddrPort("192.0.2.2:4000"), netip.MustParseAddrPort("192.0.2.1:80")
	for name, reply := range map[string][2]netip.AddrPort{
		"destination": {netip.MustParseAddrPort("192.0.2.3:80"), client},
		"port":        {netip.MustParseAddrPort("192.0.2.1:81"), client},
		"source":      {server, netip.MustParseAddrPort("192.0.2.4:4000")},
		"source port": {server, netip.MustParseAddrPort("192.0.2.2:4001")},
	} {
		t.Run(name, func(t *testing.T) {
			testnet.Track(t, client, server, reply[0], reply[1])
			// Each end asks by the addresses that its own socket has.
			for _, ends := range [][2]netip.AddrPort{{client, server}, reply} {
				if e, err := Find(ends[0], ends[1]); err != nil || !e.Translated {
					t.Errorf("%v: %+v, %v", ends, e, err)
				}
			}
		})
	}
}
