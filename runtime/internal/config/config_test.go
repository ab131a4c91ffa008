// SPDX-License-Identifier: Apache-2.0

package config

import (
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const example = `
run_dir = "/tmp/r"
promote_after = 3
[[interface]]
name = "eth0"
verify_checksum = true
sharing = "never"
[[interface]]
name = "eth1"
[policy]
uids = [0, 65534]
exclude_ports = [22]
exclude_networks = ["10.0.0.0/8"]
max_apps = 4
`

func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "etrand.toml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestFlagsWinOverTheFile(t *testing.T) {
	c, err := Parse([]string{"--config", write(t, example), "--run-dir", "/tmp/x",
		"--interface", "eth1", "--interface", "eth2"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if c.RunDir != "/tmp/x" || c.PromoteAfter != 3 || c.SpinUs != 50 || c.Policy.MaxApps != 4 {
		t.Errorf("configuration %+v", c)
	}
	want := []Interface{{"eth0", true, SharingNever}, {"eth1", false, SharingAuto}, {"eth2", false, SharingAuto}}
	if len(c.Interfaces) != len(want) {
		t.Fatalf("interfaces %v", c.Interfaces)
	}
	for i := range want {
		if c.Interfaces[i] != want[i] {
			t.Errorf("interface %d is %v, want %v", i, c.Interfaces[i], want[i])
		}
	}
}

func TestSharingFlagIsForAllInterfaces(t *testing.T) {
	c, err := Parse([]string{"--config", write(t, example), "--sharing", "always"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range c.Interfaces {
		if i.Sharing != SharingAlways {
			t.Errorf("%+v", i)
		}
	}
}

func TestMistakesAreNamed(t *testing.T) {
	for _, c := range []struct {
		args []string
		file string
		want string
	}{
		{nil, "", "no interface"},
		{[]string{"--interface", "a", "extra"}, "", "unexpected argument"},
		{[]string{"--interface", "a"}, "colour = 1", "unknown setting"},
		{[]string{"--interface", "a"}, "promote_after = \"x\"", "read configuration"},
		{[]string{"--interface", "a"}, "[policy]\nmax_apps = 1000", "policy.max_apps"},
		{[]string{"--interface", "a", "--sharing", "x"}, "", "sharing is \"x\""},
		{nil, "[[interface]]\nname=\"a\"\n[[interface]]\nname=\"a\"", "named twice"},
	} {
		args := c.args
		if c.file != "" {
			args = append(args, "--config", write(t, c.file))
		}
		if _, err := Parse(args, io.Discard); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v %q: error %v, want %q in it", c.args, c.file, err, c.want)
		}
	}
}

func TestPolicy(t *testing.T) {
	c, err := Parse([]string{"--config", write(t, example)}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	p := &c.Policy
	if !p.AllowsUid(65534) || p.AllowsUid(1000) {
		t.Error("uids")
	}
	for _, conn := range []struct {
		local, remote string
		allowed       bool
	}{
		{"192.168.0.1:80", "192.168.0.2:4000", true},
		{"192.168.0.1:22", "192.168.0.2:4000", false},
		{"192.168.0.1:4000", "192.168.0.2:22", false},
		{"192.168.0.1:80", "10.1.2.3:4000", false},
	} {
		got := p.AllowsConn(netip.MustParseAddrPort(conn.local), netip.MustParseAddrPort(conn.remote))
		if got != conn.allowed {
			t.Errorf("%v: allowed %v", conn, got)
		}
	}
}

// The example says what holds without it.
func TestExampleHasTheDefaults(t *testing.T) {
	c, err := Parse([]string{"--config", "../../cmd/etrand/etrand.toml"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Interfaces = []Interface{{Name: "eth0", Sharing: SharingAuto}}
	// Empty lists are as good as none.
	c.Policy.Uids, c.Policy.ExcludePorts, c.Policy.ExcludeNetworks = nil, nil, nil
	if !reflect.DeepEqual(c, want) {
		t.Errorf("%+v, want %+v", c, want)
	}
}
