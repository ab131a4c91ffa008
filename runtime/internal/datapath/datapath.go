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
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

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
	// the programs cannot serve it, or without our program.
	Usable bool
	// Lost is how often the program or the device went away.
	Lost uint64

	up      bool      // as the kernel says
	link    link.Link // nil while the program is not attached
	again   time.Time // when to try to attach next
	backOff time.Duration
}

// DataPath is the attached data path.
type DataPath struct {
	*bpf.Objects

	pins    *pinDir
	trace   link.Link
	sockets *bpf.Sockets
	log     *slog.Logger

	mu      sync.Mutex
	devices []*Device
}

// Sockets are the programs about kernel sockets.
func (d *DataPath) Sockets() *bpf.Sockets { return d.sockets }

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
	if d.sockets, err = bpf.LoadSockets(bpf.LoadOptions{}); err != nil {
		return d, err
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
	device := &Device{Name: i.Name, Port: port, VerifyChecksum: i.VerifyChecksum, Sharing: i.Sharing}
	if err := d.serve(device); err != nil {
		return err
	}
	d.devices = append(d.devices, device)
	return nil
}

// serve finds a device by its name and attaches the ingress program.
func (d *DataPath) serve(device *Device) error {
	l, err := netlink.LinkByName(device.Name)
	if err != nil {
		return fmt.Errorf("find it: %w", err)
	}
	if err := device.read(l); err != nil {
		return err
	}
	if device.MTU > MaxMTU {
		return fmt.Errorf("MTU %d is larger than %d", device.MTU, MaxMTU)
	}
	if xdp := l.Attrs().Xdp; xdp != nil && xdp.Attached {
		return fmt.Errorf("an XDP program that is not ours (id %d) is attached; remove it first", xdp.ProgId)
	}
	attached, err := link.AttachXDP(link.XDPOptions{
		Program: d.Ingress, Interface: device.Ifindex, Flags: link.XDPDriverMode})
	if err != nil {
		return fmt.Errorf("attach in native mode: %w", err)
	}
	err = d.pins.pin(attached, devicePin+device.Name)
	if err == nil {
		err = d.SetPort(device.Port, device.Ifindex)
	}
	if err != nil {
		_ = attached.Unpin() // perhaps it was not pinned
		return errors.Join(err, detach(attached))
	}
	device.link = attached
	device.judge()
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
		errs = append(errs, dev.release())
	}
	if d.trace != nil {
		errs = append(errs, d.trace.Unpin(), d.trace.Close())
	}
	if d.sockets != nil {
		errs = append(errs, d.sockets.Close())
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
