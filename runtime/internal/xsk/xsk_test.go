// SPDX-License-Identifier: Apache-2.0

package xsk

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/vishvananda/netlink"

	abi "github.com/etran-go/etran/c-abi"
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

func TestOpenOnEveryQueue(t *testing.T) {
	for _, queues := range []int{1, 2, 3} {
		t.Run(fmt.Sprint(queues), func(t *testing.T) {
			ifindex := veth(t, queues)
			s, err := Open(ifindex, queues)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if len(s.Sockets) != queues || int(s.Fill)*queues < int(s.Frames) {
				t.Errorf("%d sockets, %d frames, fill rings of %d", len(s.Sockets), s.Frames, s.Fill)
			}
			if _, err := Open(ifindex, queues); !errors.Is(err, ErrQueueBusy) {
				t.Errorf("a second set on the queues: %v", err)
			}
		})
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
