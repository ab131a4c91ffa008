// SPDX-License-Identifier: Apache-2.0

// Package adversary holds a program that attacks (in C) and the judge of what
// it puts on the wire (in Go).
package adversary

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/perf"
	"golang.org/x/sys/unix"
)

// Room for frames that nobody has looked at yet, per CPU.
const captureBuffer = 64 << 20

// capture sees every frame at a network device: those that come in by an XDP
// program that copies each and passes it, so nothing merges or takes frames
// first; those that go out by a packet socket.
type capture struct {
	events *ebpf.Map
	prog   *ebpf.Program
	link   link.Link
	reader *perf.Reader
	out    int // packet socket
}

// newCapture works in the network namespace of the calling thread.
func newCapture(ifindex int) (c *capture, err error) {
	c = &capture{out: -1}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if c.events, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.PerfEventArray}); err != nil {
		return c, fmt.Errorf("events: %w", err)
	}
	if c.prog, err = copyProgram(c.events); err != nil {
		return c, err
	}
	if c.reader, err = perf.NewReader(c.events, captureBuffer); err != nil {
		return c, fmt.Errorf("event buffers: %w", err)
	}
	c.link, err = link.AttachXDP(link.XDPOptions{Program: c.prog, Interface: ifindex, Flags: link.XDPDriverMode})
	if err != nil {
		return c, fmt.Errorf("attach the capture: %w", err)
	}
	return c, c.openOut(ifindex)
}

// copyProgram sends the whole frame as an event, and passes it.
func copyProgram(events *ebpf.Map) (*ebpf.Program, error) {
	const mdData, mdDataEnd = 0, 4 // struct xdp_md
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R3, asm.R1, mdDataEnd, asm.Word),
			asm.LoadMem(asm.R4, asm.R1, mdData, asm.Word),
			asm.Sub.Reg(asm.R3, asm.R4),
			asm.StoreMem(asm.RFP, -8, asm.R3, asm.DWord), // the true length, in front
			asm.LSh.Imm(asm.R3, 32),
			asm.LoadImm(asm.R2, 0xffffffff, asm.DWord), // BPF_F_CURRENT_CPU
			asm.Or.Reg(asm.R3, asm.R2),
			asm.LoadMapPtr(asm.R2, events.FD()),
			asm.Mov.Reg(asm.R4, asm.RFP),
			asm.Add.Imm(asm.R4, -8),
			asm.Mov.Imm(asm.R5, 8),
			asm.FnPerfEventOutput.Call(),
			asm.Mov.Imm(asm.R0, 2), // XDP_PASS
			asm.Return(),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("capture program: %w", err)
	}
	return p, nil
}

func (c *capture) openOut(ifindex int) error {
	const all = 0x0300 // ETH_P_ALL in network order
	var err error
	if c.out, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	if err := unix.SetsockoptInt(c.out, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer); err != nil {
		return fmt.Errorf("packet socket's buffer: %w", err)
	}
	if err := unix.Bind(c.out, &unix.SockaddrLinklayer{Protocol: all, Ifindex: ifindex}); err != nil {
		return fmt.Errorf("bind packet socket: %w", err)
	}
	return nil
}

func (c *capture) close() {
	if c.link != nil {
		c.link.Close()
	}
	if c.reader != nil {
		c.reader.Close()
	}
	if c.prog != nil {
		c.prog.Close()
	}
	if c.events != nil {
		c.events.Close()
	}
	if c.out >= 0 {
		unix.Close(c.out)
	}
}

// next returns frames that came in, and how many were lost; nothing after a
// time without any.
func (c *capture) next(batch [][]byte) (frames [][]byte, lost uint64, err error) {
	c.reader.SetDeadline(time.Now().Add(20 * time.Millisecond))
	for len(batch) < cap(batch) {
		r, err := c.reader.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			return batch, lost, err
		}
		lost += r.LostSamples
		if n := len(r.RawSample); n >= 8 {
			// The sample is padded; its beginning says how long the frame is.
			length := int(r.RawSample[0]) | int(r.RawSample[1])<<8 | int(r.RawSample[2])<<16
			batch = append(batch, r.RawSample[8:min(8+length, n)])
		}
		c.reader.SetDeadline(time.Now()) // only what is there
	}
	return batch, lost, nil
}

// sent calls f with the beginning of every frame that went out.
func (c *capture) sent(f func(frame []byte)) error {
	buf := make([]byte, 256)
	for {
		n, from, err := unix.Recvfrom(c.out, buf, 0)
		if err == unix.EAGAIN {
			return nil
		}
		if err != nil {
			return fmt.Errorf("packet socket: %w", err)
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			f(buf[:n])
		}
	}
}

// unseen is how many frames the packet socket had no room for.
func (c *capture) unseen() (uint32, error) {
	s, err := unix.GetsockoptTpacketStats(c.out, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0, fmt.Errorf("PACKET_STATISTICS: %w", err)
	}
	return s.Drops, nil
}
