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
)

func TestRunEnvironment(t *testing.T) {
	all := func(string) bool { return true }
	none := func(string) bool { return false }
	for _, tc := range []struct {
		name  string
		o     runOptions
		given func(string) bool
		want  []string // nil: an error
	}{
		{"no flags", runOptions{promote: "on"}, none, []string{"ETRAN_RUN_DIR=/d"}},
		{"all flags", runOptions{promote: "eager", spinUs: 7, exchanges: 3, log: "/l", require: true}, all, []string{
			"ETRAN_RUN_DIR=/d", "ETRAN_PROMOTE=eager", "ETRAN_SPIN_US=7", "ETRAN_PROMOTE_AFTER=3", "ETRAN_LOG=/l", "ETRAN_REQUIRE=1",
		}},
		{"bad promote", runOptions{promote: "maybe"}, none, nil},
		{"bad spin", runOptions{promote: "on", spinUs: -1}, none, nil},
	} {
		got, err := tc.o.environment(tc.given, "/d")
		if (err != nil) != (tc.want == nil) || !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %q, %v", tc.name, got, err)
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
		t.Errorf("a Go program with --require: %v", err)
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
