// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestSettingFlags(t *testing.T) {
	for _, tc := range []struct {
		args string
		want string // "": an error
	}{
		{"--spin-us=0", "ETRAN_SPIN_US=0"},
		{"--promote=eager --spin-us=7 --strict", "ETRAN_PROMOTE_AFTER=1 ETRAN_PROMOTE_BYTES=1 ETRAN_SPIN_US=7 ETRAN_STRICT=1"},
		{"--after-exchanges=3 --after-bytes=4 --log=/l", "ETRAN_PROMOTE_AFTER=3 ETRAN_PROMOTE_BYTES=4 ETRAN_LOG=/l"},
		{"--promote=off --ports=1,2-3 --networks=10.0.0.0/8", "ETRAN_PROMOTE=off ETRAN_PORTS=1,2-3 ETRAN_NETWORKS=10.0.0.0/8"},
		{"--promote=maybe", ""},
		{"--profile=none", ""},
		{"--ports=x", ""},
		{"--networks=10.0.0.1", ""},
	} {
		var o settingFlags
		f := pflag.NewFlagSet("run", pflag.ContinueOnError)
		o.define(f)
		if err := f.Parse(strings.Fields(tc.args)); err != nil {
			t.Fatal(err)
		}
		settings, err := o.settings(f.Changed)
		var env []string
		if err == nil {
			env, err = settings.Environment()
		}
		if got := strings.Join(env, " "); (err != nil) != (tc.want == "") || got != tc.want {
			t.Errorf("%s: got %q, %v, want %q", tc.args, got, err, tc.want)
		}
	}
}

func TestMergeEnvironment(t *testing.T) {
	got := mergeEnvironment([]string{"A=1", "AB=2", "C=3"}, []string{"A=9", "D=4"})
	if want := []string{"AB=2", "C=3", "A=9", "D=4"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestPreload(t *testing.T) {
	if got := preload("/l.so", ""); got != "LD_PRELOAD=/l.so" {
		t.Errorf("alone: %s", got)
	}
	if got := preload("/l.so", "/m.so"); got != "LD_PRELOAD=/l.so:/m.so" {
		t.Errorf("in front of another: %s", got)
	}
}

func TestCheckProgram(t *testing.T) {
	self, err := os.Executable() // a Go program
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, controlSocket))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	var notice bytes.Buffer
	if err := checkProgram(&notice, "/bin/sh", nil, dir, true); err != nil || notice.Len() > 0 {
		t.Errorf("a good program: %v, %q", err, notice.String())
	}
	if err := checkProgram(&notice, self, nil, dir, false); err != nil || !strings.Contains(notice.String(), "Go program") {
		t.Errorf("a Go program: %v, %q", err, notice.String())
	}
	var exit *exitError
	if err := checkProgram(&notice, self, nil, dir, true); !errors.As(err, &exit) || exit.status != statusRefused {
		t.Errorf("a Go program with --strict: %v", err)
	}
	if err := checkProgram(&notice, "/bin/sh", nil, t.TempDir(), true); err == nil || !strings.Contains(err.Error(), "no etrand") {
		t.Errorf("no daemon: %v", err)
	}
}

func TestFindLibrary(t *testing.T) {
	lib := filepath.Join(t.TempDir(), "libetran.so")
	t.Setenv(envLib, lib)
	if got, err := findLibrary(); err == nil {
		t.Errorf("missing: found %s", got)
	}
	if err := os.WriteFile(lib, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := findLibrary(); err != nil || got != lib {
		t.Errorf("got %s, %v", got, err)
	}
}
