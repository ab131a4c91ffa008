// SPDX-License-Identifier: Apache-2.0

// Package rules says how programs use the fast path: which of them, for which
// connections, and when a connection is promoted. The rules are a TOML file that
// `etran run` reads; to the library they are environment variables.
package rules

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// DefaultFile is read if nobody names another and it exists.
const DefaultFile = "/etc/etran/rules.toml"

// The environment variables that libetran.so reads; shim/config.h says what
// they mean.
const (
	envPromote  = "ETRAN_PROMOTE"
	envSpin     = "ETRAN_SPIN_US"
	envAfter    = "ETRAN_PROMOTE_AFTER"
	envBytes    = "ETRAN_PROMOTE_BYTES"
	envPorts    = "ETRAN_PORTS"
	envNetworks = "ETRAN_NETWORKS"
	envStrict   = "ETRAN_STRICT"
	envLog      = "ETRAN_LOG"
)

// maxRanges is how many ports, and networks, the library takes:
// ET_CONFIG_RANGES.
const maxRanges = 16

// Settings are what can be said of a program; nil or empty: nothing. They are
// the same in the file, where a rule has them, and as flags of `etran run`.
type Settings struct {
	// Profile gives those that are not set themselves.
	Profile Profile `toml:"profile"`
	// Promote: on, off, or eager, which is after the first exchange.
	Promote Promote `toml:"promote"`
	// AfterExchanges and AfterBytes, whichever is first, show that a
	// connection is worth it.
	AfterExchanges *uint32 `toml:"after_exchanges"`
	AfterBytes     *uint32 `toml:"after_bytes"`
	// SpinUs bounds how long a call spins before it sleeps, in microseconds.
	SpinUs *uint32 `toml:"spin_us"`
	// Ports: only connections with one of these at either end are promoted.
	Ports []Ports `toml:"ports"`
	// Networks: only connections with a peer in one of these are promoted.
	Networks []netip.Prefix `toml:"networks"`
	// Strict: what can't be fast fails, in place of running on the kernel.
	Strict *bool `toml:"strict"`
	// Log is a file for the library's log.
	Log string `toml:"log"`
}

// Promote says when connections are promoted.
type Promote string

// The values of Promote.
const (
	PromoteOn    Promote = "on"
	PromoteOff   Promote = "off"
	PromoteEager Promote = "eager"
)

// UnmarshalText makes sure that a value is one of those above.
func (p *Promote) UnmarshalText(text []byte) error {
	switch v := Promote(text); v {
	case PromoteOn, PromoteOff, PromoteEager:
		*p = v
		return nil
	default:
		return fmt.Errorf("promote is %q, must be on, off or eager", text)
	}
}

// Profile is a set of settings with a name.
type Profile string

// The profiles.
const (
	// ProfileSafe promotes only what has lived for long, and never spins.
	ProfileSafe Profile = "safe"
	// ProfileBalanced is what the daemon's configuration says.
	ProfileBalanced Profile = "balanced"
	// ProfileLatency promotes at once, and spins for long.
	ProfileLatency Profile = "latency"
)

// profiles are their settings.
var profiles = map[Profile]Settings{
	ProfileSafe:     {AfterExchanges: number(1000), AfterBytes: number(16 << 20), SpinUs: number(0)},
	ProfileBalanced: {},
	ProfileLatency:  {Promote: PromoteEager, SpinUs: number(500)},
}

func number(n uint32) *uint32 { return &n }

// UnmarshalText makes sure that there is such a profile.
func (p *Profile) UnmarshalText(text []byte) error {
	if _, ok := profiles[Profile(text)]; !ok {
		return fmt.Errorf("profile is %q, must be safe, balanced or latency", text)
	}
	*p = Profile(text)
	return nil
}

// Ports is a range of ports, "6379" or "7000-7010".
type Ports struct{ First, Last uint16 }

// UnmarshalText reads a range.
func (p *Ports) UnmarshalText(text []byte) error {
	first, last, isRange := strings.Cut(string(text), "-")
	if !isRange {
		last = first
	}
	a, err := strconv.ParseUint(first, 10, 16)
	b, err2 := strconv.ParseUint(last, 10, 16)
	if err := errors.Join(err, err2); err != nil || a > b {
		return fmt.Errorf("ports are %q, must be a number or a range of two", text)
	}
	*p = Ports{uint16(a), uint16(b)}
	return nil
}

func (p Ports) String() string {
	if p.First == p.Last {
		return strconv.Itoa(int(p.First))
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}

// A Rule is for some programs.
type Rule struct {
	// Programs are names, or paths if they have a slash, with the patterns of
	// filepath.Match.
	Programs []string `toml:"programs"`
	Settings
}

// Rules are a file: settings for all programs, and rules, of which the first
// that is for a program counts, setting by setting.
type Rules struct {
	Settings
	Rules []Rule `toml:"rule"`
}

// Load reads a file; "" means DefaultFile, which need not exist.
func Load(file string) (Rules, error) {
	var r Rules
	path := file
	if path == "" {
		path = DefaultFile
	}
	meta, err := toml.DecodeFile(path, &r)
	if file == "" && errors.Is(err, fs.ErrNotExist) {
		return Rules{}, nil
	}
	if err != nil {
		return r, fmt.Errorf("reading the rules %s: %w", path, err)
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return r, fmt.Errorf("rules %s: unknown setting %q", path, unknown[0].String())
	}
	for _, rule := range r.Rules {
		if len(rule.Programs) == 0 {
			return r, fmt.Errorf("rules %s: a rule for no programs", path)
		}
		for _, pattern := range rule.Programs {
			if _, err := filepath.Match(pattern, ""); err != nil {
				return r, fmt.Errorf("rules %s: %q: %w", path, pattern, err)
			}
		}
	}
	return r, nil
}

// For returns the settings of the program at a path.
func (r *Rules) For(path string) Settings {
	for _, rule := range r.Rules {
		if rule.covers(path) {
			return rule.Over(r.Settings)
		}
	}
	return r.Settings
}

func (r *Rule) covers(path string) bool {
	for _, pattern := range r.Programs {
		of := path
		if !strings.Contains(pattern, "/") {
			of = filepath.Base(path)
		}
		if ok, err := filepath.Match(pattern, of); ok && err == nil {
			return true
		}
	}
	return false
}

// Over returns s, with what it does not say as `below` has it. A profile says
// all that profiles are about.
func (s Settings) Over(below Settings) Settings {
	if s.Profile == "" {
		s.Profile = below.Profile
		s.fill(&below)
	}
	if s.Ports == nil {
		s.Ports = below.Ports
	}
	if s.Networks == nil {
		s.Networks = below.Networks
	}
	if s.Strict == nil {
		s.Strict = below.Strict
	}
	if s.Log == "" {
		s.Log = below.Log
	}
	return s
}

// fill takes over what profiles are about, if s does not say it.
func (s *Settings) fill(from *Settings) {
	if s.Promote == "" && s.AfterExchanges == nil && s.AfterBytes == nil {
		s.Promote, s.AfterExchanges, s.AfterBytes = from.Promote, from.AfterExchanges, from.AfterBytes
	}
	if s.SpinUs == nil {
		s.SpinUs = from.SpinUs
	}
}

// Environment is what the settings are to the library. An eager connection is
// promoted after the first exchange.
func (s Settings) Environment() ([]string, error) {
	if len(s.Ports) > maxRanges || len(s.Networks) > maxRanges {
		return nil, fmt.Errorf("at most %d ranges of ports and as many networks", maxRanges)
	}
	for _, network := range s.Networks {
		if !network.Addr().Is4() {
			return nil, fmt.Errorf("network %v: only IPv4 connections are promoted", network)
		}
	}
	profile := profiles[s.Profile]
	s.fill(&profile)
	var env []string
	set := func(name, value string) { env = append(env, name+"="+value) }
	setNumber := func(name string, value *uint32) {
		if value != nil {
			set(name, strconv.FormatUint(uint64(*value), 10))
		}
	}
	switch s.Promote {
	case PromoteOff:
		set(envPromote, "off")
	case PromoteEager:
		s.AfterExchanges, s.AfterBytes = number(1), number(1)
	}
	setNumber(envAfter, s.AfterExchanges)
	setNumber(envBytes, s.AfterBytes)
	setNumber(envSpin, s.SpinUs)
	if len(s.Ports) > 0 {
		set(envPorts, list(s.Ports))
	}
	if len(s.Networks) > 0 {
		set(envNetworks, list(s.Networks))
	}
	if s.Strict != nil && *s.Strict {
		set(envStrict, "1")
	}
	if s.Log != "" {
		// The program may change its working directory.
		path, err := filepath.Abs(s.Log)
		if err != nil {
			return nil, fmt.Errorf("finding the log file %s: %w", s.Log, err)
		}
		set(envLog, path)
	}
	return env, nil
}

func list[T fmt.Stringer](items []T) string {
	words := make([]string, len(items))
	for i, item := range items {
		words[i] = item.String()
	}
	return strings.Join(words, ",")
}
