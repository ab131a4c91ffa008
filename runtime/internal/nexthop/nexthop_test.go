// SPDX-License-Identifier: Apache-2.0

package nexthop

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/testnet"
)

func TestMain(m *testing.M) { testnet.Main(m) }

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
	testnet.Require(t)
	d := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "nh0"}, PeerName: "nh1"}
	if err := netlink.LinkAdd(d); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(d) })
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

// served makes a device and a table that knows it.
func served(t *testing.T) (netlink.Link, *written, *Table) {
	t.Helper()
	link := dummy(t)
	w := &written{hops: map[uint32]abi.Hop{}}
	table := NewTable(w.write)
	if err := table.SetDevice(Device{link.Attrs().Index, 0, 1500, link.Attrs().HardwareAddr}); err != nil {
		t.Fatal(err)
	}
	return link, w, table
}

func TestAcquire(t *testing.T) {
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
	if !table.NewLook().Still(hop, local, remote) {
		t.Error("route is said to have changed")
	}
	list, err := netlink.NeighList(link.Attrs().Index, unix.AF_INET)
	if err != nil || len(list) != 1 || list[0].FlagsExt&netlink.NTF_EXT_MANAGED == 0 {
		t.Errorf("neighbours %+v, %v: not managed", list, err)
	}
}

func TestNeighbourMoves(t *testing.T) {
	link, w, table := served(t)
	neighbour(t, link, "10.99.0.2", "02:00:00:00:00:02")
	hop, err := table.Acquire(netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("10.99.0.2"))
	if err != nil {
		t.Fatal(err)
	}
	watch(t, table, func() {})
	neighbour(t, link, "10.99.0.2", "02:00:00:00:00:99")
	awaitMAC(t, w, hop, 0x99)
	// A flush makes the kernel forget that the entry is managed.
	list, err := netlink.NeighList(link.Attrs().Index, unix.AF_INET)
	if err != nil || len(list) != 1 {
		t.Fatalf("neighbours %+v, %v", list, err)
	}
	if err := netlink.NeighDel(&list[0]); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		list, err = netlink.NeighList(link.Attrs().Index, unix.AF_INET)
		if err == nil && len(list) == 1 && list[0].FlagsExt&netlink.NTF_EXT_MANAGED != 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("forgotten neighbour: %+v, %v", list, err)
		}
	}
	neighbour(t, link, "10.99.0.2", "02:00:00:00:00:77")
	awaitMAC(t, w, hop, 0x77)
}

// watch follows the kernel's events until the test ends.
func watch(t *testing.T, table *Table, routes func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	events := Events{Link: func(netlink.Link, bool) {}, Routes: routes}
	if err := table.Watch(ctx, slog.New(slog.NewTextHandler(io.Discard, nil)), events); err != nil {
		t.Fatal(err)
	}
}

func awaitMAC(t *testing.T, w *written, hop Hop, last byte) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Second); w.get(hop.Index).Dmac[5] != last; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("hop still %+v", w.get(hop.Index))
		}
	}
}

// An entry that nobody uses is made true again when somebody does: nobody
// looked after it meanwhile.
func TestUnusedHopIsRenewed(t *testing.T) {
	link, w, table := served(t)
	local, remote := netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("10.99.0.2")
	neighbour(t, link, "10.99.0.2", "02:00:00:00:00:02")
	first, err := table.Acquire(local, remote)
	if err != nil {
		t.Fatal(err)
	}
	table.Release(first)
	neighbour(t, link, "10.99.0.2", "02:00:00:00:00:03")
	second, err := table.Acquire(local, remote)
	if err != nil || second != first || w.get(second.Index).Dmac[5] != 3 {
		t.Errorf("hop %+v, %v: %+v", second, err, w.get(second.Index))
	}
}

// Whatever a look-up depends on makes the daemon look again.
func TestChangesOfRouting(t *testing.T) {
	link, _, table := served(t)
	neighbour(t, link, "10.99.0.2", "02:00:00:00:00:02")
	neighbour(t, link, "10.99.0.3", "02:00:00:00:00:03")
	local, remote := netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("10.55.0.9")
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	ip("route", "add", "10.55.0.0/24", "via", "10.99.0.2")
	hop, err := table.Acquire(local, remote)
	if err != nil {
		t.Fatal(err)
	}
	looks := make(chan bool, 1000)
	watch(t, table, func() { looks <- table.NewLook().Still(hop, local, remote) })
	expect := func(what string, want bool) {
		t.Helper()
		for deadline := time.After(3 * time.Second); ; {
			select {
			case still := <-looks:
				if still == want {
					return
				}
			case <-deadline:
				t.Fatalf("%s: no look that finds %v", what, want)
			}
		}
	}
	expect("at first", true)
	for what, c := range map[string]struct{ do, undo []string }{
		"better route":      {[]string{"route", "add", "10.55.0.9", "via", "10.99.0.3"}, []string{"route", "del", "10.55.0.9"}},
		"blackhole":         {[]string{"route", "add", "blackhole", "10.55.0.9"}, []string{"route", "del", "blackhole", "10.55.0.9"}},
		"policy rule":       {[]string{"rule", "add", "to", "10.55.0.9", "prohibit"}, []string{"rule", "del", "to", "10.55.0.9"}},
		"several next hops": {[]string{"route", "add", "10.55.0.9", "nexthop", "via", "10.99.0.2", "nexthop", "via", "10.99.0.3"}, []string{"route", "del", "10.55.0.9"}},
	} {
		ip(c.do...)
		expect(what, false)
		if what == "several next hops" {
			if _, err := table.Acquire(local, remote); !errors.Is(err, ErrMultipath) {
				t.Errorf("%s: %v", what, err)
			}
		}
		ip(c.undo...)
		expect(what+" undone", true)
	}
	ip("addr", "del", "10.99.0.1/24", "dev", "nh0")
	expect("address removed", false)
}
