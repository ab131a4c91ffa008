// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ethtoolChannels is struct ethtool_channels.
type ethtoolChannels struct {
	cmd                                         uint32
	maxRx, maxTx, maxOther, maxCombined         uint32
	rxCount, txCount, otherCount, combinedCount uint32
}

// rxQueues is the number of receive queues in use. Netlink only knows how many
// were allocated; a driver that cannot tell uses them all.
func rxQueues(name string, allocated int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket for ethtool: %w", err)
	}
	defer unix.Close(fd)
	channels := ethtoolChannels{cmd: unix.ETHTOOL_GCHANNELS}
	err = ethtool(fd, name, &channels)
	if errors.Is(err, unix.EOPNOTSUPP) || (err == nil && channels.rxCount+channels.combinedCount == 0) {
		return max(allocated, 1), nil
	}
	if err != nil {
		return 0, fmt.Errorf("read number of queues: %w", err)
	}
	return int(channels.rxCount + channels.combinedCount), nil
}
