// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethtool runs one ethtool command on a device.
func ethtool(fd int, name string, channels *ethtoolChannels) error {
	// struct ifreq with ifr_data.
	var req struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	if len(name) >= len(req.name) {
		return unix.EINVAL
	}
	copy(req.name[:], name)
	req.data = unsafe.Pointer(channels)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	if errno != 0 {
		return errno
	}
	return nil
}
