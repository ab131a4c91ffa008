// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// optionLength returns the length of a socket option's value, reading at most
// room octets of it.
func optionLength(fd, level, option, room int) (int, error) {
	var value [64]byte
	length := uint32(min(room, len(value)))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&value)), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(length), nil
}
