// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0)

package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
)

// MinimumKernel is the oldest kernel the programs are meant for; the feature
// that needs most is bpf_xdp_load_bytes (5.18), and 6.1 is the oldest tested.
const MinimumKernel = "6.1"

const minimumKernelCode = 6<<16 | 1<<8

// LoadOptions say how to load.
type LoadOptions struct {
	// PinPath is a directory on a BPF file system. Maps that are pinned there
	// are used again, others are pinned: a new daemon adopts the connections
	// of the last one. Empty: nothing is pinned.
	PinPath string
}

// Objects are the loaded programs and maps. The maps' names and contents are
// described in maps.h and package abi.
type Objects struct {
	etranObjects
	pub *ebpf.MapSpec // of an application's published map
}

// kernelFeatures are what the programs use beyond the ordinary.
var kernelFeatures = []struct {
	need  string
	since string
	have  func() error
}{
	{"AF_XDP redirection", "4.18", func() error { return features.HaveMapType(ebpf.XSKMap) }},
	{"device redirection", "4.14", func() error { return features.HaveMapType(ebpf.DevMap) }},
	{"published maps", "5.5", func() error { return features.HaveMapFlag(features.BPF_F_MMAPABLE) }},
	{"option parsing", "5.17", xdpHelper(asm.FnLoop)},
	{"checksum verification", "5.18", xdpHelper(asm.FnXdpLoadBytes)},
	{"frame length", "5.18", xdpHelper(asm.FnXdpGetBuffLen)},
}

func xdpHelper(fn asm.BuiltinFunc) func() error {
	return func() error { return features.HaveProgramHelper(ebpf.XDP, fn) }
}

// CheckKernel returns why this kernel cannot run the programs: one error for
// each missing feature.
func CheckKernel() error {
	var errs []error
	code, err := features.LinuxVersionCode()
	if err != nil {
		return fmt.Errorf("kernel version: %w", err)
	}
	if code < minimumKernelCode {
		errs = append(errs, fmt.Errorf("kernel is older than %s: %w", MinimumKernel, ebpf.ErrNotSupported))
	}
	for _, f := range kernelFeatures {
		if err := f.have(); err != nil {
			errs = append(errs, fmt.Errorf("%s (kernel %s): %w", f.need, f.since, err))
		}
	}
	return errors.Join(errs...)
}

// Load loads all programs. If the verifier refuses one, the error is or wraps
// an *ebpf.VerifierError, which prints its whole log with %+v.
func Load(opts LoadOptions) (*Objects, error) {
	spec, err := loadEtran()
	if err != nil {
		return nil, fmt.Errorf("read embedded programs: %w", err)
	}
	if opts.PinPath != "" {
		for _, m := range spec.Maps {
			m.Pinning = ebpf.PinByName
		}
	}
	o := &Objects{pub: spec.Maps["pubs"].InnerMap}
	err = spec.LoadAndAssign(&o.etranObjects, &ebpf.CollectionOptions{
		Maps: ebpf.MapOptions{PinPath: opts.PinPath},
	})
	if err != nil {
		// Say which feature is missing rather than what the verifier thinks.
		if missing := CheckKernel(); missing != nil {
			return nil, fmt.Errorf("load programs: %w", missing)
		}
		return nil, fmt.Errorf("load programs: %w", err)
	}
	if err := o.setIDs(); err != nil {
		return nil, errors.Join(err, o.Close())
	}
	return o, nil
}

// setIDs tells the tracepoint which maps are ours.
func (o *Objects) setIDs() error {
	xsks, err := mapID(o.Xsks)
	if err != nil {
		return err
	}
	ports, err := mapID(o.Ports)
	if err != nil {
		return err
	}
	pairs, err := mapID(o.Pairs)
	if err != nil {
		return err
	}
	if err := o.Ids.Put(uint32(0), []uint32{xsks, ports, pairs}); err != nil {
		return fmt.Errorf("store map ids: %w", err)
	}
	return nil
}

func mapID(m *ebpf.Map) (uint32, error) {
	info, err := m.Info()
	if err != nil {
		return 0, fmt.Errorf("info of %v: %w", m, err)
	}
	id, ok := info.ID()
	if !ok {
		return 0, fmt.Errorf("id of %v: %w", m, ebpf.ErrNotSupported)
	}
	return uint32(id), nil
}

// AttachTrace attaches the tracepoint that reports failed redirects. Without it
// a frame refused by a device or an AF_XDP socket is lost silently.
func (o *Objects) AttachTrace() (link.Link, error) {
	l, err := link.AttachRawTracepoint(link.RawTracepointOptions{
		Name:    "xdp_redirect_err",
		Program: o.RedirectErr,
	})
	if err != nil {
		return nil, fmt.Errorf("attach to xdp_redirect_err: %w", err)
	}
	return l, nil
}
