// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)

package bpf

import (
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
)

// Budgets: what the verifier had to look at (it gives up at a million) and how
// long the program is. Raise one only knowing what it bought.
var budgets = []struct {
	name     string
	program  func(*Objects) *ebpf.Program
	verified uint32
	xlated   int
}{
	{"ingress", func(o *Objects) *ebpf.Program { return o.Ingress }, 40000, 1700},
	{"egress", func(o *Objects) *ebpf.Program { return o.Egress }, 5000, 1200},
	{"control", func(o *Objects) *ebpf.Program { return o.Control }, 5000, 900},
	{"pass", func(o *Objects) *ebpf.Program { return o.Pass }, 10, 10},
	{"relay", func(o *Objects) *ebpf.Program { return o.Relay }, 300, 250},
	{"redirect_err", func(o *Objects) *ebpf.Program { return o.RedirectErr }, 1000, 260},
}

func TestInstructionBudget(t *testing.T) {
	l := fresh(t)
	for _, b := range budgets {
		info, err := b.program(l.Objects).Info()
		if err != nil {
			t.Fatal(err)
		}
		verified, ok := info.VerifiedInstructions()
		if !ok {
			t.Fatalf("%s: no count of verified instructions", b.name)
		}
		octets, err := info.TranslatedSize()
		if err != nil {
			t.Fatal(err)
		}
		jited, err := info.JitedSize()
		if err != nil {
			t.Fatal(err)
		}
		xlated := octets / 8
		t.Logf("%-12s verified %6d, translated %5d, machine code %6d octets", b.name, verified, xlated, jited)
		if verified > b.verified || xlated > b.xlated {
			t.Errorf("%s: over budget (%d verified, %d translated)", b.name, b.verified, b.xlated)
		}
	}
}

// median runs a program many times, `repeat` runs to a system call, and
// returns the median of the kernel's averages. before is called in between.
func (l *lab) median(t testing.TB, prog *ebpf.Program, frame []byte, repeat int, before func()) time.Duration {
	t.Helper()
	var runs []time.Duration
	for range 500 {
		before()
		_, d, err := prog.Benchmark(frame, repeat, nil)
		if err != nil {
			t.Fatal(err)
		}
		runs = append(runs, d)
	}
	slices.Sort(runs)
	return runs[len(runs)/2]
}

// TestRunTime reports, and does not judge: machines differ. Runs without
// context come from loopback, which therefore plays the network device, too.
// Ingress makes room for metadata each time, which a frame has for 15 runs;
// egress overwrites the request, so that it can run once per call.
func TestRunTime(t *testing.T) {
	const ingressRuns = 15
	l := active(t, func(c *abi.Conn) { c.SndWnd = abi.FixedWindow })
	key := l.key()
	key.Ifindex = 1
	if err := l.SetFlow(key, l.index()); err != nil {
		t.Fatal(err)
	}
	defer l.DeleteFlow(key)
	record := l.conn(t)
	nothing := func() {}
	credit := func() {
		if err := l.Rings.Put(uint32(app*abi.MaxRings+ringNo), abi.Ring{Consumed: l.ring(t, ringNo).Delivered}); err != nil {
			t.Fatal(err)
		}
	}
	rewind := func() {
		if err := l.Conns.Put(l.index(), &record); err != nil {
			t.Fatal(err)
		}
	}
	small := string(make([]byte, 64))
	full := string(make([]byte, 1448))
	seg := func(data string) []byte {
		return tcp{seq: 1000, ack: 5000, win: 10000, flags: ack, opts: ts(100, 0), data: data}.frame()
	}
	request := header(nil)

	empty := l.median(t, l.Pass, seg(small), ingressRuns, nothing)
	emptyOnce := l.median(t, l.Pass, seg(small), 1, nothing)
	report := func(what string, total, base time.Duration) {
		t.Logf("%-28s %4d ns (with an empty program's %d: %d)", what, (total - base).Nanoseconds(),
			base.Nanoseconds(), total.Nanoseconds())
	}
	report("ingress, not ours", l.median(t, l.Ingress, tcp{sport: 1, flags: ack}.frame(), ingressRuns, nothing), empty)
	report("ingress, 64 octets", l.median(t, l.Ingress, seg(small), ingressRuns, credit), empty)
	report("ingress, 1448 octets", l.median(t, l.Ingress, seg(full), ingressRuns, credit), empty)
	report("ingress, pure ACK", l.median(t, l.Ingress, seg(""), ingressRuns, credit), empty)
	report("egress, 64 octets, cold", l.median(t, l.Egress, tapFrame(request, small), 1, rewind), emptyOnce)
	report("egress, pure ACK, cold", l.median(t, l.Egress, tapFrame(request, ""), 1, rewind), emptyOnce)
}

// TestRunTimeOnTap reports what the kernel's statistics say about egress when
// a tap is written to at full speed; they include their own two clock readings.
func TestRunTimeOnTap(t *testing.T) {
	const writes = 100000
	l := active(t, nil)
	attach(t, l.Pass, ifindexOf(t, "w1"))
	tap := openTap(t, l, "tap0")
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		t.Fatal(err)
	}
	defer stats.Close()
	per := func(data string, flags uint32) (egress, empty time.Duration) {
		request := header(func(h *abi.TxHeader) { h.Seq, h.Flags = 5000, flags })
		frame := tapFrame(request, data)
		before, passes := runTime(t, l.Egress), runTime(t, l.Pass)
		for range writes {
			if _, err := tap.Write(frame); err != nil {
				t.Fatal(err)
			}
		}
		return (runTime(t, l.Egress) - before) / writes, (runTime(t, l.Pass) - passes) / writes
	}
	for _, c := range []struct {
		what, data string
		flags      uint32
	}{
		{"pure ACK", "", 0},
		{"64 octets", string(make([]byte, 64)), abi.TxRetransmit},
		{"400 octets", string(make([]byte, 400)), abi.TxRetransmit},
	} {
		egress, empty := per(c.data, c.flags)
		t.Logf("egress from a tap, %-10s %4d ns (an empty program, behind it: %d)", c.what, egress.Nanoseconds(), empty.Nanoseconds())
	}
	if p := l.published(t); p.TxRefused != 0 {
		t.Errorf("refused %d, reason %d", p.TxRefused, p.TxReason)
	}
}

func runTime(t *testing.T, prog *ebpf.Program) time.Duration {
	t.Helper()
	s, err := prog.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return s.Runtime
}
