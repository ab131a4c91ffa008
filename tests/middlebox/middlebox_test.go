// SPDX-License-Identifier: Apache-2.0

package middlebox

import (
	"encoding/binary"
	"os"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
)

const (
	tcActShot     = 2
	tcActRedirect = 7
	loopback      = 1
)

// frame is a TCP segment, or what protocol says, of 1,000 octets.
func frame(etherType uint16, protocol byte) []byte {
	f := make([]byte, 1000)
	f[5], f[11] = 1, 2
	binary.BigEndian.PutUint16(f[12:], etherType)
	f[14], f[23] = 0x45, protocol
	for i := 54; i < len(f); i++ {
		f[i] = byte(i)
	}
	return f
}

// segment is one run of the program.
type outcome struct {
	verdict uint32
	changed int // offset of the octet that was changed, 0 if none
}

type bench struct {
	*testing.T
	m Middlebox
}

func newBench(t *testing.T, s middleboxSettings) *bench {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loading eBPF programs needs root")
	}
	b := &bench{T: t}
	if err := loadMiddleboxObjects(&b.m.objects, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.m.objects.Close() })
	s.Out, s.Usual, s.Longer = loopback, loopback, loopback
	if err := b.m.objects.Configured.Put(uint32(AToB), s); err != nil {
		t.Fatal(err)
	}
	return b
}

// run gives the program n copies of a frame.
func (b *bench) run(n int, f []byte) []outcome {
	b.Helper()
	var all []outcome
	for range n {
		out := make([]byte, len(f)+64)
		o := ebpf.RunOptions{Data: f, DataOut: out}
		verdict, err := b.m.objects.ToB.Run(&o)
		if err != nil {
			b.Fatal(err)
		}
		r := outcome{verdict: verdict}
		for i := range f {
			if o.DataOut[i] == f[i] {
				continue
			}
			if r.changed != 0 {
				b.Errorf("octets %d and %d were changed", r.changed, i)
			}
			r.changed = i
		}
		all = append(all, r)
	}
	return all
}

func (b *bench) counts() Counts {
	b.Helper()
	c, err := b.m.Counts(AToB)
	if err != nil {
		b.Fatal(err)
	}
	return c
}

const tenPercent = 100_000

func TestSameSeedSameFaults(t *testing.T) {
	const n = 5000
	s := middleboxSettings{
		Drop: middleboxChance{PerMillion: tenPercent}, Corrupt: middleboxChance{PerMillion: tenPercent},
		Reorder: middleboxChance{PerMillion: tenPercent}, Seed: 7,
	}
	tcp := frame(0x0800, 6)
	first, again := newBench(t, s), newBench(t, s)
	got := first.run(n, tcp)
	if !slices.Equal(got, again.run(n, tcp)) {
		t.Error("the same seed gave other faults")
	}
	s.Seed = 8
	if slices.Equal(got, newBench(t, s).run(n, tcp)) {
		t.Error("another seed gave the same faults")
	}
	var dropped, changed uint64
	for _, o := range got {
		if o.verdict == tcActShot {
			dropped++
		} else if o.verdict != tcActRedirect {
			t.Errorf("verdict %d", o.verdict)
		}
		if o.changed != 0 {
			changed++
			if o.changed < 14 {
				t.Errorf("octet %d of the Ethernet header was changed", o.changed)
			}
		}
	}
	c := first.counts()
	if c.Dropped != dropped || c.Corrupted != changed || c.Segments != n || c.Octets != n*1000 {
		t.Errorf("counted %+v, seen %d dropped and %d changed", c, dropped, changed)
	}
	for name, have := range map[string]uint64{"dropped": c.Dropped, "corrupted": c.Corrupted, "reordered": c.Reordered} {
		if have < n/10*8/10 || have > n/10*12/10 {
			t.Errorf("%d of %d %s, want about a tenth", have, n, name)
		}
	}
}

func TestBoundAndOthers(t *testing.T) {
	b := newBench(t, middleboxSettings{Drop: middleboxChance{PerMillion: 1_000_000, Limit: 3}})
	for _, f := range [][]byte{frame(0x0806, 6), frame(0x0800, 17)} { // ARP, UDP
		if o := b.run(1, f)[0]; o != (outcome{verdict: tcActRedirect}) {
			t.Errorf("a frame that is not TCP: %+v", o)
		}
	}
	for i, o := range b.run(10, frame(0x0800, 6)) {
		if dropped := o.verdict == tcActShot; dropped != (i < 3) {
			t.Errorf("segment %d: verdict %d", i, o.verdict)
		}
	}
	if c := b.counts(); c.Dropped != 3 || c.Segments != 10 {
		t.Errorf("counted %+v", c)
	}
}
