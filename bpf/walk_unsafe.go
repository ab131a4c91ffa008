// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)

package bpf

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// walk is an attached program of type iter/task_file that sees only this
// process's descriptors. (link.AttachIter of cilium/ebpf cannot say so and
// would walk over those of all processes.)
type walk struct{ link int }

// attachWalk attaches a program.
func attachWalk(program int) (walk, error) {
	// union bpf_iter_link_info, its member task.
	info := struct{ tid, pid, pidfd uint32 }{tid: uint32(unix.Getpid())}
	// union bpf_attr, its member link_create.
	attr := struct {
		program, target, attachType, flags uint32
		info                               unsafe.Pointer
		infoLen                            uint32
		_                                  [36]byte
	}{
		program: uint32(program), attachType: unix.BPF_TRACE_ITER,
		info: unsafe.Pointer(&info), infoLen: uint32(unsafe.Sizeof(info)),
	}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_LINK_CREATE, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return walk{}, fmt.Errorf("attach to the walk over descriptors: %w", errno)
	}
	return walk{int(fd)}, nil
}

// read walks once and reads what the program writes.
func (w walk) read(buf []byte) (int, error) {
	attr := struct{ link, flags uint32 }{link: uint32(w.link)}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_ITER_CREATE, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return 0, fmt.Errorf("walk over descriptors: %w", errno)
	}
	defer unix.Close(int(fd))
	n, err := unix.Read(int(fd), buf)
	if err != nil {
		return 0, fmt.Errorf("walk over descriptors: %w", err)
	}
	return n, nil
}

func (w walk) close() error { return unix.Close(w.link) }
