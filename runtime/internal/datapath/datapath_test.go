// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/config"
	"github.com/etran-go/etran/runtime/internal/handover"
	"github.com/etran-go/etran/runtime/internal/testnet"
)

func TestMain(m *testing.M) { testnet.Main(m) }

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// setup makes two devices and a configuration for both.
func setup(t *testing.T) *config.Config {
	t.Helper()
	testnet.Require(t)
	for _, name := range []string{"dp0", "dp1"} {
		v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, NumRxQueues: 2, NumTxQueues: 2}, PeerName: name + "p"}
		must(t, netlink.LinkAdd(v))
		must(t, netlink.LinkSetUp(v))
		t.Cleanup(func() { _ = netlink.LinkDel(v) })
	}
	c := config.Default()
	c.PinDir = filepath.Join(t.TempDir(), "pins")
	t.Cleanup(func() { _ = unix.Unmount(c.PinDir, unix.MNT_DETACH) })
	c.Interfaces = []config.Interface{{Name: "dp0"}, {Name: "dp1"}}
	return &c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func attached(t *testing.T, name string) bool {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	return l.Attrs().Xdp != nil && l.Attrs().Xdp.Attached
}

func pins(t *testing.T, c *config.Config) []string {
	t.Helper()
	list, err := os.ReadDir(c.PinDir)
	must(t, err)
	var names []string
	for _, e := range list {
		if ours(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestOpenAndClose(t *testing.T) {
	c := setup(t)
	d, err := Open(c, quiet)
	must(t, err)
	if !attached(t, "dp0") || !attached(t, "dp1") || len(pins(t, c)) != 3 {
		t.Errorf("attached %v %v, pins %v", attached(t, "dp0"), attached(t, "dp1"), pins(t, c))
	}
	for _, dev := range d.Devices() {
		if dev.Queues != 2 || dev.MTU != 1500 || len(dev.MAC) != 6 || !dev.Usable {
			t.Errorf("device %+v", dev)
		}
	}
	d.Close()
	if attached(t, "dp0") || attached(t, "dp1") || len(pins(t, c)) != 0 {
		t.Errorf("after Close: attached %v %v, pins %v", attached(t, "dp0"), attached(t, "dp1"), pins(t, c))
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	c := setup(t)
	d, err := Open(c, quiet)
	must(t, err)
	defer d.Close()
	if _, err := Open(c, quiet); err == nil || !strings.Contains(err.Error(), "another etrand") {
		t.Errorf("error %v", err)
	}
	if !attached(t, "dp0") {
		t.Error("the first daemon lost its program")
	}
}

// Attaching is a transaction: the second device fails, so the first is as
// before.
func TestForeignProgramIsRefused(t *testing.T) {
	c := setup(t)
	foreign, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
	must(t, err)
	defer foreign.Close()
	dev, err := net.InterfaceByName("dp1")
	must(t, err)
	l, err := link.AttachXDP(link.XDPOptions{Program: foreign, Interface: dev.Index})
	must(t, err)
	defer l.Close()
	if _, err := Open(c, quiet); err == nil || !strings.Contains(err.Error(), "dp1") || !strings.Contains(err.Error(), "not ours") {
		t.Errorf("error %v", err)
	}
	if attached(t, "dp0") || len(pins(t, c)) != 0 {
		t.Errorf("attached %v, pins %v", attached(t, "dp0"), pins(t, c))
	}
	if !attached(t, "dp1") {
		t.Error("the foreign program is gone")
	}
}

func TestUnknownInterface(t *testing.T) {
	c := setup(t)
	c.Interfaces = append(c.Interfaces, config.Interface{Name: "nosuch"})
	if _, err := Open(c, quiet); err == nil || !strings.Contains(err.Error(), "nosuch") {
		t.Errorf("error %v", err)
	}
	if attached(t, "dp0") || attached(t, "dp1") {
		t.Error("programs are left behind")
	}
}

func TestLargeMTUIsRefused(t *testing.T) {
	c := setup(t)
	l, err := netlink.LinkByName("dp1")
	must(t, err)
	must(t, netlink.LinkSetMTU(l, MaxMTU+1))
	if _, err := Open(c, quiet); err == nil || !strings.Contains(err.Error(), "MTU") {
		t.Errorf("error %v", err)
	}
}

// What a killed daemon leaves is replaced: here it dies without Close.
func TestLeftOversAreReplaced(t *testing.T) {
	c := setup(t)
	dead, err := Open(c, quiet)
	must(t, err)
	must(t, dead.pins.lock.Close())
	for _, dev := range dead.devices {
		must(t, dev.link.Close())
	}
	must(t, dead.trace.Close())
	must(t, dead.Objects.Close())
	if !attached(t, "dp0") {
		t.Fatal("the pin does not keep the program attached")
	}
	d, err := Open(c, quiet)
	must(t, err)
	defer d.Close()
	if !attached(t, "dp0") || !attached(t, "dp1") || len(pins(t, c)) != 3 {
		t.Errorf("attached %v %v, pins %v", attached(t, "dp0"), attached(t, "dp1"), pins(t, c))
	}
}

func TestLinkChanges(t *testing.T) {
	c := setup(t)
	d, err := Open(c, quiet)
	must(t, err)
	defer d.Close()
	l, err := netlink.LinkByName("dp0")
	must(t, err)
	look := func() (served, changed bool) {
		now, err := netlink.LinkByName("dp0")
		must(t, err)
		_, served, changed = d.LinkChanged(now, false)
		return served, changed
	}
	if served, changed := look(); !served || changed {
		t.Errorf("nothing happened: served %v, changed %v", served, changed)
	}
	must(t, netlink.LinkSetMTU(l, 1400))
	if _, changed := look(); !changed {
		t.Error("another MTU was not noticed")
	}
	must(t, netlink.LinkSetDown(l))
	if _, changed := look(); !changed {
		t.Error("a device that is down was not noticed")
	}
	if _, usable := d.Device(l.Attrs().Index); usable {
		t.Error("a device that is down is used")
	}
	must(t, netlink.LinkSetUp(l))
	look()
	if dev, usable := d.Device(l.Attrs().Index); !usable || dev.MTU != 1400 {
		t.Errorf("device that is up again: %+v, %v", dev, usable)
	}
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	if _, served, _ := d.LinkChanged(lo, false); served {
		t.Error("the loopback device is said to be served")
	}
}

func TestAFlowIsAddedOnce(t *testing.T) {
	c := setup(t)
	d, err := Open(c, quiet)
	must(t, err)
	defer d.Close()
	key := abi.FlowKey{Ifindex: 1, Raddr: 2, Laddr: 3, Rport: 4, Lport: 5}
	must(t, d.AddFlow(key, 40))
	if err := d.AddFlow(key, 41); !errors.Is(err, handover.ErrFlowExists) {
		t.Errorf("error %v", err)
	}
	must(t, d.DeleteFlow(key))
	must(t, d.AddFlow(key, 41))
}
