// SPDX-License-Identifier: Apache-2.0

package arena

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
)

func newArena(t *testing.T) *Arena {
	t.Helper()
	a, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

func TestLayoutHasNoOverlap(t *testing.T) {
	l := NewLayout()
	if l.Conns < l.Stash+abi.StashSize*stashSize || l.Buffers < l.Conns+abi.AppSlots*l.ConnStride ||
		l.Size < l.Buffers+abi.AppSlots*l.BufferStride || l.ConnStride < aconnSize || l.ConnStride%connAlign != 0 {
		t.Errorf("layout %+v, connection %d, stash entry %d octets", l, aconnSize, stashSize)
	}
}

func TestArenaIsSealedAndSparse(t *testing.T) {
	a := newArena(t)
	if err := unix.Ftruncate(a.Fd(), 4096); err == nil {
		t.Error("the arena can be cut off")
	}
	if err := unix.Ftruncate(a.Fd(), int64(a.Size())*2); err == nil {
		t.Error("the arena can grow")
	}
	var st unix.Stat_t
	if err := unix.Fstat(a.Fd(), &st); err != nil || st.Blocks*512 > 1<<20 {
		t.Errorf("a new arena takes %d octets, %v", st.Blocks*512, err)
	}
}

// A dead program's memory goes at once, although the daemon may still look.
func TestCloseGivesMemoryBack(t *testing.T) {
	a, err := New()
	if err != nil {
		t.Fatal(err)
	}
	a.Slot(40).SetPhase(abi.PhaseFast)
	other, err := unix.Dup(a.Fd()) // to see what the file still has
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(other)
	a.Close()
	if p := a.Slot(40).Phase(); p != abi.PhaseFree {
		t.Errorf("phase %d after the end", p)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(other, &st); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(maps), fmt.Sprintf(" %d ", st.Ino)) {
		t.Error("the arena is still mapped")
	}
}

func TestPhaseWaits(t *testing.T) {
	s := newArena(t).Slot(40)
	s.SetPhase(abi.PhaseFrozen)
	start := time.Now()
	if p := s.AwaitPhase(abi.PhaseFrozen, 20*time.Millisecond); p != abi.PhaseFrozen {
		t.Errorf("phase %d", p)
	}
	if passed := time.Since(start); passed < 20*time.Millisecond || passed > time.Second {
		t.Errorf("gave up after %v", passed)
	}
	go func() {
		time.Sleep(10 * time.Millisecond)
		s.SetPhase(abi.PhaseDrained)
	}()
	if p := s.AwaitPhase(abi.PhaseFrozen, 5*time.Second); p != abi.PhaseDrained {
		t.Errorf("phase %d", p)
	}
	if p := s.Phase(); p != abi.PhaseDrained {
		t.Errorf("phase reads %d", p)
	}
}

func TestStartAndWords(t *testing.T) {
	s := newArena(t).Slot(1023)
	s.Claim(7, 2)
	s.Start(Constants{Mss: 1448, RcvWindow: 65536, Keepalive: 1, UserTimeout: 9})
	s.Fill(Data{SndUna: 100, SndNxt: 100, RcvNxt: 0xfffffff0})
	w := s.Words()
	if w.Snd != (SndWords{100, 100, 100, 100}) || w.Rcv != (RcvWords{Base: 0xfffffff0, Read: 0xfffffff0, Nxt: 0xfffffff0}) ||
		w.Keepalive != 1 || w.UserTimeout != 9 {
		t.Errorf("words %+v", w)
	}
	if g := s.aconn().Generation; g != 7 {
		t.Errorf("generation %d", g)
	}
}

func TestCopyRingWraps(t *testing.T) {
	ring := []byte("01234567")
	for _, c := range []struct {
		offset uint32
		n      int
		want   string
	}{
		{0, 0, ""}, {0, 8, "01234567"}, {6, 4, "6701"}, {8, 3, "012"}, {0xffffffff, 2, "70"}, {5, 8, "56701234"},
	} {
		if got := copyRing(ring, c.offset, c.n); !bytes.Equal(got, []byte(c.want)) {
			t.Errorf("copyRing(%d, %d) = %q, want %q", c.offset, c.n, got, c.want)
		}
	}
}

func TestBuffersOfNeighboursAreApart(t *testing.T) {
	a := newArena(t)
	one, two := a.Slot(40), a.Slot(41)
	copy(a.mem[one.buffers():], bytes.Repeat([]byte{1}, abi.SndBuf+abi.RcvBuf))
	copy(a.mem[two.buffers():], bytes.Repeat([]byte{2}, abi.SndBuf+abi.RcvBuf))
	for i, part := range [][]byte{
		one.CopySnd(0, 0, abi.SndBuf), one.CopyRcv(0, 77, abi.RcvBuf), two.CopySnd(5, 0, abi.SndBuf), two.CopyRcv(0, 0, abi.RcvBuf),
	} {
		want := byte(1 + i/2)
		if bytes.Count(part, []byte{want}) != len(part) {
			t.Errorf("part %d is not all %d", i, want)
		}
	}
}

func TestHeld(t *testing.T) {
	a := newArena(t)
	*a.stash(3) = abi.Stash{Addr: 256, Length: 60, Slot: 40, State: stashHeld, Generation: 9, Order: 5}
	*a.stash(7) = abi.Stash{Addr: 4096, Length: 70, Slot: 40, State: stashHeld, Generation: 8}
	*a.stash(abi.StashSize - 1) = abi.Stash{Addr: 2304, Length: 66, Slot: 40, State: stashHeld, Generation: 9, Order: 4}
	list := a.Held(40, 9)
	if len(list) != 2 || list[0] != (Held{3, 256, 60, 5}) || list[1].Addr != 2304 {
		t.Fatalf("held %+v", list)
	}
	a.Drop(3)
	if e := a.stash(3); e.State != stashUnused || e.Slot != 40 {
		t.Errorf("dropped entry %+v", e)
	}
	if list := a.Held(40, 9); len(list) != 1 {
		t.Errorf("held %+v", list)
	}
}

func TestSeize(t *testing.T) {
	s := newArena(t).Slot(40)
	w := s.aconn()
	w.Owner = 4711
	s.Seize()
	if w.Owner != uint32(abi.LockSeized) || w.Displaced != 4711 {
		t.Errorf("owner %#x, displaced %d", w.Owner, w.Displaced)
	}
	s.Seize() // a daemon that comes after one that died
	if w.Displaced != 4711 {
		t.Errorf("displaced %d after the second", w.Displaced)
	}
	s.SetTaken(5, 6)
	s.Yield()
	if w.Owner != 0 || w.TakenRead != 5 || w.TakenEnd != 6 {
		t.Errorf("words %+v", w)
	}
	s.Seize()
	if w.Displaced != 0 {
		t.Errorf("displaced %d, but the lock was free", w.Displaced)
	}
}
