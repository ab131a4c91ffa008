// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands of linux/ethtool.h that turn an offload on or off.
const (
	ethtoolSetTxChecksum = 0x17 // ETHTOOL_STXCSUM; off, segmentation goes too
	ethtoolSetGRO        = 0x2c // ETHTOOL_SGRO
)

// ethtoolValue is struct ethtool_value of linux/ethtool.h.
type ethtoolValue struct {
	cmd  uint32
	data uint32
}

// ifreqData is struct ifreq of linux/if.h with the member ifr_data.
type ifreqData struct {
	name [unix.IFNAMSIZ]byte
	data *ethtoolValue
	_    [16]byte // the union's largest member, struct ifmap, has 24 bytes
}

// setOffload turns an offload of an interface of the calling thread's network
// namespace on (1) or off (0).
func setOffload(name string, command, value uint32) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening a socket for ethtool: %w", err)
	}
	defer unix.Close(fd)
	var req ifreqData
	copy(req.name[:len(req.name)-1], name)
	req.data = &ethtoolValue{cmd: command, data: value}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	if errno != 0 {
		return fmt.Errorf("setting offload %#x of %s to %d: %w", command, name, value, errno)
	}
	return nil
}
