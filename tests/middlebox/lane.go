// SPDX-License-Identifier: Apache-2.0

package middlebox

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// lane is a path on which frames take their time, without changing their order:
// a tap device. What is sent to the device is read here and, later, comes in on
// the device.
type lane struct {
	ifindex int
	tap     *os.File
	delay   atomic.Int64 // nanoseconds
	ends    sync.WaitGroup
}

type waiting struct {
	frame []byte
	due   time.Time
}

const (
	// Frames that can wait; a lane that is full takes no more until one has left.
	laneSize  = 4096
	largest   = 1<<16 - 1 // octets of a tap's frame
	tapDevice = "/dev/net/tun"

	ethernetHeader = 14
)

// openLane makes a lane in the calling thread's network namespace.
func openLane(name string) (*lane, error) {
	fd, err := unix.Open(tapDevice, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", tapDevice, err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("making tap device %s: %w", name, err)
	}
	l := &lane{tap: os.NewFile(uintptr(fd), name)}
	if err := l.up(name); err != nil {
		l.tap.Close()
		return nil, err
	}
	queue := make(chan waiting, laneSize)
	l.ends.Add(2)
	go l.enter(queue)
	go l.leave(queue)
	return l, nil
}

func (l *lane) up(name string) error {
	dev, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("finding tap device %s: %w", name, err)
	}
	l.ifindex = dev.Attrs().Index
	// For any wire's frames.
	if err := netlink.LinkSetMTU(dev, largest-ethernetHeader); err != nil {
		return fmt.Errorf("MTU of tap device %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(dev); err != nil {
		return fmt.Errorf("bringing up tap device %s: %w", name, err)
	}
	return nil
}

// enter takes what comes until the tap is closed.
func (l *lane) enter(queue chan<- waiting) {
	defer l.ends.Done()
	defer close(queue)
	buffer := make([]byte, largest)
	for {
		n, err := l.tap.Read(buffer)
		if err != nil {
			return
		}
		queue <- waiting{append([]byte(nil), buffer[:n]...), time.Now().Add(time.Duration(l.delay.Load()))}
	}
}

// leave sends on what has waited.
func (l *lane) leave(queue <-chan waiting) {
	defer l.ends.Done()
	for w := range queue {
		time.Sleep(time.Until(w.due))
		// It fails only when the lane is being closed.
		_, _ = l.tap.Write(w.frame)
	}
}

func (l *lane) close() error {
	err := l.tap.Close()
	l.ends.Wait()
	return err
}
