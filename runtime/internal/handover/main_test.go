// SPDX-License-Identifier: Apache-2.0

package handover_test

import (
	"fmt"
	"net"
	"runtime"
	"testing"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/etran-go/etran/runtime/internal/testnet"
)

func TestMain(m *testing.M) { testnet.Main(m) }

const (
	here  = "10.66.0.1"
	there = "10.66.0.2"
)

// wire joins this namespace by a veth pair to another one, where the peers of
// our connections live. do runs a function there.
type wire struct{ jobs chan func() }

func newWire(t *testing.T) *wire {
	t.Helper()
	w := &wire{jobs: make(chan func())}
	t.Cleanup(func() { close(w.jobs) })
	ready := make(chan error)
	go w.live(ready)
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if l, err := netlink.LinkByName("here"); err == nil {
			_ = netlink.LinkDel(l) // its namespace may be gone already
		}
	})
	return w
}

func (w *wire) live(ready chan<- error) {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	ready <- w.connect()
	for job := range w.jobs {
		job()
	}
}

func (w *wire) connect() error {
	ours, err := netns.Get()
	if err != nil {
		return err
	}
	defer ours.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "there"},
		PeerName: "here", PeerNamespace: netlink.NsFd(ours)}
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	if err := setUp(nil, "there", there); err != nil {
		return err
	}
	if err := receiveRedirected("there"); err != nil {
		return err
	}
	h, err := netlink.NewHandleAt(ours)
	if err != nil {
		return err
	}
	defer h.Close()
	return setUp(h, "here", here)
}

func setUp(h *netlink.Handle, name, address string) error {
	if h == nil {
		var err error
		if h, err = netlink.NewHandle(); err != nil {
			return err
		}
		defer h.Close()
	}
	l, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(address + "/24")
	if err != nil {
		return err
	}
	if err := h.AddrAdd(l, a); err != nil {
		return err
	}
	return h.LinkSetUp(l)
}

// receiveRedirected lets a veth end without a program take the frames that the
// other end's redirect: only one that does GRO has the rings for it.
func receiveRedirected(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := struct{ cmd, data uint32 }{unix.ETHTOOL_SGRO, 1}
	req := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(req.name[:], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	if errno != 0 {
		return fmt.Errorf("GRO on %s: %w", name, errno)
	}
	return nil
}

// do runs f in the other namespace.
func (w *wire) do(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error)
	w.jobs <- func() { done <- f() }
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// raw is the program's own socket. Go's poller must not watch it: as every
// poller does, it would see the disconnect in the middle of a demotion.
type raw struct {
	fd    int
	local string
}

func newRaw(t *testing.T, c net.Conn) *raw {
	t.Helper()
	f, err := c.(*net.TCPConn).File()
	must(t, err)
	defer f.Close()
	r := &raw{local: c.LocalAddr().String()}
	r.fd = must1(t)(unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0))
	must(t, c.Close())
	must(t, unix.SetNonblock(r.fd, false))
	tv := unix.Timeval{Sec: 5}
	must(t, unix.SetsockoptTimeval(r.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
	t.Cleanup(func() { r.Close() })
	return r
}

func (r *raw) Read(b []byte) (int, error)  { return unix.Read(r.fd, b) }
func (r *raw) Write(b []byte) (int, error) { return unix.Write(r.fd, b) }

func (r *raw) Close() error {
	fd := r.fd
	r.fd = -1
	if fd < 0 {
		return nil
	}
	return unix.Close(fd)
}

// dial makes a connection between the namespaces: ours and the peer.
func (w *wire) dial(t *testing.T, accepted bool) (ours *raw, peer *net.TCPConn) {
	t.Helper()
	var l net.Listener
	listen := func(address string) func() error {
		return func() (err error) { l, err = net.Listen("tcp4", address+":0"); return err }
	}
	var c net.Conn
	dial := func() (err error) { c, err = net.Dial("tcp4", l.Addr().String()); return err }
	if accepted {
		if err := listen(here)(); err != nil {
			t.Fatal(err)
		}
		w.do(t, dial)
	} else {
		w.do(t, listen(there))
		if err := dial(); err != nil {
			t.Fatal(err)
		}
	}
	defer l.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if accepted {
		c, s = s, c
	}
	t.Cleanup(func() { s.Close() })
	return newRaw(t, c), s.(*net.TCPConn)
}
