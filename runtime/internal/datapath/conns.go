// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/internal/handover"
)

// What follows makes *DataPath a handover.DataPath.
var _ handover.DataPath = (*DataPath)(nil)

// Install writes a record.
func (d *DataPath) Install(index uint32, conn *abi.Conn) error { return d.InstallConn(index, conn) }

// Read reads a record without its lock, for statistics.
func (d *DataPath) Read(index uint32) (abi.Conn, error) {
	var conn abi.Conn
	if err := d.Conns.Lookup(index, &conn); err != nil {
		return conn, fmt.Errorf("read connection %d: %w", index, err)
	}
	return conn, nil
}

// AddFlow directs a flow to a record.
func (d *DataPath) AddFlow(key abi.FlowKey, index uint32) error {
	err := d.SetFlow(key, index)
	if errors.Is(err, ebpf.ErrKeyExist) {
		return handover.ErrFlowExists
	}
	return err
}

// Inject gives a frame to the kernel.
func (d *DataPath) Inject(ifindex int, frame []byte) error { return d.InjectToKernel(ifindex, frame) }
