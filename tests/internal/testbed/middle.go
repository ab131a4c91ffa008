// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"

	"github.com/etran-go/etran/tests/middlebox"
)

// The middlebox' namespace and its two interfaces.
const (
	middleName = "M"
	middleToA  = "to-a"
	middleToB  = "to-b"
)

var errNoMiddlebox = errors.New("the testbed has no middlebox")

// SetFaults changes what the middlebox does to the segments of both
// directions. B to A has another seed, so that the same does not happen to both.
func (tb *Testbed) SetFaults(f middlebox.Faults) error {
	if tb.middle == nil {
		return errNoMiddlebox
	}
	other := f
	other.Seed = ^f.Seed
	return errors.Join(tb.middle.Set(middlebox.AToB, f), tb.middle.Set(middlebox.BToA, other))
}

// Middlebox is what the wire leads through; nil if it does not.
func (tb *Testbed) Middlebox() *middlebox.Middlebox { return tb.middle }

// makeMiddlebox joins the two halves of the wire.
func (tb *Testbed) makeMiddlebox() error {
	var err error
	if tb.middleWorker, err = enterNamespace(tb.paths.netns(middleName)); err != nil {
		return fmt.Errorf("opening the middlebox' namespace: %w", err)
	}
	return tb.middleWorker.do(func() error {
		if err := prepareStack(); err != nil {
			return err
		}
		for _, name := range []string{middleToA, middleToB} {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return fmt.Errorf("finding interface %s: %w", name, err)
			}
			if err := netlink.LinkSetUp(link); err != nil {
				return fmt.Errorf("bringing up %s: %w", name, err)
			}
		}
		if tb.middle, err = middlebox.New(middleToA, middleToB); err != nil {
			return err
		}
		// Programs bring GRO along, which would merge segments.
		return errors.Join(setOffload(middleToA, ethtoolSetGRO, 0), setOffload(middleToB, ethtoolSetGRO, 0))
	})
}

func (tb *Testbed) closeMiddlebox() error {
	var errs []error
	if tb.middle != nil {
		errs = append(errs, tb.middle.Close())
	}
	if tb.middleWorker != nil {
		errs = append(errs, tb.middleWorker.leave())
	}
	return errors.Join(errs...)
}

// verifyConfig is the file that makes a daemon verify checksums.
func (p paths) verifyConfig() string { return filepath.Join(p.state, "verify.toml") }

func (tb *Testbed) writeVerifyConfig() error {
	text := fmt.Sprintf("[[interface]]\nname = %q\nverify_checksum = true\n", WireInterface)
	if err := os.WriteFile(tb.paths.verifyConfig(), []byte(text), 0o644); err != nil {
		return fmt.Errorf("writing the daemons' configuration: %w", err)
	}
	return nil
}
