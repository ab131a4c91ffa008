// SPDX-License-Identifier: Apache-2.0

package ipsec

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/etran-go/etran/runtime/internal/testnet"
)

func TestMain(m *testing.M) { testnet.Main(m) }

var (
	local  = netip.MustParseAddrPort("192.0.2.1:80")
	remote = netip.MustParseAddrPort("192.0.2.2:4000")
)

func network(t *testing.T, s string) *net.IPNet {
	t.Helper()
	_, n, err := net.ParseCIDR(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// The kernel's own policies are read back: what was added covers what it says.
func TestCovers(t *testing.T) {
	testnet.Require(t)
	here, there, all := network(t, "192.0.2.1/32"), network(t, "192.0.2.0/24"), network(t, "0.0.0.0/0")
	esp := []netlink.XfrmPolicyTmpl{{Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TRANSPORT}}
	for name, c := range map[string]struct {
		policy netlink.XfrmPolicy
		want   bool
	}{
		"out":         {netlink.XfrmPolicy{Src: here, Dst: there, Dir: netlink.XFRM_DIR_OUT, Tmpls: esp}, true},
		"in":          {netlink.XfrmPolicy{Src: there, Dst: here, Dir: netlink.XFRM_DIR_IN, Tmpls: esp}, true},
		"everything":  {netlink.XfrmPolicy{Src: all, Dst: all, Dir: netlink.XFRM_DIR_OUT, Tmpls: esp}, true},
		"ports":       {netlink.XfrmPolicy{Src: here, Dst: there, Proto: unix.IPPROTO_TCP, SrcPort: 80, DstPort: 4000, Dir: netlink.XFRM_DIR_OUT, Tmpls: esp}, true},
		"forbidden":   {netlink.XfrmPolicy{Src: all, Dst: all, Dir: netlink.XFRM_DIR_OUT, Action: netlink.XFRM_POLICY_BLOCK}, true},
		"exempt":      {netlink.XfrmPolicy{Src: all, Dst: all, Dir: netlink.XFRM_DIR_OUT}, false},
		"forwarded":   {netlink.XfrmPolicy{Src: all, Dst: all, Dir: netlink.XFRM_DIR_FWD, Tmpls: esp}, false},
		"others":      {netlink.XfrmPolicy{Src: network(t, "198.51.100.0/24"), Dst: all, Dir: netlink.XFRM_DIR_OUT, Tmpls: esp}, false},
		"UDP":         {netlink.XfrmPolicy{Src: all, Dst: all, Proto: unix.IPPROTO_UDP, Dir: netlink.XFRM_DIR_OUT, Tmpls: esp}, false},
		"other ports": {netlink.XfrmPolicy{Src: all, Dst: all, Proto: unix.IPPROTO_TCP, DstPort: 443, Dir: netlink.XFRM_DIR_OUT, Tmpls: esp}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if err := netlink.XfrmPolicyAdd(&c.policy); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := netlink.XfrmPolicyFlush(); err != nil {
					t.Error(err)
				}
			})
			if got, err := Covers(local, remote); err != nil || got != c.want {
				t.Errorf("covered: %v, %v", got, err)
			}
		})
	}
	if got, err := Covers(local, remote); err != nil || got {
		t.Errorf("without policies: %v, %v", got, err)
	}
}

func BenchmarkCovers(b *testing.B) {
	for b.Loop() {
		if _, err := Covers(local, remote); err != nil {
			b.Fatal(err)
		}
	}
}
