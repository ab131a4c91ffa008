// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const example = `
profile = "safe"
networks = ["10.0.0.0/8"]

[[rule]]
programs = ["redis-server", "/opt/*/bin/cache"]
profile = "latency"
ports = ["6379", "7000-7010"]

[[rule]]
programs = ["*-bench"]
spin_us = 7
after_exchanges = 3
strict = true

[[rule]]
programs = ["curl"]
promote = "off"

[[rule]]
programs = ["plain"]
profile = "balanced"
`

func load(t *testing.T, text string) (Rules, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "rules.toml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return Load(file)
}

func TestRules(t *testing.T) {
	r, err := load(t, example)
	if err != nil {
		t.Fatal(err)
	}
	seven, off := uint32(7), false
	for _, tc := range []struct {
		program string
		flags   Settings
		want    string
	}{
		{"/usr/bin/other", Settings{}, "PROMOTE_AFTER=1000 PROMOTE_BYTES=16777216 SPIN_US=0 NETWORKS=10.0.0.0/8"},
		{"/usr/bin/redis-server", Settings{}, "PROMOTE_AFTER=1 PROMOTE_BYTES=1 SPIN_US=500 PORTS=6379,7000-7010 NETWORKS=10.0.0.0/8"},
		{"/opt/x/bin/cache", Settings{SpinUs: &seven}, "PROMOTE_AFTER=1 PROMOTE_BYTES=1 SPIN_US=7 PORTS=6379,7000-7010 NETWORKS=10.0.0.0/8"},
		{"/opt/x/y/bin/cache", Settings{Profile: ProfileBalanced}, "NETWORKS=10.0.0.0/8"},
		{"/b/my-bench", Settings{}, "PROMOTE_AFTER=3 SPIN_US=7 NETWORKS=10.0.0.0/8 STRICT=1"},
		{"/b/my-bench", Settings{Promote: PromoteEager, Strict: &off}, "PROMOTE_AFTER=1 PROMOTE_BYTES=1 SPIN_US=7 NETWORKS=10.0.0.0/8"},
		{"curl", Settings{}, "PROMOTE=off SPIN_US=0 NETWORKS=10.0.0.0/8"},
		{"plain", Settings{}, "NETWORKS=10.0.0.0/8"},
	} {
		env, err := tc.flags.Over(r.For(tc.program)).Environment()
		got := strings.ReplaceAll(strings.Join(env, " "), "ETRAN_", "")
		if err != nil || got != tc.want {
			t.Errorf("%s: got %q, %v, want %q", tc.program, got, err, tc.want)
		}
	}
}

func TestRulesErrors(t *testing.T) {
	for text, want := range map[string]string{
		`profile = "fast"`:                            "must be safe",
		`promote = "maybe"`:                           "must be on",
		`ports = ["1-2-3"]`:                           "ports are",
		`ports = ["9-1"]`:                             "ports are",
		`ports = ["70000"]`:                           "ports are",
		`networks = ["10.0.0.1"]`:                     "10.0.0.1",
		`spin = 3`:                                    `unknown setting "spin"`,
		"[[rule]]\nspin_us = 3":                       "a rule for no programs",
		"[[rule]]\nprograms = [\"[\"]":                "syntax error in pattern",
		"[[rule]]\nprograms = [\"a\"]\nprofil = \"\"": "unknown setting",
	} {
		if _, err := load(t, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q in it", text, err, want)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that is named must exist")
	}
	if _, err := (Settings{Ports: make([]Ports, maxRanges+1)}).Environment(); err == nil {
		t.Error("too many ports")
	}
	r, err := load(t, `networks = ["fd00::/8"]`)
	if _, envErr := r.For("x").Environment(); err != nil || envErr == nil {
		t.Errorf("IPv6: %v, %v", err, envErr)
	}
}

// TestProfiles: each is one that a file may name.
func TestProfiles(t *testing.T) {
	for _, p := range []Profile{ProfileSafe, ProfileBalanced, ProfileLatency} {
		r, err := load(t, "profile = \""+string(p)+"\"")
		if err != nil || r.Profile != p {
			t.Errorf("%s: %+v, %v", p, r, err)
		}
	}
	if env, err := (Settings{Profile: ProfileBalanced}).Environment(); err != nil || !slices.Equal(env, nil) {
		t.Errorf("balanced is the daemon's, not %q, %v", env, err)
	}
}
