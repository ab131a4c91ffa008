// SPDX-License-Identifier: Apache-2.0

// Package datapath puts the eBPF programs in place and takes them away again.
// Attaching is a transaction: everything that the configuration names, each by
// a bpf_link that is pinned, or nothing.
package datapath

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/etran-go/etran/bpf"
	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/config"
)

// MaxMTU is the largest packet that fits a UMEM frame with its Ethernet header.
const MaxMTU = abi.FrameSize - abi.FrameHeadroom - ethernetHeader

const ethernetHeader = 14

// Device is a served device.
type Device struct {
	Name           string
	Ifindex        int
	Queues         int
	MTU            int
	MAC            net.HardwareAddr
	Port           uint32
	VerifyChecksum bool
	Sharing        config.Sharing
	// Usable is false while the device is down, gone or changed so that
	// the programs cannot serve it.
	Usable bool

	link link.Link
}

// DataPath is the attached data path.
type DataPath struct {
	*bpf.Objects

	pins  *pinDir
	trace link.Link
	drop  *ebpf.Program
	log   *slog.Logger

	mu      sync.Mutex
	devices []*Device
}

// dropAll keeps every segment from a sleeping socket.
var dropAll = &ebpf.ProgramSpec{
	Name: "etran_drop", Type: ebpf.SocketFilter, License: "Dual BSD/GPL",
	Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
}

// DropFilter is a socket filter that drops everything.
func (d *DataPath) DropFilter() int { return d.drop.FD() }

// Open loads and attaches everything, or leaves nothing behind.
func Open(c *config.Config, log *slog.Logger) (d *DataPath, err error) {
	if err := bpf.CheckKernel(); err != nil {
		return nil, fmt.Errorf("this kernel cannot run eTran: %w", err)
	}
	d = &DataPath{log: log}
	defer func() {
		if err != nil {
			d.Close()
			d = nil
		}
	}()
	if d.pins, err = openPinDir(c.PinDir, log); err != nil {
		return d, err
	}
	if d.Objects, err = bpf.Load(bpf.LoadOptions{}); err != nil {
		return d, err
	}
	if d.drop, err = ebpf.NewProgram(dropAll); err != nil {
		return d, fmt.Errorf("load the drop filter: %w", err)
	}
	if d.trace, err = d.AttachTrace(); err != nil {
		return d, err
	}
	if err = d.pins.pin(d.trace, tracePin); err != nil {
		return d, err
	}
	for port, i := range c.Interfaces {
		if err = d.attach(i, uint32(port)); err != nil {
			return d, fmt.Errorf("interface %s: %w", i.Name, err)
		}
	}
	return d, nil
}

func (d *DataPath) attach(i config.Interface, port uint32) error {
	l, err := netlink.LinkByName(i.Name)
	if err != nil {
		return fmt.Errorf("find it: %w", err)
	}
	device := &Device{Name: i.Name, Ifindex: l.Attrs().Index, Port: port,
		VerifyChecksum: i.VerifyChecksum, Sharing: i.Sharing}
	if err := device.read(l); err != nil {
		return err
	}
	if device.MTU > MaxMTU {
		return fmt.Errorf("MTU %d is larger than %d", device.MTU, MaxMTU)
	}
	if err := refuseForeign(i.Name); err != nil {
		return err
	}
	device.link, err = link.AttachXDP(link.XDPOptions{
		Program: d.Ingress, Interface: device.Ifindex, Flags: link.XDPDriverMode})
	if err != nil {
		return fmt.Errorf("attach in native mode: %w", err)
	}
	// From here on Close undoes it.
	d.devices = append(d.devices, device)
	if err := d.pins.pin(device.link, devicePin+i.Name); err != nil {
		return err
	}
	return d.SetPort(port, device.Ifindex)
}

// refuseForeign: somebody else's program must not be replaced.
func refuseForeign(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find it: %w", err)
	}
	if xdp := l.Attrs().Xdp; xdp != nil && xdp.Attached {
		return fmt.Errorf("an XDP program that is not ours (id %d) is attached; remove it first", xdp.ProgId)
	}
	return nil
}

// read takes over what the kernel says of the device.
func (dev *Device) read(l netlink.Link) error {
	a := l.Attrs()
	dev.MTU, dev.MAC = a.MTU, a.HardwareAddr
	var err error
	if dev.Queues, err = rxQueues(a.Name, a.NumRxQueues); err != nil {
		return err
	}
	if dev.Queues > abi.MaxQueues {
		return fmt.Errorf("%d receive queues, at most %d can be served", dev.Queues, abi.MaxQueues)
	}
	dev.Usable = a.Flags&net.FlagUp != 0 && dev.MTU <= MaxMTU
	return nil
}

// Devices returns a copy of all devices.
func (d *DataPath) Devices() []Device {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := make([]Device, len(d.devices))
	for i, dev := range d.devices {
		list[i] = *dev
	}
	return list
}

// Device returns a copy of a usable device.
func (d *DataPath) Device(ifindex int) (Device, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, dev := range d.devices {
		if dev.Ifindex == ifindex && dev.Usable {
			return *dev, true
		}
	}
	return Device{}, false
}

// LinkChanged takes over a change of a link. changed is true if fast
// connections on the device must go back to the kernel.
func (d *DataPath) LinkChanged(l netlink.Link, deleted bool) (dev Device, served, changed bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, own := range d.devices {
		if own.Ifindex != l.Attrs().Index {
			continue
		}
		before := *own
		if err := own.read(l); err != nil || deleted {
			own.Usable = false
			d.log.Warn("device cannot be served any more", "device", own.Name, "deleted", deleted, "error", err)
		}
		changed = before.Usable && (!own.Usable || own.MTU != before.MTU || own.Queues != before.Queues)
		return *own, true, changed
	}
	return Device{}, false, false
}

// AttachTap puts the egress program on a tap; the calling thread is in the
// tap's namespace. The pin keeps it there if the daemon dies.
func (d *DataPath) AttachTap(ifindex int, name string) (link.Link, error) {
	return d.attachPrivate(d.Egress, ifindex, tapPin+name)
}

// AttachRelay does the same for the far end of a veth pair.
func (d *DataPath) AttachRelay(ifindex int, name string) (link.Link, error) {
	return d.attachPrivate(d.Relay, ifindex, relayPin+name)
}

func (d *DataPath) attachPrivate(program *ebpf.Program, ifindex int, pin string) (link.Link, error) {
	l, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: ifindex, Flags: link.XDPDriverMode})
	if err != nil {
		return nil, fmt.Errorf("attach %v in native mode: %w", program, err)
	}
	if err := d.pins.pin(l, pin); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Release forgets the link of a private device that is gone.
func (d *DataPath) Release(l link.Link) {
	if err := errors.Join(l.Unpin(), l.Close()); err != nil {
		d.log.Warn("link of a private device not released", "error", err)
	}
}

// Close detaches everything.
func (d *DataPath) Close() {
	var errs []error
	for _, dev := range d.devices {
		errs = append(errs, dev.link.Unpin(), detach(dev.link))
	}
	if d.trace != nil {
		errs = append(errs, d.trace.Unpin(), d.trace.Close())
	}
	if d.drop != nil {
		errs = append(errs, d.drop.Close())
	}
	if d.Objects != nil {
		errs = append(errs, d.Objects.Close())
	}
	if d.pins != nil {
		errs = append(errs, d.pins.close())
	}
	if err := errors.Join(errs...); err != nil {
		d.log.Warn("not everything could be detached", "error", err)
	}
}

// detach takes effect at once; closing the last descriptor may take a while.
func detach(l link.Link) error {
	err := l.Detach()
	if errors.Is(err, unix.ENOLINK) || errors.Is(err, unix.ENODEV) {
		err = nil // the device is gone
	}
	return errors.Join(err, l.Close())
}
