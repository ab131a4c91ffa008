// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)

package bpf

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
)

// The tests run in a network namespace of their own. Since a namespace belongs
// to a thread and Go moves goroutines between threads, the whole process is
// started again inside it.
func TestMain(m *testing.M) {
	const inside = "ETRAN_BPF_TEST_NETNS"
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "bpf: SKIPPED, the tests need root")
		os.Exit(0)
	}
	// The worker of a fuzzing run inherits the variable, but needs its own.
	if self := strconv.Itoa(os.Getpid()); os.Getenv(inside) != self {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			fmt.Fprintln(os.Stderr, "bpf: unshare network namespace:", err)
			os.Exit(1)
		}
		os.Setenv(inside, self)
		err := unix.Exec("/proc/self/exe", os.Args, os.Environ())
		fmt.Fprintln(os.Stderr, "bpf: exec:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// Fixed numbers of the lab: one application, one connection, its ring.
const (
	app     = 3
	appGen  = 77
	slot    = abi.FirstSlot + 5
	connGen = 9
	hopNo   = 4
	portNo  = 2
	ringNo  = 8 // second context
	tapIf   = 1 // loopback plays the tap
)

// A lab is the programs, one registered application and a device with two RX
// queues, loopback-like: nothing is attached, programs are run by hand.
type lab struct {
	*Objects
	pub     *ebpf.Map
	ifindex int
	xsk     int
}

var theLab = sync.OnceValues(openLab)

// The lab is opened once: loading takes a while, the maps are large.
func openLab() (*lab, error) {
	objs, err := Load(LoadOptions{})
	if err != nil {
		return nil, err
	}
	ifindex, err := addVeth("w0", "w1")
	if err != nil {
		return nil, err
	}
	xsk, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW, 0)
	if err != nil {
		return nil, fmt.Errorf("AF_XDP socket: %w", err)
	}
	return &lab{Objects: objs, ifindex: ifindex, xsk: xsk}, nil
}

// addVeth makes a wire. Its second end sends by one queue, so that what is
// written there arrives at queue 0.
func addVeth(name, peer string) (int, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.NumRxQueues, attrs.NumTxQueues = name, 2, 2
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: peer, PeerNumRxQueues: 2, PeerNumTxQueues: 1}
	if err := netlink.LinkAdd(veth); err != nil {
		return 0, fmt.Errorf("add veth %s: %w", name, err)
	}
	for _, n := range []string{name, peer} {
		l, err := netlink.LinkByName(n)
		if err != nil {
			return 0, fmt.Errorf("link %s: %w", n, err)
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return 0, fmt.Errorf("link %s up: %w", n, err)
		}
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("link %s: %w", name, err)
	}
	return l.Attrs().Index, nil
}

// fresh returns the lab with a new application and one connection in state
// NONE, as after registration.
func fresh(t testing.TB) *lab {
	t.Helper()
	l, err := theLab()
	if refused := (*ebpf.VerifierError)(nil); errors.As(err, &refused) {
		t.Fatalf("%+v", refused)
	}
	if err != nil {
		t.Fatal(err)
	}
	l.reset(t)
	t.Cleanup(func() { l.pub.Close() })
	return l
}

func (l *lab) reset(t testing.TB) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_ = l.Flows.Delete(l.key())
	must(l.Conns.Put(l.index(), &abi.Conn{}))
	pub, err := l.NewPubMap()
	must(err)
	l.pub = pub
	must(l.SetApp(app, pub, appGen))
	must(l.SetTap(tapIf, app, appGen))
	must(l.SetXsk(app, ringNo, l.xsk))
	must(l.DeleteXsk(app, ringNo+1))
	must(l.SetPort(portNo, l.ifindex))
	must(l.SetHop(hopNo, abi.Hop{Valid: 1, Port: portNo, Mtu: 1500, Dmac: peerMAC, Smac: usMAC}))
	must(l.InstallConn(l.index(), standard()))
	must(l.SetFlow(l.key(), l.index()))
}

func (l *lab) index() uint32 { return Index(app, slot) }

func (l *lab) key() abi.FlowKey {
	return abi.FlowKey{Ifindex: uint32(l.ifindex), Raddr: be(peer), Laddr: be(us),
		Rport: be16(peerPort), Lport: be16(usPort)}
}

// standard is the connection of most tests. The peer's octets are 1000 …, ours
// 5000 …; 500 octets are in flight; both windows are 10000.
func standard() *abi.Conn {
	return &abi.Conn{
		Generation: connGen, Flags: abi.ConnTimestamps | abi.ConnTsValid,
		RcvNxt: 1000, RcvAdv: 11000, RcvHigh: 1000, TsRecent: 100,
		SndUna: 5000, SndNxt: 5500, SndWnd: 10000, MaxWnd: 10000,
		SndWl1: 1000, SndWl2: 5000,
		Transport: uint8(abi.TransportTcp), Ring: ringNo, Hop: hopNo, Mss: 1448,
		Laddr: be(us), Raddr: be(peer), Lport: be16(usPort), Rport: be16(peerPort),
		Tos: 0x10, Ttl: 63, TsOffset: 1 << 20, IpId: 40,
	}
}

// active brings the standard connection, changed by set, to ACTIVE.
func active(t testing.TB, set func(*abi.Conn)) *lab {
	t.Helper()
	l := fresh(t)
	l.activate(t, set)
	return l
}

// activate takes the fresh standard connection through its states.
func (l *lab) activate(t testing.TB, set func(*abi.Conn)) {
	t.Helper()
	l.enter(t, abi.FlowStateObserve)
	l.enter(t, abi.FlowStateHold)
	c := standard()
	if set != nil {
		set(c)
	}
	if _, err := l.Activate(l.index(), connGen, c); err != nil {
		t.Fatal(err)
	}
	// What the dump does not carry: counters, timers, duplicates.
	c.State = uint32(abi.FlowStateActive)
	c.App, c.Slot = app, slot
	if err := l.Conns.Put(l.index(), c); err != nil {
		t.Fatal(err)
	}
}

// enter makes the next step of the life of a connection.
func (l *lab) enter(t testing.TB, to abi.FlowState) {
	t.Helper()
	c := l.conn(t)
	if _, err := l.SetState(l.index(), c.Generation, abi.FlowState(c.State), to); err != nil {
		t.Fatal(err)
	}
}

func (l *lab) conn(t testing.TB) (c abi.Conn) {
	t.Helper()
	if err := l.Conns.Lookup(l.index(), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func (l *lab) published(t testing.TB) (p abi.Pub) {
	t.Helper()
	if err := l.pub.Lookup(uint32(slot), &p); err != nil {
		t.Fatal(err)
	}
	return p
}

func (l *lab) ring(t testing.TB, no uint32) (p abi.PubRing) {
	t.Helper()
	if err := l.pub.Lookup(no, &p); err != nil {
		t.Fatal(err)
	}
	return p
}

// Verdicts of XDP programs.
const (
	verdictDrop     = 1
	verdictPass     = 2
	verdictRedirect = 4
)

// A result is all that one run of a program did.
type result struct {
	verdict uint32
	frame   []byte
	meta    *abi.RxMeta // ingress: metadata in front of the frame
	before  abi.Conn
	after   abi.Conn
	pub     abi.Pub
	counted string // reasons counted by this run, joined by spaces
}

// run runs a program on a frame that comes in at a queue of a device, with
// `foreign` octets of somebody's metadata in front.
func (l *lab) run(t testing.TB, prog *ebpf.Program, ifindex int, queue uint32, frame []byte,
	foreign int) result {
	t.Helper()
	before, drops := l.conn(t), l.drops(t)
	in := append(make([]byte, foreign), frame...)
	out := xdpContext{}
	opts := &ebpf.RunOptions{
		Data:    in,
		DataOut: make([]byte, len(in)+256),
		Context: xdpContext{Data: uint32(foreign), DataEnd: uint32(len(in)),
			IngressIfindex: uint32(ifindex), RxQueueIndex: queue},
		ContextOut: &out,
	}
	verdict, err := prog.Run(opts)
	if err != nil {
		t.Fatal(err)
	}
	r := result{verdict: verdict, before: before, after: l.conn(t), pub: l.published(t)}
	r.frame = opts.DataOut[out.Data:]
	if metadata := opts.DataOut[:out.Data]; foreign == 0 && len(metadata) > 0 {
		r.meta = new(abi.RxMeta)
		if n := copy(octets(r.meta), metadata); n != len(metadata) || n != len(octets(r.meta)) {
			t.Fatalf("%d octets of metadata", len(metadata))
		}
	}
	r.counted = countedSince(drops, l.drops(t))
	return r
}

// arrive runs ingress on a segment at queue 0.
func (l *lab) arrive(t testing.TB, s tcp) result {
	t.Helper()
	return l.run(t, l.Ingress, l.ifindex, 0, s.frame(), 0)
}

// write runs egress on a tap frame.
func (l *lab) write(t testing.TB, frame []byte) result {
	t.Helper()
	return l.run(t, l.Egress, tapIf, 0, frame, 0)
}

func (l *lab) drops(t testing.TB) map[string]uint64 {
	t.Helper()
	d, err := l.Drops()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func countedSince(before, after map[string]uint64) string {
	s := ""
	for reason := abi.DropReasonNone + 1; reason < abi.DropReasonMax; reason++ {
		name := reason.String()
		for range after[name] - before[name] {
			if s != "" {
				s += " "
			}
			s += name
		}
	}
	return s
}

// sameConn compares two records but for the lock and the clock.
func sameConn(t testing.TB, what string, got, want abi.Conn) {
	t.Helper()
	for _, c := range []*abi.Conn{&got, &want} {
		c.Lock.Val, c.LastRxNs, c.LastLimitNs = 0, 0, 0
		if c.RttStartNs != 0 {
			c.RttStartNs = 1
		}
	}
	if got != want {
		t.Errorf("%s:\n got %+v\nwant %+v", what, got, want)
	}
}
