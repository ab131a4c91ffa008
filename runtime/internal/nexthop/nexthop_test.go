// SPDX-License-Identifier: Apache-2.0

package nexthop

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
)

// inNamespace runs the test on a thread in a fresh network namespace.
func inNamespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

type written struct {
	mu   sync.Mutex
	hops map[uint32]abi.Hop
}

func (w *written) write(i uint32, h abi.Hop) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hops[i] = h
	return nil
}

func (w *written) get(i uint16) abi.Hop {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.hops[uint32(i)]
}

func dummy(t *testing.T) netlink.Link {
	t.Helper()
	d := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "nh0"}, PeerName: "nh1"}
	if err := netlink.LinkAdd(d); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"nh1", "nh0"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(l); err != nil {
			t.Fatal(err)
		}
		if name == "nh0" {
			a, _ := netlink.ParseAddr("10.99.0.1/24")
			if err := netlink.AddrAdd(l, a); err != nil {
				t.Fatal(err)
			}
			return l
		}
	}
	return nil
}

func neighbour(t *testing.T, link netlink.Link, ip, mac string) {
	t.Helper()
	hw, _ := net.ParseMAC(mac)
	err := netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: net.ParseIP(ip),
		HardwareAddr: hw, State: netlink.NUD_REACHABLE, Family: unix.AF_INET})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAcquire(t *testing.T) {
	inNamespace(t)
	link := dummy(t)
	w := &written{hops: map[uint32]abi.Hop{}}
	table := NewTable(w.write)
	local, remote := netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("10.99.0.2")

	if _, err := table.Acquire(local, remote); !errors.Is(err, ErrNoDevice) {
		t.Errorf("device not served: %v", err)
	}
	if err := table.SetDevice(Device{link.Attrs().Index, 3, 1500, link.Attrs().HardwareAddr}); err != nil {
		t.Fatal(err)
	}
	if _, err := table.Acquire(local, local); !errors.Is(err, ErrLocal) {
		t.Errorf("own address: %v", err)
	}
	if _, err := table.Acquire(local, remote); !errors.Is(err, ErrUnresolved) {
		t.Errorf("unknown neighbour: %v", err)
	}
	neighbour(t, link, "10.99.0.2", "02:00:00:00:00:02")
	hop, err := table.Acquire(local, remote)
	if err != nil {
		t.Fatal(err)
	}
	if h := w.get(hop.Index); h.Valid != 1 || h.Port != 3 || h.Dmac != [6]byte{2, 0, 0, 0, 0, 2} || h.Mtu != 1500 {
		t.Errorf("hop %+v", h)
	}
	if again, err := table.Acquire(local, remote); err != nil || again != hop {
		t.Errorf("second connection: %v %v", again, err)
	}
	if !table.Still(hop, local, remote) {
		t.Error("route is said to have changed")
	}
	list, err := netlink.NeighList(link.Attrs().Index, unix.AF_INET)
	if err != nil || len(list) != 1 || list[0].FlagsExt&netlink.NTF_EXT_MANAGED == 0 {
		t.Errorf("neighbours %+v, %v: not managed", list, err)
	}
}

func TestNeighbourMoves(t *testing.T) {
	inNamespace(t)
	link := dummy(t)
	w := &written{hops: map[uint32]abi.Hop{}}
	table := NewTable(w.write)
	if err := table.SetDevice(Device{link.Attrs().Index, 0, 1500, link.Attrs().HardwareAddr}); err != nil {
		t.Fatal(err)
	}
	neighbour(t, link, "10.99.0.2", "02:00:00:00:00:02")
	hop, err := table.Acquire(netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("10.99.0.2"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	events := Events{Link: func(netlink.Link, bool) {}, Routes: func() {}}
	if err := table.Watch(ctx, slog.New(slog.NewTextHandler(io.Discard, nil)), events); err != nil {
		t.Fatal(err)
	}
	neighbour(t, link, "10.99.0.2", "02:00:00:00:00:99")
	for deadline := time.Now().Add(3 * time.Second); w.get(hop.Index).Dmac[5] != 0x99; {
		if time.Now().After(deadline) {
			t.Fatalf("hop still %+v", w.get(hop.Index))
		}
		time.Sleep(5 * time.Millisecond)
	}
}
