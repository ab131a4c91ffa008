// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"os"
	"testing"
)

// TestName returns the name of the testbed that tests use, by default: they
// leave one that somebody made by hand alone, and test runs with different
// $ETRAN_TESTBED leave each other alone.
func TestName() string {
	if name := os.Getenv("ETRAN_TESTBED"); name != "" {
		return name + "-test"
	}
	return DefaultName + "-test"
}

// RequireRootEnv names the environment variable that turns the skipping of
// tests that need root into a failure, for runs that must not miss them.
const RequireRootEnv = "ETRAN_REQUIRE_ROOT"

// ForTest makes a testbed for a test, and removes it when the test ends.
func ForTest(t testing.TB, opts Options) *Testbed {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv(RequireRootEnv) != "" {
			t.Fatalf("the testbed needs root, and %s is set", RequireRootEnv)
		}
		t.Skip("the testbed needs root")
	}
	if opts.Name == "" {
		opts.Name = TestName()
	}
	if opts.Log == nil {
		opts.Log = t.Output()
	}
	tb, err := New(t.Context(), opts)
	if err != nil {
		t.Fatalf("making the testbed: %v", err)
	}
	t.Cleanup(func() {
		if err := tb.Close(); err != nil {
			t.Errorf("removing the testbed: %v", err)
		}
	})
	return tb
}
