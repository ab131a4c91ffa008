// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethtoolSetGRO is ETHTOOL_SGRO of linux/ethtool.h.
const ethtoolSetGRO = 0x2c

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

// enableGRO turns generic receive offload on for an interface of the calling
// thread's network namespace.
func enableGRO(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening a socket for ethtool: %w", err)
	}
	defer unix.Close(fd)
	var req ifreqData
	copy(req.name[:len(req.name)-1], name)
	req.data = &ethtoolValue{cmd: ethtoolSetGRO, data: 1}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	if errno != 0 {
		return fmt.Errorf("turning on GRO on %s: %w", name, errno)
	}
	return nil
}
