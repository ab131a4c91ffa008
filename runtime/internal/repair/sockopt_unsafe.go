// SPDX-License-Identifier: Apache-2.0

package repair

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// repairOpt is struct tcp_repair_opt.
type repairOpt struct{ code, value uint32 }

func setRepairOptions(fd int, opts []repairOpt) error {
	size := uintptr(len(opts)) * unsafe.Sizeof(opts[0])
	if err := setsockopt(fd, unix.TCP_REPAIR_OPTIONS, unsafe.Pointer(&opts[0]), size); err != nil {
		return fmt.Errorf("set TCP_REPAIR_OPTIONS: %w", err)
	}
	return nil
}

func setWindow(fd int, w *Window) error {
	if err := setsockopt(fd, unix.TCP_REPAIR_WINDOW, unsafe.Pointer(w), unsafe.Sizeof(*w)); err != nil {
		return fmt.Errorf("set TCP_REPAIR_WINDOW to %+v: %w", *w, err)
	}
	return nil
}

func getWindow(fd int, w *Window) error {
	if err := getsockopt(fd, unix.TCP_REPAIR_WINDOW, unsafe.Pointer(w), unsafe.Sizeof(*w)); err != nil {
		return fmt.Errorf("read TCP_REPAIR_WINDOW: %w", err)
	}
	return nil
}

// ReadInfo reads TCP_INFO.
func ReadInfo(fd int) (*Info, error) {
	info := new(Info)
	p := unsafe.Pointer(&info.TCPInfo)
	if err := getsockopt(fd, unix.TCP_INFO, p, unsafe.Sizeof(info.TCPInfo)); err != nil {
		return nil, fmt.Errorf("read TCP_INFO: %w", err)
	}
	// tcpi_snd_wscale:4, tcpi_rcv_wscale:4 follow tcpi_options.
	scales := *(*uint8)(unsafe.Add(p, unsafe.Offsetof(info.TCPInfo.Options)+1))
	info.SndWscale, info.RcvWscale = scales&0x0f, scales>>4
	return info, nil
}

// disconnect is connect() to AF_UNSPEC, which in repair mode ends the
// connection without a word to the peer.
func disconnect(fd int) error {
	var unspec unix.RawSockaddr
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd),
		uintptr(unsafe.Pointer(&unspec)), unsafe.Sizeof(unspec))
	if errno != 0 {
		return errno
	}
	return nil
}

func setsockopt(fd, option int, value unsafe.Pointer, size uintptr) error {
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP,
		uintptr(option), uintptr(value), size, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func getsockopt(fd, option int, value unsafe.Pointer, size uintptr) error {
	length := uint32(size)
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP,
		uintptr(option), uintptr(value), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// Peer returns the other end of a TCP over IPv4 socket; the zero value if it is
// not connected. It leaves no garbage, as it is called often.
func Peer(fd int) netip.AddrPort {
	var sa unix.RawSockaddrInet4
	length := uint32(unsafe.Sizeof(sa))
	_, _, errno := unix.Syscall(unix.SYS_GETPEERNAME, uintptr(fd),
		uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&length)))
	if errno != 0 || sa.Family != unix.AF_INET {
		return netip.AddrPort{}
	}
	port := (*[2]byte)(unsafe.Pointer(&sa.Port))
	return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), binary.BigEndian.Uint16(port[:]))
}
