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

// HasFlow says whether the flow is directed to this record.
func (d *DataPath) HasFlow(key abi.FlowKey, index uint32) (bool, error) {
	var found uint32
	err := d.Flows.Lookup(key, &found)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up flow of connection %d: %w", index, err)
	}
	return found == index, nil
}

// Hop reads a next hop.
func (d *DataPath) Hop(index uint16) (hop abi.Hop, err error) {
	if err := d.Hops.Lookup(uint32(index), &hop); err != nil {
		return hop, fmt.Errorf("read next hop %d: %w", index, err)
	}
	return hop, nil
}

// AppPubs opens an application's published map. The error wraps
// ebpf.ErrKeyNotExist if it has none.
func (d *DataPath) AppPubs(app uint32) (*ebpf.Map, error) {
	var id ebpf.MapID
	if err := d.Pubs.Lookup(app, &id); err != nil {
		return nil, fmt.Errorf("look up the published map of application %d: %w", app, err)
	}
	m, err := ebpf.NewMapFromID(id)
	if err != nil {
		return nil, fmt.Errorf("open the published map of application %d: %w", app, err)
	}
	return m, nil
}

// Sweep removes flows whose record is not among those given, and stops other
// records.
func (d *DataPath) Sweep(records map[uint32]bool) error {
	var key abi.FlowKey
	var index uint32
	var stale []abi.FlowKey
	flows := d.Flows.Iterate()
	for flows.Next(&key, &index) {
		if !records[index] {
			stale = append(stale, key)
		}
	}
	errs := []error{flows.Err()}
	for _, key := range stale {
		errs = append(errs, d.DeleteFlow(key))
	}
	return errors.Join(append(errs, d.stopConns(records))...)
}

// stopConns stops all records but those given.
func (d *DataPath) stopConns(except map[uint32]bool) error {
	const batch = 2048
	var cursor ebpf.MapBatchCursor
	indexes, conns := make([]uint32, batch), make([]abi.Conn, batch)
	for {
		n, err := d.Conns.BatchLookup(&cursor, indexes, conns, nil)
		for i, index := range indexes[:n] {
			if conns[i].State == uint32(abi.FlowStateNone) || except[index] {
				continue
			}
			conns[i].State = uint32(abi.FlowStateNone)
			// Not by the control program: the application, which it
			// publishes to, is gone.
			if err := d.Conns.Put(index, &conns[i]); err != nil {
				return fmt.Errorf("stop connection %d: %w", index, err)
			}
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil // that was all
		}
		if err != nil {
			return fmt.Errorf("read connections: %w", err)
		}
	}
}

// Inject gives a frame to the kernel.
func (d *DataPath) Inject(ifindex int, frame []byte) error { return d.InjectToKernel(ifindex, frame) }
