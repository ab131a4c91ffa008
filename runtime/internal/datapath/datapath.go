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
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
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
	// retired devices are not configured any more, but still have
	// connections of the last daemon.
	retired []*Device
}

// Sockets are the programs about kernel sockets.
func (d *DataPath) Sockets() *bpf.Sockets { return d.sockets }

// Open loads and attaches everything, or leaves nothing behind. What a dead
// daemon left is discarded.
func Open(c *config.Config, log *slog.Logger) (*DataPath, error) {
	d, err := open(c, false, log)
	if err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// Adopt puts new programs on what the last daemon left: the maps stay, and the
// programs are replaced one by one while frames flow. After an error everything
// is as the last daemon left it, except that some programs may be the new ones.
// The error is or wraps ErrVersion if nothing was touched for that reason.
func Adopt(c *config.Config, log *slog.Logger) (*DataPath, error) {
	d, err := open(c, true, log)
	if err != nil {
		d.abandon()
		return nil, err
	}
	return d, nil
}

func open(c *config.Config, adopt bool, log *slog.Logger) (d *DataPath, err error) {
	if err := bpf.CheckKernel(); err != nil {
		return &DataPath{log: log}, fmt.Errorf("this kernel cannot run eTran: %w", err)
	}
	d = &DataPath{log: log}
	if d.pins, err = openPinDir(c.PinDir, adopt, log); err != nil {
		return d, err
	}
	if d.Objects, err = bpf.Load(bpf.LoadOptions{PinPath: d.pins.maps()}); err != nil {
		return d, err
	}
	if d.sockets, err = bpf.LoadSockets(bpf.LoadOptions{}); err != nil {
		return d, err
	}
	if err = d.openTrace(); err != nil {
		return d, err
	}
	for _, i := range c.Interfaces {
		if err = d.attach(i); err != nil {
			return d, fmt.Errorf("interface %s: %w", i.Name, err)
		}
	}
	return d, d.retire(c)
}

// openTrace attaches the tracepoint's program, unless the last daemon's is
// still there: it cannot be replaced, and two of them would take a frame that a
// socket refused back twice.
func (d *DataPath) openTrace() (err error) {
	if d.trace, err = d.pins.load(tracePin); err != nil || d.trace != nil {
		return err
	}
	if d.trace, err = d.AttachTrace(); err != nil {
		return err
	}
	return d.pins.pin(d.trace, tracePin)
}

func (d *DataPath) attach(i config.Interface) error {
	l, err := netlink.LinkByName(i.Name)
	if err != nil {
		return fmt.Errorf("find it: %w", err)
	}
	device := &Device{Name: i.Name, VerifyChecksum: i.VerifyChecksum, Sharing: i.Sharing}
	if device.Port, err = d.port(l.Attrs().Index); err != nil {
		return err
	}
	if err := d.serve(device); err != nil {
		return err
	}
	d.devices = append(d.devices, device)
	return nil
}

// serve finds a device by its name and attaches the ingress program, or puts it
// in the place of the last daemon's.
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
	before, err := d.replace(devicePin+device.Name, device.Ifindex, d.Ingress)
	if err != nil {
		return err
	}
	if before != nil {
		device.link = before
		device.judge()
		return d.SetPort(device.Port, device.Ifindex)
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

// port is the device's place among those to send by: the one that next hops of
// the last daemon name, or one that nobody has.
func (d *DataPath) port(ifindex int) (uint32, error) {
	free := uint32(abi.MaxDevices)
	for port := uint32(abi.MaxDevices); port > 0; port-- {
		var there uint32
		err := d.Ports.Lookup(port-1, &there)
		switch {
		case err == nil && there == uint32(ifindex):
			return port - 1, nil
		case errors.Is(err, ebpf.ErrKeyNotExist) || err == nil && there == 0:
			free = port - 1
		case err != nil:
			return 0, fmt.Errorf("look up port %d: %w", port-1, err)
		}
	}
	if free == abi.MaxDevices {
		return 0, fmt.Errorf("no port is free: %w", unix.ENOSPC)
	}
	return free, nil
}

// replace puts a program into the pinned link of the last daemon and returns the
// link, nil if there is none for this device: frames meet one program or the
// other, never none.
func (d *DataPath) replace(pin string, ifindex int, program *ebpf.Program) (link.Link, error) {
	l, err := d.pins.load(pin)
	if l == nil {
		return nil, err
	}
	info, err := l.Info()
	if err == nil && info.XDP() != nil && info.XDP().Ifindex == uint32(ifindex) {
		if err = l.Update(program); err == nil {
			return l, nil
		}
	}
	// The device that it was for is gone.
	d.log.Warn("a pinned link is of no use any more", "pin", pin, "error", err)
	return nil, errors.Join(l.Close(), d.pins.discard(pin))
}

// retire keeps the programs on devices that are not configured any more, until
// their connections are the kernel's again.
func (d *DataPath) retire(c *config.Config) error {
	names, err := d.pins.names()
	if err != nil {
		return err
	}
	for _, pin := range names {
		name, ok := strings.CutPrefix(pin, devicePin)
		if !ok || slices.ContainsFunc(c.Interfaces, func(i config.Interface) bool { return i.Name == name }) {
			continue
		}
		dev, err := net.InterfaceByName(name)
		if err != nil {
			if err := d.pins.discard(pin); err != nil {
				return err
			}
			continue
		}
		l, err := d.replace(pin, dev.Index, d.Ingress)
		if err != nil {
			return err
		}
		if l != nil {
			d.retired = append(d.retired, &Device{Name: name, Ifindex: dev.Index, link: l})
		}
	}
	return nil
}

// Retired returns copies of the devices that are not configured any more.
func (d *DataPath) Retired() []Device {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []Device
	for _, dev := range d.retired {
		list = append(list, *dev)
	}
	return list
}

// Dismiss takes the program off a retired device that has no connection left.
func (d *DataPath) Dismiss(ifindex int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, dev := range d.retired {
		if dev.Ifindex != ifindex {
			continue
		}
		if err := dev.release(); err != nil {
			d.log.Warn("device not given up wholly", "device", dev.Name, "error", err)
		}
		d.retired = slices.Delete(d.retired, i, i+1)
		return
	}
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

// AdoptTap puts the new egress program on a tap of the last daemon's. The link
// is nil if the tap is gone.
func (d *DataPath) AdoptTap(ifindex int, name string) (link.Link, error) {
	return d.replace(tapPin+name, ifindex, d.Egress)
}

// AdoptRelay does the same for the far end of a veth pair.
func (d *DataPath) AdoptRelay(ifindex int, name string) (link.Link, error) {
	return d.replace(relayPin+name, ifindex, d.Relay)
}

// SweepPrivate removes the pins of taps and pairs that nobody has adopted.
func (d *DataPath) SweepPrivate(adopted map[string]bool) {
	names, err := d.pins.names()
	for _, pin := range names {
		name, private := strings.CutPrefix(pin, tapPin)
		if !private {
			name, private = strings.CutPrefix(pin, relayPin)
		}
		if private && !adopted[name] {
			err = errors.Join(err, d.pins.discard(pin))
		}
	}
	if err != nil {
		d.log.Warn("pins of private devices not removed", "error", err)
	}
}

// Release forgets the link of a private device that is gone.
func (d *DataPath) Release(l link.Link) {
	if l == nil {
		return
	}
	if err := errors.Join(l.Unpin(), l.Close()); err != nil {
		d.log.Warn("link of a private device not released", "error", err)
	}
}

// Close detaches everything.
func (d *DataPath) Close() {
	var errs []error
	for _, dev := range slices.Concat(d.devices, d.retired) {
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

// abandon closes what was opened and leaves it in place, for another daemon.
func (d *DataPath) abandon() {
	for _, dev := range slices.Concat(d.devices, d.retired) {
		if dev.link != nil {
			_ = dev.link.Close()
		}
	}
	if d.trace != nil {
		_ = d.trace.Close()
	}
	if d.sockets != nil {
		_ = d.sockets.Close()
	}
	if d.Objects != nil {
		_ = d.Objects.Close()
	}
	if d.pins != nil {
		_ = d.pins.lock.Close()
	}
}
