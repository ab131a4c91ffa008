// SPDX-License-Identifier: Apache-2.0

package app_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/app"
	"github.com/etran-go/etran/runtime/internal/config"
	"github.com/etran-go/etran/runtime/internal/control"
	"github.com/etran-go/etran/runtime/internal/datapath"
	"github.com/etran-go/etran/runtime/internal/testnet"
)

func TestMain(m *testing.M) { testnet.Main(m) }

const (
	here  = "10.67.0.1"
	there = "10.67.0.2"
	slots = 4 // that the program uses
	// An input that takes ten seconds is said to hang.
	fuzzSteps = 12
)

// besieged is a daemon in this process, on one end of a wire with an echo
// server at the other, and one application of it. It lives as long as the
// process: to load the programs takes longer than very many inputs.
type besieged struct {
	manager *app.Manager
	session int
	arena   []byte
	echo    string
	fds     int // open descriptors when nothing goes on
}

var siege = sync.OnceValues(besiege)

func besiege() (*besieged, error) {
	dir, err := os.MkdirTemp("", "etran-fuzz")
	if err != nil {
		return nil, err
	}
	// Nobody sees what a fuzzing process says when it dies.
	crash, err := os.Create(filepath.Join(os.TempDir(), "etran-fuzz-crash"))
	if err != nil {
		return nil, err
	}
	if err := debug.SetCrashOutput(crash, debug.CrashOptions{}); err != nil {
		return nil, err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, err
	}
	b := new(besieged)
	if b.echo, err = layWire(); err != nil {
		return nil, fmt.Errorf("wire: %w", err)
	}
	c := config.Default()
	c.RunDir, c.PinDir = dir, filepath.Join(dir, "pins")
	c.Interfaces = []config.Interface{{Name: "here"}}
	log := slog.New(slog.DiscardHandler)
	path, err := datapath.Open(&c, log)
	if err != nil {
		return nil, err
	}
	if b.manager, err = app.NewManager(&c, path, log); err != nil {
		return nil, err
	}
	if err := b.manager.Watch(context.Background()); err != nil {
		return nil, err
	}
	l, err := control.Listen(dir)
	if err != nil {
		return nil, err
	}
	go b.manager.Accept(l)
	if err := b.register(filepath.Join(dir, control.SocketName)); err != nil {
		return nil, err
	}
	go b.drain()
	return b, nil
}

// drain says that nothing is left in the rings, or the daemon waits for a
// second each time.
func (b *besieged) drain() {
	for ; ; time.Sleep(100 * time.Microsecond) {
		for i := range uint32(slots) {
			phase := &b.aconn(abi.FirstSlot + i).Phase
			atomic.CompareAndSwapUint32(phase, uint32(abi.PhaseFrozen), uint32(abi.PhaseDrained))
		}
	}
}

// layWire joins this namespace to another one, where a server echoes.
func layWire() (echo string, err error) {
	ours, err := netns.Get()
	if err != nil {
		return "", err
	}
	if old, err := netlink.LinkByName("here"); err == nil { // of a process that is gone
		if err := netlink.LinkDel(old); err != nil {
			return "", err
		}
	}
	listening := make(chan net.Listener)
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: it stays in its namespace
		l, err := layFrom(ours)
		if err != nil {
			failed <- err
			return
		}
		listening <- l
		select {}
	}()
	select {
	case err := <-failed:
		return "", err
	case l := <-listening:
		go serveEcho(l)
		return l.Addr().String(), nil
	}
}

func layFrom(ours netns.NsHandle) (net.Listener, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "there"}, PeerName: "here", PeerNamespace: netlink.NsFd(ours)}
	if err := netlink.LinkAdd(veth); err != nil {
		return nil, err
	}
	h, err := netlink.NewHandleAt(ours)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	own, err := netlink.NewHandle()
	if err != nil {
		return nil, err
	}
	defer own.Close()
	for _, end := range []struct {
		h             *netlink.Handle
		name, address string
	}{{own, "there", there}, {h, "here", here}} {
		link, err := end.h.LinkByName(end.name)
		if err != nil {
			return nil, err
		}
		address, err := netlink.ParseAddr(end.address + "/24")
		if err != nil {
			return nil, err
		}
		if err := end.h.AddrAdd(link, address); err != nil {
			return nil, err
		}
		if err := end.h.LinkSetUp(link); err != nil {
			return nil, err
		}
	}
	return net.Listen("tcp4", there+":0")
}

func serveEcho(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			buf := make([]byte, 4096)
			for {
				// Not every connection ends with a word to the peer.
				_ = c.SetDeadline(time.Now().Add(time.Second))
				n, err := c.Read(buf)
				if err == nil {
					_, err = c.Write(buf[:n])
				}
				if err != nil {
					return
				}
			}
		}()
	}
}

func (b *besieged) register(path string) error {
	var err error
	if b.session, err = unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	if err := unix.Connect(b.session, &unix.SockaddrUnix{Name: path}); err != nil {
		return err
	}
	m := abi.MsgRegister{H: abi.MsgHeader{Magic: abi.Magic, Version: abi.Version, Type: uint16(abi.MsgTypeRegister)}}
	if err := b.send(&m, -1); err != nil {
		return err
	}
	packet, oob := make([]byte, 256), make([]byte, 256)
	_, n, _, _, err := unix.Recvmsg(b.session, packet, oob, 0)
	if err != nil {
		return err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) == 0 {
		return fmt.Errorf("no descriptors: %w", err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fds[0], &st); err != nil {
		return err
	}
	b.arena, err = unix.Mmap(fds[0], 0, int(st.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return err
}

func (b *besieged) send(message any, fd int) error {
	packet, err := binary.Append(nil, binary.NativeEndian, message)
	if err != nil {
		return err
	}
	var oob []byte
	if fd >= 0 {
		oob = unix.UnixRights(fd)
	}
	return unix.Sendmsg(b.session, packet, oob, nil, 0)
}

// aconn is a slot's words in the arena, as the header says before anybody has
// spoilt it.
func (b *besieged) aconn(slot uint32) *abi.Aconn {
	h := arenaLayout(b.arena)
	return (*abi.Aconn)(unsafe.Pointer(&b.arena[h.ConnsOffset+uint64(slot)*h.ConnStride]))
}

var arenaLayout = func() func([]byte) abi.Arena {
	var once sync.Once
	var h abi.Arena
	return func(arena []byte) abi.Arena {
		once.Do(func() { h = *(*abi.Arena)(unsafe.Pointer(&arena[0])) })
		return h
	}
}()

// sync waits until the daemon has handled everything, and answers.
func (b *besieged) sync(t *testing.T) {
	t.Helper()
	if err := b.send(control.Slot(abi.MsgTypeTap, 0, 0, 0), -1); err != nil {
		t.Fatal(err)
	}
	limit := unix.Timeval{Sec: 30}
	if err := unix.SetsockoptTimeval(b.session, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		t.Fatal(err)
	}
	packet, oob := make([]byte, 256), make([]byte, 256)
	for {
		n, oobn, _, _, err := unix.Recvmsg(b.session, packet, oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n < 8 {
			t.Fatalf("the daemon does not answer: %d octets, %v", n, err)
		}
		if messages, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil {
			for i := range messages {
				fds, _ := unix.ParseUnixRights(&messages[i])
				for _, fd := range fds {
					unix.Close(fd)
				}
			}
		}
		if abi.MsgType(binary.NativeEndian.Uint16(packet[6:])) == abi.MsgTypeTapReady {
			break
		}
	}
	if _, err := b.manager.Stats(); err != nil {
		t.Fatal(err)
	}
	b.manager.SS(app.Viewer{All: true})
}

// program is what the application does with one input.
type program struct {
	*testing.T
	*besieged
	tape    []byte
	sock    [slots]int
	foreign bool // has asked for the demotion of another's, which takes two seconds
}

func (p *program) octet() byte {
	if len(p.tape) == 0 {
		return 0
	}
	v := p.tape[0]
	p.tape = p.tape[1:]
	return v
}

// word is an edge, or what the slot has now, or nearly.
func (p *program) word(now uint32) uint32 {
	edges := []uint32{now, 0, 1, 1 << 31, 1<<32 - 1, abi.SndBuf, abi.RcvBuf, now + abi.RcvBuf, now - abi.SndBuf}
	return edges[int(p.octet())%len(edges)] + uint32(int32(int8(p.octet())))
}

// FuzzProgram lets an application do anything in any order: requests with any
// descriptor, any words in the arena, its sockets used meanwhile. The daemon
// must live, answer, and keep no descriptor.
func FuzzProgram(f *testing.F) {
	whole := []byte{0, 1, 9, 1, 1, 9, 2, 0, 9, 3} // observe, talk, switch, …
	f.Add(whole)
	for kind := range byte(16) {
		f.Add([]byte{0, kind, 0, 9, kind, 1, kind, kind, 9, 2, kind, 3, kind, 0, 4, 5, 6, kind})
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		if !testnet.Inside() {
			t.Skip("network namespaces need root")
		}
		b, err := siege()
		if err != nil {
			t.Fatal(err)
		}
		p := &program{T: t, besieged: b, tape: input}
		for i := range p.sock {
			p.sock[i] = -1
		}
		for step := 0; step < fuzzSteps && len(p.tape) > 0; step++ {
			p.step(uint32(p.octet()) % slots)
		}
		p.giveUp()
	})
}

func (p *program) step(i uint32) {
	slot := abi.FirstSlot + i
	a := p.aconn(slot)
	types := []abi.MsgType{abi.MsgTypeObserve, abi.MsgTypeSwitch, abi.MsgTypeDemote, abi.MsgTypeReinject, abi.MsgTypeCancel,
		abi.MsgTypeDemoteForeign}
	switch op := p.octet() % 16; op {
	case 0, 1, 2, 3, 4, 5:
		p.ask(types[op], slot, p.descriptor(i))
	case 6:
		words := unsafe.Slice((*uint32)(unsafe.Pointer(a)), unsafe.Sizeof(*a)/4)
		at := int(p.octet()) % len(words)
		words[at] = p.word(words[at])
	case 7:
		p.plant(slot, a)
	case 8:
		a.Phase = uint32(p.octet()) % 16
	case 9: // what the other end sends, XDP sees
		p.talk(p.socket(i))
	case 10:
		_ = unix.Connect(p.socket(i), &unix.SockaddrInet4{Port: int(p.octet())})
	case 11:
		_ = unix.Shutdown(p.socket(i), int(p.octet())%3)
	case 12:
		unix.Close(p.sock[i])
		p.sock[i] = -1
	case 13:
		p.sync(p.T)
	default: // the usual way to the fast path
		p.ask(abi.MsgTypeObserve, slot, p.socket(i))
		p.sync(p.T)
		p.talk(p.socket(i))
		p.ask(abi.MsgTypeSwitch, slot, -1)
	}
}

func (p *program) ask(t abi.MsgType, slot uint32, fd int) {
	if t == abi.MsgTypeDemoteForeign {
		if p.foreign {
			return
		}
		p.foreign = true
	}
	if t != abi.MsgTypeObserve && t != abi.MsgTypeDemoteForeign {
		fd = -1
	}
	a := p.aconn(slot)
	if err := p.send(control.Slot(t, slot, a.Generation, abi.PathReason(p.octet())), fd); err != nil {
		p.Fatal(err)
	}
}

func (p *program) socket(i uint32) int {
	if p.sock[i] >= 0 {
		return p.sock[i]
	}
	c, err := net.Dial("tcp4", p.echo)
	if err != nil {
		p.Fatal(err)
	}
	defer c.Close()
	file, err := c.(*net.TCPConn).File()
	if err != nil {
		p.Fatal(err)
	}
	defer file.Close()
	if p.sock[i], err = unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		p.Fatal(err)
	}
	return p.sock[i]
}

// descriptor is mostly that of the slot's connection.
func (p *program) descriptor(i uint32) int {
	switch kind := p.octet(); kind {
	case 250:
		return p.session
	case 251:
		return 0
	default:
		return p.socket(uint32(kind) % 2 * i) // perhaps another slot's
	}
}

func (p *program) talk(fd int) {
	limit := unix.Timeval{Usec: 20000}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)
	// Whether that works depends on what was done to the socket.
	_ = unix.SetNonblock(fd, false)
	if _, err := unix.SendmsgN(fd, []byte("hello"), nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); err == nil {
		_, _, _ = unix.Recvfrom(fd, make([]byte, 5), 0)
	}
}

// plant says that a frame was held.
func (p *program) plant(slot uint32, a *abi.Aconn) {
	h := arenaLayout(p.arena)
	s := (*abi.Stash)(unsafe.Pointer(&p.arena[h.StashOffset+uint64(p.octet())*uint64(unsafe.Sizeof(abi.Stash{}))]))
	*s = abi.Stash{Addr: uint64(p.word(2048)), Length: p.word(60), Slot: uint16(slot), State: 1, Generation: a.Generation,
		Order: uint32(p.octet())}
}

// giveUp frees every slot, and looks for what the daemon has kept.
func (p *program) giveUp() {
	p.tape = nil
	for i := range uint32(slots) {
		slot := abi.FirstSlot + i
		for _, t := range []abi.MsgType{abi.MsgTypeDemote, abi.MsgTypeReinject, abi.MsgTypeCancel} {
			p.ask(t, slot, -1)
		}
		if p.sock[i] >= 0 {
			unix.Close(p.sock[i])
		}
	}
	p.sync(p.T)
	open := 0
	for range 500 { // the server is patient
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			p.Fatal(err)
		}
		if open = len(list); p.fds == 0 || open <= p.fds+slots {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if p.fds == 0 {
		p.fds = open + 16 // rings and taps come with the first connection
	}
	if open > p.fds+slots {
		p.Errorf("%d open descriptors, %d at first", open, p.fds)
	}
}
