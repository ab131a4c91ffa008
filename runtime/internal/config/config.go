// SPDX-License-Identifier: Apache-2.0

// Package config is the daemon's configuration: a TOML file, and flags that
// win over it.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/spf13/pflag"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/adminapi"
)

// Config is everything that an operator can set.
type Config struct {
	Interfaces []Interface `toml:"interface"`
	RunDir     string      `toml:"run_dir"`
	PinDir     string      `toml:"pin_dir"`
	LogFile    string      `toml:"log_file"`

	// A connection is promoted after so many exchanges or octets.
	PromoteAfter uint32 `toml:"promote_after"`
	PromoteBytes uint32 `toml:"promote_bytes"`
	// SpinUs bounds how long a program's calls spin, in microseconds.
	SpinUs uint32 `toml:"spin_us"`

	Policy Policy `toml:"policy"`
}

// Interface is a device to serve.
type Interface struct {
	Name string `toml:"name"`
	// VerifyChecksum: the device does not vouch for TCP checksums, so the
	// ingress program must. Never on veth: its frames carry no sums.
	VerifyChecksum bool `toml:"verify_checksum"`
	// Sharing is SharingAuto if empty.
	Sharing Sharing `toml:"sharing"`
}

// Sharing says how applications share an interface.
type Sharing string

const (
	// SharingAuto: one application has the interface's queues (direct), all
	// others receive by a veth pair each (shared).
	SharingAuto Sharing = "auto"
	// SharingAlways: all applications receive by veth pairs.
	SharingAlways Sharing = "always"
	// SharingNever: one has the queues, all others stay on the kernel.
	SharingNever Sharing = "never"
)

// valid says whether s is one of the three.
func (s Sharing) valid() bool {
	return s == SharingAuto || s == SharingAlways || s == SharingNever
}

// Policy says who may use the fast path, and for what.
type Policy struct {
	// Uids may register; empty: everybody.
	Uids []uint32 `toml:"uids"`
	// ExcludePorts and ExcludeNetworks stay on the kernel, at either end.
	ExcludePorts    []uint16       `toml:"exclude_ports"`
	ExcludeNetworks []netip.Prefix `toml:"exclude_networks"`
	MaxApps         int            `toml:"max_apps"`
	// MaxUserApps bounds the applications of one user other than root.
	MaxUserApps int `toml:"max_user_apps"`
	// MaxConns bounds the connections of one application.
	MaxConns int `toml:"max_conns"`
	// MessageRate bounds the control messages of one application, per
	// second; it waits when it sends more.
	MessageRate int `toml:"message_rate"`
}

const (
	// Slots below abi.FirstSlot carry no connection.
	maxConns = abi.AppSlots - abi.FirstSlot

	defaultSpin = 50 * time.Microsecond
)

// Default returns the configuration of a daemon that was told nothing.
func Default() Config {
	return Config{
		RunDir:       adminapi.DefaultRunDir,
		PinDir:       "/sys/fs/bpf/etran",
		PromoteAfter: 8,
		PromoteBytes: 64 << 10,
		SpinUs:       uint32(defaultSpin.Microseconds()),
		Policy: Policy{
			MaxApps:     abi.MaxApps,
			MaxUserApps: abi.MaxApps * 3 / 4,
			MaxConns:    maxConns,
			MessageRate: 20000,
		},
	}
}

// Parse reads the command line and the file that it names.
func Parse(args []string, usage io.Writer) (Config, error) {
	c := Default()
	flags := pflag.NewFlagSet("etrand", pflag.ContinueOnError)
	flags.SetOutput(usage)
	file := flags.String("config", "", "configuration file (TOML)")
	sharing := flags.String("sharing", "", "how applications share the interfaces: auto, always or never")
	names := flags.StringArray("interface", nil, "network interface to serve (repeatable)")
	flags.StringVar(&c.RunDir, "run-dir", c.RunDir, "directory of the control sockets")
	flags.StringVar(&c.PinDir, "pin-dir", c.PinDir, "directory on bpffs for what outlives the daemon")
	flags.StringVar(&c.LogFile, "log-file", c.LogFile, "log here instead of standard error")
	flags.Uint32Var(&c.PromoteAfter, "promote-after", c.PromoteAfter, "exchanges before a connection is promoted")
	flags.Uint32Var(&c.PromoteBytes, "promote-bytes", c.PromoteBytes, "or octets, whichever is first")
	flags.Uint32Var(&c.SpinUs, "spin-us", c.SpinUs, "longest spinning of a call, in microseconds")
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	if flags.NArg() > 0 {
		return c, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if *file != "" {
		if err := c.load(*file); err != nil {
			return c, err
		}
		// Once more, so that flags win over the file.
		if err := flags.Parse(args); err != nil {
			return c, err
		}
	}
	for _, name := range *names {
		if !slices.ContainsFunc(c.Interfaces, func(i Interface) bool { return i.Name == name }) {
			c.Interfaces = append(c.Interfaces, Interface{Name: name})
		}
	}
	for i := range c.Interfaces {
		own := &c.Interfaces[i].Sharing
		*own = cmp.Or(Sharing(*sharing), *own, SharingAuto)
	}
	return c, c.validate()
}

func (c *Config) load(file string) error {
	meta, err := toml.DecodeFile(file, c)
	if err != nil {
		return fmt.Errorf("read configuration %s: %w", file, err)
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return fmt.Errorf("configuration %s: unknown setting %q", file, unknown[0].String())
	}
	return nil
}

func (c *Config) validate() error {
	if len(c.Interfaces) == 0 {
		return errors.New("no interface to serve: give --interface or an [[interface]] in the configuration")
	}
	if len(c.Interfaces) > abi.MaxDevices {
		return fmt.Errorf("%d interfaces, at most %d can be served", len(c.Interfaces), abi.MaxDevices)
	}
	seen := map[string]bool{}
	for _, i := range c.Interfaces {
		if i.Name == "" || seen[i.Name] {
			return fmt.Errorf("interface %q is empty or named twice", i.Name)
		}
		seen[i.Name] = true
		if !i.Sharing.valid() {
			return fmt.Errorf("interface %s: sharing is %q, must be auto, always or never", i.Name, i.Sharing)
		}
	}
	for _, limit := range []struct {
		name       string
		value, max int
	}{
		{"max_apps", c.Policy.MaxApps, abi.MaxApps},
		{"max_user_apps", c.Policy.MaxUserApps, abi.MaxApps},
		{"max_conns", c.Policy.MaxConns, maxConns},
		{"message_rate", c.Policy.MessageRate, 1 << 20},
	} {
		if limit.value < 1 || limit.value > limit.max {
			return fmt.Errorf("policy.%s is %d, must be between 1 and %d", limit.name, limit.value, limit.max)
		}
	}
	return nil
}

// AllowsUid says whether a user may register applications.
func (p *Policy) AllowsUid(uid uint32) bool {
	return len(p.Uids) == 0 || slices.Contains(p.Uids, uid)
}

// AllowsConn says whether a connection may leave the kernel.
func (p *Policy) AllowsConn(local, remote netip.AddrPort) bool {
	for _, end := range []netip.AddrPort{local, remote} {
		if slices.Contains(p.ExcludePorts, end.Port()) {
			return false
		}
		for _, network := range p.ExcludeNetworks {
			if network.Contains(end.Addr()) {
				return false
			}
		}
	}
	return true
}
