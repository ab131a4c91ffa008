// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
		t.Cleanup(func() {
			if l, err := netlink.LinkByName(name); err == nil { // perhaps another by now
				_ = netlink.LinkDel(l)
			}
		})
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

func hasProgram(t *testing.T, name string) bool {
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
	if !hasProgram(t, "dp0") || !hasProgram(t, "dp1") || len(pins(t, c)) != 4 {
		t.Errorf("attached %v %v, pins %v", hasProgram(t, "dp0"), hasProgram(t, "dp1"), pins(t, c))
	}
	for _, dev := range d.Devices() {
		if dev.Queues != 2 || dev.MTU != 1500 || len(dev.MAC) != 6 || !dev.Usable {
			t.Errorf("device %+v", dev)
		}
	}
	d.Close()
	if hasProgram(t, "dp0") || hasProgram(t, "dp1") || len(pins(t, c)) != 0 {
		t.Errorf("after Close: attached %v %v, pins %v", hasProgram(t, "dp0"), hasProgram(t, "dp1"), pins(t, c))
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
	if !hasProgram(t, "dp0") {
		t.Error("the first daemon lost its program")
	}
}

// check looks as the daemon's timer does.
func check(d *DataPath) (leave bool) {
	for _, c := range d.CheckDevices(time.Now()) {
		leave = leave || c.Leave
	}
	return leave
}

// awaitUsable checks until the device is as wanted.
func awaitUsable(t *testing.T, d *DataPath, want bool) Device {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		check(d)
		if dev := d.Devices()[0]; dev.Usable == want {
			return dev
		}
		if time.Now().After(deadline) {
			t.Fatalf("device stays %+v", d.Devices()[0])
		}
	}
}

// Somebody detaches our program by force: that is noticed, and after a while
// it is attached again; not, while a foreign program is there.
func TestForcedDetach(t *testing.T) {
	c := setup(t)
	d, err := Open(c, quiet)
	must(t, err)
	defer d.Close()
	if check(d) {
		t.Error("devices that nothing happened to are left")
	}
	pinned, err := link.LoadPinnedLink(filepath.Join(c.PinDir, devicePin+"dp0"), nil)
	must(t, err)
	must(t, pinned.Detach())
	must(t, pinned.Close())
	foreign, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
	must(t, err)
	defer foreign.Close()
	l, err := link.AttachXDP(link.XDPOptions{Program: foreign, Interface: d.Devices()[0].Ifindex})
	must(t, err)
	if !check(d) {
		t.Fatal("a program that is gone was not noticed")
	}
	if dev := d.Devices()[0]; dev.Usable || dev.Lost != 1 {
		t.Errorf("device without program: %+v", dev)
	}
	time.Sleep(firstBackOff + 100*time.Millisecond)
	if check(d); d.Devices()[0].Usable {
		t.Error("a foreign program was replaced")
	}
	must(t, l.Close())
	awaitUsable(t, d, true)
	if !hasProgram(t, "dp0") || len(pins(t, c)) != 4 {
		t.Errorf("attached %v, pins %v", hasProgram(t, "dp0"), pins(t, c))
	}
}

// A device that is deleted and made again is served again.
func TestDeviceMadeAnew(t *testing.T) {
	c := setup(t)
	d, err := Open(c, quiet)
	must(t, err)
	defer d.Close()
	l, err := netlink.LinkByName("dp0")
	must(t, err)
	must(t, netlink.LinkDel(l))
	change, served := d.LinkChanged(l, true)
	if !served || !change.Leave || change.Former != l.Attrs().Index || d.Devices()[0].Usable {
		t.Errorf("deleted: served %v, %+v", served, change)
	}
	anew := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "dp0", NumRxQueues: 1, NumTxQueues: 1}, PeerName: "dp0p"}
	must(t, netlink.LinkAdd(anew))
	must(t, netlink.LinkSetUp(anew))
	now, err := netlink.LinkByName("dp0")
	must(t, err)
	if change, served = d.LinkChanged(now, false); !served || change.Leave {
		t.Errorf("made anew: served %v, %+v", served, change)
	}
	dev := awaitUsable(t, d, true)
	if dev.Ifindex == l.Attrs().Index || dev.Queues != 1 || !hasProgram(t, "dp0") {
		t.Errorf("made anew: %+v", dev)
	}
	var port uint32
	must(t, d.Ports.Lookup(uint32(0), &port))
	if int(port) != dev.Ifindex {
		t.Errorf("port leads to interface %d, not %d", port, dev.Ifindex)
	}
}

// No event of the kernel tells that another number of queues is in use.
func TestNumberOfQueuesChanges(t *testing.T) {
	c := setup(t)
	d, err := Open(c, quiet)
	must(t, err)
	defer d.Close()
	// With a program a veth end must receive as much as the other sends.
	for _, args := range [][]string{{"dp0p", "tx"}, {"dp0", "rx"}} {
		if out, err := exec.Command("ethtool", "-L", args[0], args[1], "1").CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	if !check(d) {
		t.Error("another number of queues was not noticed")
	}
	if dev := d.Devices()[0]; !dev.Usable || dev.Queues != 1 {
		t.Errorf("%+v", dev)
	}
	if check(d) {
		t.Error("the same change was noticed twice")
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
	if hasProgram(t, "dp0") || len(pins(t, c)) != 0 {
		t.Errorf("attached %v, pins %v", hasProgram(t, "dp0"), pins(t, c))
	}
	if !hasProgram(t, "dp1") {
		t.Error("the foreign program is gone")
	}
}

func TestUnknownInterface(t *testing.T) {
	c := setup(t)
	c.Interfaces = append(c.Interfaces, config.Interface{Name: "nosuch"})
	if _, err := Open(c, quiet); err == nil || !strings.Contains(err.Error(), "nosuch") {
		t.Errorf("error %v", err)
	}
	if hasProgram(t, "dp0") || hasProgram(t, "dp1") {
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
	must(t, dead.sockets.Close())
	must(t, dead.Objects.Close())
	if !hasProgram(t, "dp0") {
		t.Fatal("the pin does not keep the program attached")
	}
	d, err := Open(c, quiet)
	must(t, err)
	defer d.Close()
	if !hasProgram(t, "dp0") || !hasProgram(t, "dp1") || len(pins(t, c)) != 4 {
		t.Errorf("attached %v %v, pins %v", hasProgram(t, "dp0"), hasProgram(t, "dp1"), pins(t, c))
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
		change, served := d.LinkChanged(now, false)
		return served, change.Leave
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
	if _, served := d.LinkChanged(lo, false); served {
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
