// SPDX-License-Identifier: Apache-2.0

package system

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/etran-go/etran/tests/internal/testbed"
)

// CTA_PROTOINFO_TCP_FLAGS_ORIGINAL and its reply, and IP_CT_TCP_FLAG_BE_LIBERAL.
const (
	flagsOriginal = 4
	flagsReply    = 5
	beLiberal     = 8
)

// tracked is a host's connection tracking entry of a connection.
type tracked struct {
	State   uint8  // nl.TCP_CONNTRACK_*
	Timeout uint32 // seconds left
	Liberal bool
}

// track looks for the entry of a connection that was opened from one address
// to another; ok is false if there is none.
func track(t *testing.T, h *testbed.Host, from, to string) (e tracked, ok bool) {
	t.Helper()
	src, dst := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	err := h.Do(func() error {
		list, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		if err != nil {
			return err
		}
		for _, flow := range list {
			tcp, isTCP := flow.ProtoInfo.(*netlink.ProtoInfoTCP)
			if isTCP && flow.Forward.SrcPort == src.Port() && flow.Forward.DstPort == dst.Port() &&
				flow.Forward.SrcIP.Equal(src.Addr().AsSlice()) {
				e, ok = tracked{State: tcp.State, Timeout: flow.TimeOut}, true
			}
		}
		if ok {
			e.Liberal, err = liberal(src, dst)
		}
		return err
	})
	if err != nil {
		t.Fatalf("connection tracking of host %s: %v", h.Name, err)
	}
	return e, ok
}

// strict undoes what etrand told the host's entry of a connection.
func strict(t *testing.T, h *testbed.Host, from, to string) {
	t.Helper()
	req := entryRequest(nl.IPCTNL_MSG_CT_NEW, unix.NLM_F_ACK,
		netip.MustParseAddrPort(from), netip.MustParseAddrPort(to))
	info := nl.NewRtAttr(nl.CTA_PROTOINFO|unix.NLA_F_NESTED, nil)
	tcp := info.AddRtAttr(nl.CTA_PROTOINFO_TCP|unix.NLA_F_NESTED, nil)
	for _, side := range []int{flagsOriginal, flagsReply} {
		tcp.AddRtAttr(side, []byte{0, beLiberal}) // flags, mask
	}
	req.AddData(info)
	err := h.Do(func() error {
		_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
		return err
	})
	if err != nil {
		t.Fatalf("changing connection tracking of host %s: %v", h.Name, err)
	}
}

func entryRequest(operation, flags int, from, to netip.AddrPort) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_CTNETLINK<<8|operation, flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: nl.NFNETLINK_V0})
	tuple := nl.NewRtAttr(nl.CTA_TUPLE_ORIG|unix.NLA_F_NESTED, nil)
	ip := tuple.AddRtAttr(nl.CTA_TUPLE_IP|unix.NLA_F_NESTED, nil)
	ip.AddRtAttr(nl.CTA_IP_V4_SRC, from.Addr().AsSlice())
	ip.AddRtAttr(nl.CTA_IP_V4_DST, to.Addr().AsSlice())
	proto := tuple.AddRtAttr(nl.CTA_TUPLE_PROTO|unix.NLA_F_NESTED, nil)
	proto.AddRtAttr(nl.CTA_PROTO_NUM, []byte{unix.IPPROTO_TCP})
	proto.AddRtAttr(nl.CTA_PROTO_SRC_PORT, binary.BigEndian.AppendUint16(nil, from.Port()))
	proto.AddRtAttr(nl.CTA_PROTO_DST_PORT, binary.BigEndian.AppendUint16(nil, to.Port()))
	req.AddData(tuple)
	return req
}

// liberal says whether an entry's window checks are off in both directions.
func liberal(from, to netip.AddrPort) (bool, error) {
	// The answer says that more follows (NLM_F_MULTI): the acknowledgement.
	answers, err := entryRequest(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_ACK, from, to).Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil || len(answers) == 0 {
		return false, err
	}
	find := func(b []byte, kind uint16) []byte {
		var list []syscall.NetlinkRouteAttr
		if list, err = nl.ParseRouteAttr(b); err != nil {
			return nil
		}
		for _, a := range list {
			if a.Attr.Type&nl.NLA_TYPE_MASK == kind {
				return a.Value
			}
		}
		return nil
	}
	tcp := find(find(answers[0][nl.SizeofNfgenmsg:], nl.CTA_PROTOINFO), nl.CTA_PROTOINFO_TCP)
	off := true
	for _, side := range []uint16{flagsOriginal, flagsReply} {
		flags := find(tcp, side)
		off = off && len(flags) > 0 && flags[0]&beLiberal != 0
	}
	return off, err
}
