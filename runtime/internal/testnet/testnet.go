// SPDX-License-Identifier: Apache-2.0

// Package testnet runs tests in a network of their own.
package testnet

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const insideEnv = "ETRAN_TEST_INSIDE"

// Main is for TestMain: the test binary runs itself again in fresh network and
// mount namespaces, in which every thread lives as the daemon's do. Without
// root the tests run where they are, and Require skips.
func Main(m *testing.M) {
	if os.Geteuid() != 0 || Inside() {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "tests in their own namespaces:", err)
		os.Exit(1)
	}
}

// Inside says whether this process is the one in the fresh namespaces.
func Inside() bool { return os.Getenv(insideEnv) != "" }

// Require skips a test that needs the namespaces, and keeps its mounts there.
func Require(t *testing.T) {
	t.Helper()
	if !Inside() {
		t.Skip("network namespaces need root")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
}

// Track makes a connection tracking entry by hand, that of a connection for a
// minute; it stands for one that a firewall rule made.
func Track(t *testing.T, from, to, replyFrom, replyTo netip.AddrPort) {
	t.Helper()
	Require(t)
	const established, short = 3, 60
	tuple := func(from, to netip.AddrPort) netlink.IPTuple {
		return netlink.IPTuple{SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice(),
			SrcPort: from.Port(), DstPort: to.Port(), Protocol: unix.IPPROTO_TCP}
	}
	err := netlink.ConntrackCreate(netlink.ConntrackTable, unix.AF_INET, &netlink.ConntrackFlow{
		FamilyType: unix.AF_INET, Forward: tuple(from, to), Reverse: tuple(replyFrom, replyTo),
		ProtoInfo: &netlink.ProtoInfoTCP{State: established}, TimeOut: short})
	if err != nil {
		t.Skipf("no connection tracking on this kernel: %v", err)
	}
	t.Cleanup(func() {
		if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
			t.Error(err)
		}
	})
}
