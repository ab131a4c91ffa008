// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
)

// How soon a program that was lost is attached again: an administrator who
// detaches it means it for a while, and a device that refuses it need not be
// asked all the time.
const (
	firstBackOff = time.Second
	maxBackOff   = time.Minute
)

// Change is what became of a served device.
type Change struct {
	Device Device
	// Former is its interface index before: another one if the device was
	// made anew under its name.
	Former int
	// Leave: fast connections on it must go back to the kernel.
	Leave bool
}

// read takes over what the kernel says of the device.
func (dev *Device) read(l netlink.Link) error {
	a := l.Attrs()
	dev.Ifindex, dev.MTU, dev.MAC = a.Index, a.MTU, a.HardwareAddr
	dev.up = a.Flags&net.FlagUp != 0
	err := dev.readQueues(a.NumRxQueues)
	dev.judge()
	return err
}

func (dev *Device) readQueues(allocated int) error {
	queues, err := rxQueues(dev.Name, allocated)
	if err != nil {
		dev.up = false
		return err
	}
	dev.Queues = queues
	if queues > abi.MaxQueues {
		dev.up = false
		return fmt.Errorf("%d receive queues, at most %d can be served", queues, abi.MaxQueues)
	}
	return nil
}

// judge is the one setter of Usable.
func (dev *Device) judge() { dev.Usable = dev.up && dev.link != nil && dev.MTU <= MaxMTU }

// changed compares with how the device was.
func (dev *Device) changed(before *Device) Change {
	leave := before.Usable && (!dev.Usable || dev.MTU != before.MTU || dev.Queues != before.Queues)
	return Change{Device: *dev, Former: before.Ifindex, Leave: leave}
}

// LinkChanged takes over a change of a link that the kernel told; served is
// false if the link is none of ours.
func (d *DataPath) LinkChanged(l netlink.Link, deleted bool) (change Change, served bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, dev := range d.devices {
		before := *dev
		switch known := dev.Ifindex == l.Attrs().Index; {
		case known && deleted:
			d.lose(dev, "it is gone")
		case known:
			if err := dev.read(l); err != nil {
				d.log.Warn("device cannot be served any more", "device", dev.Name, "error", err)
				dev.judge()
			}
		case !deleted && dev.link == nil && dev.Name == l.Attrs().Name:
			d.regain(dev) // made anew
		default:
			continue
		}
		return dev.changed(&before), true
	}
	return Change{}, false
}

// CheckDevices finds what the kernel does not tell: programs that somebody
// detached, and another number of queues. It attaches again what was lost.
func (d *DataPath) CheckDevices(now time.Time) []Change {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []Change
	for _, dev := range d.devices {
		before := *dev
		switch {
		case dev.link == nil && now.After(dev.again):
			d.regain(dev)
		case dev.link != nil && !attached(dev.link):
			d.lose(dev, "its program was detached")
		case dev.Usable:
			if err := dev.readQueues(dev.Queues); err != nil {
				d.log.Warn("device cannot be served any more", "device", dev.Name, "error", err)
				dev.judge()
			}
		}
		if c := dev.changed(&before); c.Leave || dev.Usable != before.Usable {
			list = append(list, c)
		}
	}
	return list
}

// attached says whether a program is still on its device.
func attached(l link.Link) bool {
	info, err := l.Info()
	return err != nil || info.XDP() == nil || info.XDP().Ifindex != 0
}

// lose takes over that a device has our program no longer.
func (d *DataPath) lose(dev *Device, why string) {
	dev.Lost++
	if err := dev.release(); err != nil {
		d.log.Warn("link not released", "device", dev.Name, "error", err)
	}
	dev.backOff = firstBackOff
	dev.again = time.Now().Add(dev.backOff)
	dev.judge()
	d.log.Warn("device lost", "device", dev.Name, "why", why)
}

// regain tries to attach again.
func (d *DataPath) regain(dev *Device) {
	if err := d.serve(dev); err != nil {
		dev.backOff = min(2*dev.backOff, maxBackOff)
		dev.again = time.Now().Add(dev.backOff)
		d.log.Info("device cannot be served yet", "device", dev.Name, "next_try", dev.backOff, "error", err)
		return
	}
	d.log.Info("device is served again", "device", dev.Name, "ifindex", dev.Ifindex)
}

// release takes the program from the device.
func (dev *Device) release() error {
	if dev.link == nil {
		return nil
	}
	err := errors.Join(dev.link.Unpin(), detach(dev.link))
	dev.link = nil
	return err
}

// detach takes effect at once; closing the last descriptor may take a while.
func detach(l link.Link) error {
	err := l.Detach()
	if errors.Is(err, unix.ENOLINK) || errors.Is(err, unix.ENODEV) {
		err = nil // the device is gone, or somebody else was faster
	}
	return errors.Join(err, l.Close())
}
