// SPDX-License-Identifier: Apache-2.0

package taps

import (
	"errors"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func newSpace(t *testing.T) *Space {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	s, err := NewSpace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestTapLivesInThePrivateNamespaceOnly(t *testing.T) {
	s := newSpace(t)
	attached := 0
	tap, err := s.Create("etran-test0", func(ifindex int) error { attached = ifindex; return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(tap.Fd)
	if attached != tap.Ifindex || attached == 0 {
		t.Errorf("attached to %d, tap is %d", attached, tap.Ifindex)
	}
	if _, err := net.InterfaceByName(tap.Name); err == nil {
		t.Error("the tap can be seen from outside")
	}
	if n, err := unix.Write(tap.Fd, make([]byte, 64)); err != nil || n != 64 {
		t.Errorf("write %d, %v", n, err)
	}
}

func TestFailedAttachLeavesNothing(t *testing.T) {
	s := newSpace(t)
	boom := errors.New("boom")
	if _, err := s.Create("etran-test1", func(int) error { return boom }); !errors.Is(err, boom) {
		t.Fatalf("error %v", err)
	}
	if _, err := s.links.LinkByName("etran-test1"); err == nil {
		t.Error("the tap is still there")
	}
}

func TestDeleteRemovesAPersistentTap(t *testing.T) {
	s := newSpace(t)
	tap, err := s.Create("etran-test2", func(int) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetInt(tap.Fd, unix.TUNSETPERSIST, 1); err != nil {
		t.Fatal(err)
	}
	unix.Close(tap.Fd)
	if err := s.Delete(tap.Ifindex); err != nil {
		t.Fatal(err)
	}
	if _, err := s.links.LinkByIndex(tap.Ifindex); err == nil {
		t.Error("the tap is still there")
	}
	if err := s.Delete(tap.Ifindex); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

func TestPairLivesInThePrivateNamespaceOnly(t *testing.T) {
	s := newSpace(t)
	used := Pair{}
	pair, err := s.CreatePair("etran-pair", 1792, func(_ string, p Pair) error { used = p; return nil })
	if err != nil {
		t.Fatal(err)
	}
	if used != pair || pair.Near == 0 || pair.Far == 0 {
		t.Errorf("used %+v, made %+v", used, pair)
	}
	if _, err := net.InterfaceByName("etran-pair"); err == nil {
		t.Error("the pair can be seen from outside")
	}
	for _, ifindex := range []int{pair.Near, pair.Far} {
		link, err := s.links.LinkByIndex(ifindex)
		if err != nil {
			t.Fatal(err)
		}
		if a := link.Attrs(); a.MTU != 1792 || a.Flags&net.FlagUp == 0 || a.NumRxQueues != 1 {
			t.Errorf("end %+v", a)
		}
	}
	if err := s.Delete(pair.Far); err != nil {
		t.Fatal(err)
	}
	if _, err := s.links.LinkByIndex(pair.Near); err == nil {
		t.Error("the near end is still there")
	}
}

func TestFailedUseLeavesNoPair(t *testing.T) {
	s := newSpace(t)
	boom := errors.New("boom")
	if _, err := s.CreatePair("etran-pair", 1500, func(string, Pair) error { return boom }); !errors.Is(err, boom) {
		t.Fatalf("error %v", err)
	}
	if _, err := s.links.LinkByName("etran-pair"); err == nil {
		t.Error("the pair is still there")
	}
}
