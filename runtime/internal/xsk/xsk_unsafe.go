// SPDX-License-Identifier: Apache-2.0

package xsk

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
)

const metaSize = uint64(unsafe.Sizeof(abi.RxMeta{}))

func registerUmem(fd int, mem []byte, frameSize uint32) error {
	reg := unix.XDPUmemReg{
		Addr: uint64(uintptr(unsafe.Pointer(&mem[0]))),
		Len:  uint64(len(mem)),
		Size: frameSize,
	}
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_XDP, unix.XDP_UMEM_REG,
		uintptr(unsafe.Pointer(&reg)), unsafe.Sizeof(reg), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// mapRing maps a socket's receive ring for reading.
func mapRing(fd int, entries uint32) (ring, error) {
	var offs unix.XDPMmapOffsets
	size := uint32(unsafe.Sizeof(offs))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_XDP, unix.XDP_MMAP_OFFSETS,
		uintptr(unsafe.Pointer(&offs)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return ring{}, errno
	}
	mem, err := unix.Mmap(fd, unix.XDP_PGOFF_RX_RING, int(offs.Rx.Desc)+int(entries)*descSize,
		unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	return ring{mem: mem, offs: offs.Rx, size: entries}, err
}

func (r *ring) word(at uint64) uint32 {
	return atomic.LoadUint32((*uint32)(unsafe.Pointer(&r.mem[at])))
}
func (r *ring) producer() uint32 { return r.word(r.offs.Producer) }
func (r *ring) consumer() uint32 { return r.word(r.offs.Consumer) }

func (r *ring) desc(index uint32) (addr uint64, length uint32) {
	d := r.mem[r.offs.Desc+uint64(index&(r.size-1))*descSize:]
	return binary.NativeEndian.Uint64(d), binary.NativeEndian.Uint32(d[8:])
}

// metaAt copies the metadata in front of a frame.
func (s *Set) metaAt(addr uint64) abi.RxMeta {
	return *(*abi.RxMeta)(unsafe.Pointer(&s.mem[addr-metaSize]))
}
