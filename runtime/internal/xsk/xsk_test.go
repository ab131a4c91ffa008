// SPDX-License-Identifier: Apache-2.0

package xsk

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/vishvananda/netlink"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/taps"
)

func veth(t *testing.T, queues int) int {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("AF_XDP needs root")
	}
	name := fmt.Sprintf("etxsk%d", queues)
	v := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name, NumRxQueues: queues, NumTxQueues: queues},
		PeerName:  name + "p",
	}
	if err := netlink.LinkAdd(v); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(v); err != nil {
			t.Errorf("delete the test's veth: %v", err)
		}
	})
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Index
}

// open makes a set with a socket on every queue of a device.
func open(ifindex, queues int) (*Set, error) {
	s, err := Open(queues)
	if err != nil {
		return nil, err
	}
	for queue := range queues {
		if _, err := s.Bind(ifindex, queue, uint32(queue)); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

func TestBindEveryQueue(t *testing.T) {
	for _, queues := range []int{1, 2, 3} {
		t.Run(fmt.Sprint(queues), func(t *testing.T) {
			ifindex := veth(t, queues)
			s, err := open(ifindex, queues)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if len(s.Sockets) != queues || s.Frames < uint32(queues+1)*abi.RingSize {
				t.Errorf("%d sockets, %d frames", len(s.Sockets), s.Frames)
			}
			if _, err := open(ifindex, queues); !errors.Is(err, ErrQueueBusy) {
				t.Errorf("a second set on the queues: %v", err)
			}
		})
	}
}

// One memory serves sockets on devices in different network namespaces.
func TestBindInTwoNamespaces(t *testing.T) {
	ifindex := veth(t, 2)
	space, err := taps.NewSpace()
	if err != nil {
		t.Fatal(err)
	}
	defer space.Close()
	s, err := Open(2)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	pair, err := space.CreatePair("etxsk", 1500, func(_ string, p taps.Pair) error {
		_, err := s.Bind(p.Far, 0, abi.SharedRing)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer space.Delete(pair.Near)
	for queue := range 2 {
		if _, err := s.Bind(ifindex, queue, uint32(queue)); err != nil {
			t.Fatal(err)
		}
	}
	s.Trim(1)
	err = Patiently(func() error {
		_, err := s.Bind(ifindex, 0, 0)
		return err
	})
	if err != nil {
		t.Errorf("again: %v", err)
	}
}

func TestFrameStaysInsideTheMemory(t *testing.T) {
	s := &Set{mem: make([]byte, 4*abi.FrameSize)}
	for _, c := range []struct {
		addr   uint64
		length uint32
		ok     bool
	}{
		{256, 64, true},
		{256, abi.FrameSize - 256, true},
		{256, abi.FrameSize - 255, false},
		{3*abi.FrameSize + 256, 1500, true},
		{4 * abi.FrameSize, 1, false},
		{1<<64 - 1, 64, false},
		{1<<64 - 1, 0, false},
		{0, 1<<32 - 1, false},
	} {
		if _, ok := s.Frame(c.addr, c.length); ok != c.ok {
			t.Errorf("Frame(%#x, %d) ok = %v", c.addr, c.length, ok)
		}
	}
}
