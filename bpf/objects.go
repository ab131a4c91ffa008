// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
)

// xdpContext is struct xdp_md, the context of a program run.
type xdpContext struct {
	Data           uint32
	DataEnd        uint32
	DataMeta       uint32
	IngressIfindex uint32
	RxQueueIndex   uint32
	EgressIfindex  uint32
}

// Index returns the connection record of a slot.
func Index(app, slot uint32) uint32 { return app*abi.AppSlots + slot }

// Ctl runs the control program: the operation and the snapshot in the answer
// are atomic with respect to the data path. An error of the operation is
// unix.ESTALE (generation), unix.EBUSY (state) or unix.EINVAL; the first two
// still come with a snapshot.
func (o *Objects) Ctl(req abi.Ctl) (abi.Ctl, error) {
	answer := abi.Ctl{}
	verdict, err := o.Control.Run(&ebpf.RunOptions{Data: octets(&req), DataOut: octets(&answer)})
	if err != nil {
		return answer, fmt.Errorf("run control program: %w", err)
	}
	if verdict != xdpPass {
		return answer, fmt.Errorf("control program: verdict %d", verdict)
	}
	if answer.Error != 0 {
		return answer, fmt.Errorf("control op %d, connection %d: %w",
			req.Op, req.Index, unix.Errno(-answer.Error))
	}
	return answer, nil
}

const xdpPass = 2

// SetState changes a connection's state and returns its record after that.
func (o *Objects) SetState(index, generation uint32, from, to abi.FlowState) (abi.Conn, error) {
	answer, err := o.Ctl(abi.Ctl{Op: uint32(abi.CtlOpSetState), Index: index,
		Generation: generation, From: uint32(from), To: uint32(to)})
	return answer.Conn, err
}

// Activate takes a connection from HOLD to ACTIVE with the numbers of the dump
// of the kernel socket (see ETRAN_CTL_ACTIVATE).
func (o *Objects) Activate(index, generation uint32, dump *abi.Conn) (abi.Conn, error) {
	answer, err := o.Ctl(abi.Ctl{Op: uint32(abi.CtlOpActivate), Index: index,
		Generation: generation, Conn: *dump})
	return answer.Conn, err
}

// Snapshot returns a connection's record.
func (o *Objects) Snapshot(index, generation uint32) (abi.Conn, error) {
	answer, err := o.Ctl(abi.Ctl{Op: uint32(abi.CtlOpSnapshot), Index: index, Generation: generation})
	return answer.Conn, err
}

// InjectToKernel hands a whole Ethernet frame to the kernel as if it had come
// from the device, without the ingress program seeing it. The device must be
// in the network namespace of the calling thread. Checksums must be complete.
func (o *Objects) InjectToKernel(ifindex int, frame []byte) error {
	_, err := o.Pass.Run(&ebpf.RunOptions{
		Data:      frame,
		Context:   xdpContext{DataEnd: uint32(len(frame)), IngressIfindex: uint32(ifindex)},
		Flags:     unix.BPF_F_TEST_XDP_LIVE_FRAMES,
		Repeat:    1,
		BatchSize: 1,
	})
	if err != nil {
		return fmt.Errorf("inject %d octets at interface %d: %w", len(frame), ifindex, err)
	}
	return nil
}

// NewPubMap makes the published map of an application. It is frozen: programs
// write to it, user space (also the owner of a passed descriptor) only reads.
func (o *Objects) NewPubMap() (*ebpf.Map, error) {
	m, err := ebpf.NewMap(o.pub.Copy())
	if err != nil {
		return nil, fmt.Errorf("published map: %w", err)
	}
	if err := m.Freeze(); err != nil {
		return nil, errors.Join(fmt.Errorf("freeze published map: %w", err), m.Close())
	}
	return m, nil
}

// SetApp registers an application with a new published map. Its rings' credit
// starts at zero, as the map does.
func (o *Objects) SetApp(app uint32, pub *ebpf.Map, generation uint32) error {
	for ring := range uint32(abi.MaxRings) {
		if err := o.Rings.Put(app*abi.MaxRings+ring, abi.Ring{}); err != nil {
			return fmt.Errorf("reset ring %d of application %d: %w", ring, app, err)
		}
	}
	if err := o.Pubs.Put(app, uint32(pub.FD())); err != nil {
		return fmt.Errorf("publish application %d: %w", app, err)
	}
	if err := o.Apps.Put(app, abi.App{Generation: generation}); err != nil {
		return fmt.Errorf("register application %d: %w", app, err)
	}
	return nil
}

// RevokeApp takes the right to send from all taps of an application. Its
// published map stays for the demotions that follow; see RemoveApp.
func (o *Objects) RevokeApp(app uint32) error {
	if err := o.Apps.Put(app, abi.App{}); err != nil {
		return fmt.Errorf("revoke application %d: %w", app, err)
	}
	return nil
}

// RemoveApp forgets a revoked application that has no connection left.
func (o *Objects) RemoveApp(app uint32) error {
	if err := o.Pubs.Delete(app); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("remove application %d: %w", app, err)
	}
	return nil
}

// InstallConn fills a connection record. Its state must be NONE, before and
// after: only the control program changes states.
func (o *Objects) InstallConn(index uint32, rec *abi.Conn) error {
	var old abi.Conn
	if err := o.Conns.Lookup(index, &old); err != nil {
		return fmt.Errorf("connection %d: %w", index, err)
	}
	if none := uint32(abi.FlowStateNone); old.State != none || rec.State != none {
		return fmt.Errorf("install connection %d: %w", index, unix.EBUSY)
	}
	filled := *rec
	filled.App = uint16(index / abi.AppSlots)
	filled.Slot = uint16(index % abi.AppSlots)
	if err := o.Conns.Put(index, &filled); err != nil {
		return fmt.Errorf("install connection %d: %w", index, err)
	}
	return nil
}

// SetFlow directs a flow to a connection. A flow that is already there is an
// error (ebpf.ErrKeyExist).
func (o *Objects) SetFlow(key abi.FlowKey, index uint32) error {
	if err := o.Flows.Update(key, index, ebpf.UpdateNoExist); err != nil {
		return fmt.Errorf("set flow of connection %d: %w", index, err)
	}
	return nil
}

// DeleteFlow gives a flow back to the kernel.
func (o *Objects) DeleteFlow(key abi.FlowKey) error {
	if err := o.Flows.Delete(key); err != nil {
		return fmt.Errorf("delete flow: %w", err)
	}
	return nil
}

// SetHop changes a next hop. A frame being sent meanwhile may get a mixture of
// the old and the new addresses: it is lost like any other lost frame.
func (o *Objects) SetHop(hop uint32, h abi.Hop) error {
	if err := o.Hops.Put(hop, h); err != nil {
		return fmt.Errorf("set next hop %d: %w", hop, err)
	}
	return nil
}

// SetPort makes a device of the calling thread's network namespace one to send
// by.
func (o *Objects) SetPort(port uint32, ifindex int) error {
	if err := o.Ports.Put(port, uint32(ifindex)); err != nil {
		return fmt.Errorf("set port %d to interface %d: %w", port, ifindex, err)
	}
	return nil
}

// SetXsk makes an AF_XDP socket the sink of an application's ring.
func (o *Objects) SetXsk(app, ring uint32, fd int) error {
	if err := o.Xsks.Put(app*abi.MaxRings+ring, uint32(fd)); err != nil {
		return fmt.Errorf("set AF_XDP socket of application %d, ring %d: %w", app, ring, err)
	}
	return nil
}

// DeleteXsk takes a ring's AF_XDP socket out.
func (o *Objects) DeleteXsk(app, ring uint32) error {
	err := o.Xsks.Delete(app*abi.MaxRings + ring)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete AF_XDP socket of application %d, ring %d: %w", app, ring, err)
	}
	return nil
}

// SetPair makes a device of the calling thread's network namespace the near end
// of an application's veth pair.
func (o *Objects) SetPair(app uint32, ifindex int) error {
	if err := o.Pairs.Put(app, uint32(ifindex)); err != nil {
		return fmt.Errorf("set pair of application %d to interface %d: %w", app, ifindex, err)
	}
	return nil
}

// DeletePair takes an application's veth pair out.
func (o *Objects) DeletePair(app uint32) error {
	if err := o.Pairs.Delete(app); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete pair of application %d: %w", app, err)
	}
	return nil
}

// SetRing directs a connection's frames to another ring of its application (see
// ETRAN_CTL_SET_RING).
func (o *Objects) SetRing(index, generation uint32, ring uint16) error {
	_, err := o.Ctl(abi.Ctl{Op: uint32(abi.CtlOpSetRing), Index: index, Generation: generation, Arg: uint32(ring)})
	return err
}

// SetTap says that an application, in one of its generations, writes to a tap.
// Another tap may have the place in the table (unix.EBUSY): a new one, with
// another ifindex, helps.
func (o *Objects) SetTap(ifindex int, app, generation uint32) error {
	place, old, err := o.tap(ifindex)
	if err != nil {
		return err
	}
	if old.Ifindex != 0 && old.Ifindex != uint32(ifindex) {
		return fmt.Errorf("tap %d: place taken by tap %d: %w", ifindex, old.Ifindex, unix.EBUSY)
	}
	tap := abi.Tap{Ifindex: uint32(ifindex), App: app, Generation: generation}
	if err := o.Taps.Put(place, tap); err != nil {
		return fmt.Errorf("set tap %d: %w", ifindex, err)
	}
	return nil
}

// DeleteTap forgets a tap.
func (o *Objects) DeleteTap(ifindex int) error {
	place, old, err := o.tap(ifindex)
	if err != nil || old.Ifindex != uint32(ifindex) {
		return err
	}
	if err := o.Taps.Put(place, abi.Tap{}); err != nil {
		return fmt.Errorf("delete tap %d: %w", ifindex, err)
	}
	return nil
}

// tap returns a tap's place in the table and what is there.
func (o *Objects) tap(ifindex int) (place uint32, tap abi.Tap, err error) {
	place = uint32(ifindex) % abi.MaxTaps
	if err := o.Taps.Lookup(place, &tap); err != nil {
		return place, tap, fmt.Errorf("look up tap %d: %w", ifindex, err)
	}
	return place, tap, nil
}

// Drops returns how many frames were counted for each reason, by the reason's
// name for tools.
func (o *Objects) Drops() (map[string]uint64, error) {
	drops := make(map[string]uint64)
	for reason := abi.DropReasonNone + 1; reason < abi.DropReasonMax; reason++ {
		var perCPU []uint64
		if err := o.etranObjects.Drops.Lookup(uint32(reason), &perCPU); err != nil {
			return nil, fmt.Errorf("read drops %s: %w", reason, err)
		}
		for _, n := range perCPU {
			drops[reason.String()] += n
		}
	}
	return drops, nil
}
