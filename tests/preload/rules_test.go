// SPDX-License-Identifier: Apache-2.0

package preload_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etran-go/etran/runtime/adminapi"
	"github.com/etran-go/etran/tests/internal/testbed"
)

const ruleFile = `
[[rule]]
programs = ["symbols"]
profile = "latency"
networks = ["NETWORK"]
ports = ["1-65535"]
`

// TestRules: a file decides which connections of a program are promoted. What it
// excludes stays on the kernel, and the daemon's list says why.
func TestRules(t *testing.T) {
	tb := testbed.ForTest(t, testbed.Options{})
	for _, tc := range []struct {
		name, network string
		want          adminapi.Conn
	}{
		{"included", tb.B.Wire + "/32", adminapi.Conn{Path: adminapi.PathFast}},
		{"excluded", "192.0.2.0/24", adminapi.Conn{Path: adminapi.PathKernel, Reason: "policy"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "rules.toml")
			text := strings.Replace(ruleFile, "NETWORK", tc.network, 1)
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			n := nameTest{name: "send", by: []string{build(t, "etran"), "run", "--rules", file, "--"}}
			p, err := n.start(ctx, tb)
			if err != nil {
				t.Fatal(err)
			}
			defer p.end()
			for {
				got, err := p.path(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if got.Path == tc.want.Path && got.Reason == tc.want.Reason {
					return
				}
				select {
				case <-ctx.Done():
					t.Fatalf("the connection is %+v, want %+v", got, tc.want)
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
	}
}

// TestStrict: a strict program is told what others do not notice.
func TestStrict(t *testing.T) {
	tb := testbed.ForTest(t, testbed.Options{})
	for _, tc := range []struct {
		name string
		env  string
		want string // what the program complains of; "" if it goes on
	}{
		{"strict", "ETRAN_STRICT=1", "Connection reset by peer"},
		{"not strict", "ETRAN_STRICT=0", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("it took too long"))
			defer cancel()
			// No daemon serves that wire.
			n := nameTest{name: "send", lib: build(t, "libetran.so"), plain: true, env: []string{tc.env}}
			p, err := n.start(ctx, tb)
			if err != nil {
				t.Fatal(err)
			}
			defer p.end()
			for tc.want == "" {
				if got, err := p.path(ctx); err != nil {
					t.Fatal(err)
				} else if got.Reason == "no_device" {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
			if p.process.Wait(ctx) == nil || !strings.Contains(p.stderr.String(), tc.want) {
				t.Errorf("the program said %q, want %q", p.stderr, tc.want)
			}
		})
	}
}

// TestStrictWithoutDaemon: there is nobody to ask.
func TestStrictWithoutDaemon(t *testing.T) {
	t.Parallel()
	env := []string{"ETRAN_RUN_DIR=" + t.TempDir(), "ETRAN_STRICT=1", "LD_PRELOAD=" + build(t, "libetran.so")}
	got := runEnv(t, env, build(t, "progs/symbols"), "send", "127.0.0.1", "1")
	if got.exit != 1 || !strings.Contains(got.stderr, "Network is down") {
		t.Errorf("%+v", got)
	}
}
