// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"slices"
	"testing"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/arena"
	"github.com/etran-go/etran/runtime/internal/seq"
)

// record is a frozen connection: 1000..1500 in flight, received up to 5000 and
// acknowledged, delivered up to 5200.
func record() *abi.Conn {
	return &abi.Conn{SndUna: 1000, SndNxt: 1500, RcvNxt: 5000, RcvHigh: 5200, RcvAdv: 70000}
}

func sane() arena.Words {
	return arena.Words{
		Snd: arena.SndWords{Base: 900, Una: 950, Nxt: 1500, End: 1700},
		Rcv: arena.RcvWords{Base: 4000, Read: 4900, Nxt: 5100},
	}
}

func TestCheckSaneWords(t *testing.T) {
	r, ok := check(record(), sane(), 1000)
	if !ok || r.unreadLen() != 200 || r.inFlightLen() != 500 || r.unsentLen() != 200 || r.rcvNxt != 5100 {
		t.Errorf("%+v, %v", r, ok)
	}
	// An acknowledgement among the held frames shortens what is in flight.
	if r, ok = check(record(), sane(), 1400); !ok || r.inFlightLen() != 100 || r.sndUna != 1400 {
		t.Errorf("%+v, %v", r, ok)
	}
}

func TestCheckNonsense(t *testing.T) {
	for name, change := range map[string]func(w *arena.Words){
		"received more than delivered":    func(w *arena.Words) { w.Rcv.Nxt = 5201 },
		"received less than acknowledged": func(w *arena.Words) { w.Rcv.Nxt = 4999 },
		"read beyond received":            func(w *arena.Words) { w.Rcv.Read = 5101 },
		"unread more than the ring":       func(w *arena.Words) { w.Rcv.Read = w.Rcv.Nxt - abi.RcvBuf - 1 },
		"read far away":                   func(w *arena.Words) { w.Rcv.Read = 1 << 31 },
		"end before sent":                 func(w *arena.Words) { w.Snd.End = 1499 },
		"kept more than the ring":         func(w *arena.Words) { w.Snd.End = 1000 + abi.SndBuf + 1 },
		"end far away":                    func(w *arena.Words) { w.Snd.End = 1 << 31 },
	} {
		w := sane()
		change(&w)
		r, ok := check(record(), w, 1000)
		if ok {
			t.Errorf("%s: accepted", name)
		}
		if r.unreadLen() < 0 || r.unreadLen() > abi.RcvBuf || r.inFlightLen() != 500 || r.unsentLen() < 0 || r.unsentLen() > abi.SndBuf {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// The stream beyond rcvNxt is "abcdefghijklmnopqrstuvwxyz".
func TestChunksJoinAsFarAsTheyFollow(t *testing.T) {
	const stream, nxt = "abcdefghijklmnopqrstuvwxyz", seq.Num(0xfffffffa)
	piece := func(from, to int) chunk { return chunk{nxt.Add(from), []byte(stream[from:to])} }
	before := chunk{nxt.Add(-3), []byte("XYZabc")}
	for name, c := range map[string]struct {
		chunks []chunk
		joined string
		beyond []string
	}{
		"none":                {nil, "", nil},
		"in order":            {[]chunk{piece(0, 5), piece(5, 9)}, "abcdefghi", nil},
		"any order, doubled":  {[]chunk{piece(5, 9), piece(0, 5), piece(3, 7), piece(0, 5)}, "abcdefghi", nil},
		"from the past":       {[]chunk{before, {nxt.Add(-3), []byte("XYZ")}}, "abc", nil},
		"a hole":              {[]chunk{piece(10, 15), piece(0, 5)}, "abcde", []string{"klmno"}},
		"overlap in the hole": {[]chunk{piece(10, 15), piece(12, 18), piece(20, 22)}, "", []string{"klmno", "pqr", "uv"}},
		"too far":             {[]chunk{piece(0, 26)}, stream[:24], nil},
		"nonsense":            {[]chunk{{nxt.Add(1 << 30), []byte("x")}, {nxt.Add(-1 << 30), []byte("y")}, {nxt, nil}}, "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := contents{ranges: ranges{read: nxt.Add(-2), rcvNxt: nxt}, unread: []byte("--")}
			got.add(c.chunks, nxt.Add(24))
			if string(got.unread) != "--"+c.joined || got.rcvNxt != nxt.Add(len(c.joined)) {
				t.Errorf("unread %q, next %d", got.unread, got.rcvNxt-nxt)
			}
			var beyond []string
			for _, k := range got.beyond {
				beyond = append(beyond, string(k.data))
				if at := k.seq.Minus(nxt); stream[at:at+len(k.data)] != string(k.data) {
					t.Errorf("%q lies at %d", k.data, at)
				}
			}
			if !slices.Equal(beyond, c.beyond) {
				t.Errorf("beyond %q, want %q", beyond, c.beyond)
			}
		})
	}
}

func FuzzCheck(f *testing.F) {
	f.Add(uint32(950), uint32(1700), uint32(4900), uint32(5100), uint32(1000))
	f.Fuzz(func(t *testing.T, una, end, read, nxt, shift uint32) {
		c := record()
		for _, p := range []*uint32{&c.SndUna, &c.SndNxt, &c.RcvNxt, &c.RcvHigh, &c.RcvAdv} {
			*p += shift // around the wrap, too
		}
		w := arena.Words{Snd: arena.SndWords{Una: una, End: end}, Rcv: arena.RcvWords{Read: read, Nxt: nxt}}
		r, _ := check(c, w, seq.Num(c.SndUna))
		if r.unreadLen() < 0 || r.unreadLen() > abi.RcvBuf || r.inFlightLen() != 500 ||
			r.unsentLen() < 0 || r.inFlightLen()+r.unsentLen() > abi.SndBuf ||
			!r.rcvNxt.Between(seq.Num(c.RcvNxt), seq.Num(c.RcvHigh)) {
			t.Errorf("%+v from %+v", r, w)
		}
	})
}

func TestPhaseMachineHasOnlyItsTransitions(t *testing.T) {
	a, err := arena.New()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for from := abi.PhaseFree; from <= abi.PhaseDrained; from++ {
		for to := abi.PhaseFree; to <= abi.PhaseDrained; to++ {
			s := NewSlot(&Env{}, quiet{}, a, 0, 40)
			s.phase = from
			allowed := false
			for _, next := range transitions[from] {
				allowed = allowed || next == to
			}
			if got := trySet(s, to); got != allowed {
				t.Errorf("phase %d to %d: %v", from, to, got)
			}
			if allowed && s.mem.Phase() != to {
				t.Errorf("phase %d is %d in the arena", to, s.mem.Phase())
			}
		}
	}
}

func trySet(s *Slot, to abi.Phase) (ok bool) {
	defer func() { ok = recover() == nil }()
	s.setPhase(to)
	return true
}

// quiet is an owner that is only woken.
type quiet struct{ Owner }

func (quiet) Wake() {}
