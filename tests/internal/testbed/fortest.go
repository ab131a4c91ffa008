// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"os"
	"strconv"
	"testing"
)

// LongEnv names the environment variable that gives tests the time that their
// promises need, times its value, instead of the little that every run of the
// suite can give; and seeds by the clock to those that have seeds.
const LongEnv = "ETRAN_LONG"

// Long is the value of $ETRAN_LONG: 0 if it is not set.
func Long() int {
	text := os.Getenv(LongEnv)
	if text == "" {
		return 0
	}
	times, err := strconv.Atoi(text)
	if err != nil || times < 1 {
		panic(LongEnv + " is " + strconv.Quote(text) + ", want a factor")
	}
	return times
}

// Span is how much a test does: seconds or rounds, usually and in a long run.
func Span(usual, longer int) int {
	if Long() > 0 {
		return longer * Long()
	}
	return usual
}

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
