// SPDX-License-Identifier: Apache-2.0

// Command overhead measures what libetran.so costs a program that it does
// nothing for: a call on a descriptor that is none of its, the start of a
// process, short connections, and Redis on a wire that no daemon serves.
//
// Each program runs with and without the library in turns, on pinned cores, and
// what counts is the median of the rounds' differences or ratios: a machine
// drifts more in a minute than these costs are big. With --check a cost beyond
// its bound is an error.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/etran-go/etran/tests/internal/median"
	"github.com/etran-go/etran/tests/internal/testbed"
)

const testbedName = "etran-overhead"

// A cost is something measured without and with the library.
type cost struct {
	name, unit string
	// bound of what the library adds, or of the ratio if it is a rate.
	bound float64
	rate  bool
	plain []float64
	under []float64
}

// value is the median of the rounds' differences, or ratios.
func (c *cost) value() float64 {
	values := make([]float64, len(c.plain))
	for i := range values {
		values[i] = c.under[i] - c.plain[i]
		if c.rate {
			values[i] = c.under[i] / c.plain[i]
		}
	}
	return median.Of(values)
}

// met says whether the cost is within its bound.
func (c *cost) met() bool {
	if c.rate {
		return c.value() >= c.bound
	}
	return c.value() <= c.bound
}

func (c *cost) String() string {
	verdict, sign, what := "", "<=", "+%.1f %s"
	if c.rate {
		sign, what = ">=", "x %.3f of %s"
	}
	if !c.met() {
		verdict = "  MISSED"
	}
	return fmt.Sprintf("%-28s %12.1f %12.1f  "+what+"  (%s %g)%s",
		c.name, median.Of(c.plain), median.Of(c.under), c.value(), c.unit, sign, c.bound, verdict)
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "overhead: %v\n", err)
		os.Exit(1)
	}
}

func run() (err error) {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding the build directory: %w", err)
	}
	rounds := flag.Int("rounds", 5, "how often to measure everything")
	check := flag.Bool("check", false, "fail if a cost is beyond its bound")
	only := flag.String("only", "", "measure what has this in its name: calls, start, short or redis")
	name := flag.String("testbed", testbedName, "name of the testbed to make")
	buildDir := flag.String("build", filepath.Dir(self), "where etrand and libetran.so are")
	flag.Parse()
	if *rounds < 1 || flag.NArg() > 0 {
		return errors.New("usage: overhead [--rounds N] [--check] [--only WHAT]")
	}
	ctx := context.Background()
	tb, err := testbed.New(ctx, testbed.Options{Name: *name, BuildDir: *buildDir, Log: os.Stderr})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tb.Close()) }()
	m := &meter{tb: tb, buildDir: *buildDir, costs: map[string]*cost{}}
	for round := range *rounds {
		for _, measure := range []struct {
			name string
			run  func(context.Context, bool) error
		}{
			{"calls", m.calls}, {"start", m.start}, {"short", m.shortConnections}, {"redis", m.redis},
		} {
			if !strings.Contains(measure.name, *only) {
				continue
			}
			// Who is first changes with the rounds.
			for turn := range 2 {
				if err := measure.run(ctx, (round+turn)%2 == 1); err != nil {
					return fmt.Errorf("measuring %s: %w", measure.name, err)
				}
			}
		}
	}
	return m.report(*check)
}
