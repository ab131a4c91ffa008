// SPDX-License-Identifier: Apache-2.0

// Command demo measures unmodified Redis on the kernel's TCP, on the kernel's
// TCP with spinning instead of sleeping, and on eTran, side by side: the
// server on host B of a testbed, redis-benchmark on host A, on two pinned
// cores. It prints a table and writes its numbers and a plot.
//
// The three take turns, since a machine's speed drifts more in a minute than
// some of the differences are big; a ratio is the median of the ratios of the
// rounds.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/etran-go/etran/tests/internal/testbed"
)

// testbedName keeps the demo apart from a testbed that is up by hand.
const testbedName = "etran-demo"

// requiredShare of the payload must take the fast path in eTran's runs, or
// they measure something else.
const requiredShare = 0.99

// options are the command line.
type options struct {
	rounds   int
	budget   time.Duration
	variants string
	buildDir string
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
}

func run() error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding the build directory: %w", err)
	}
	var o options
	flag.IntVar(&o.rounds, "rounds", 5, "how often to measure everything")
	flag.DurationVar(&o.budget, "budget", 80*time.Second, "how long all measurements together may take")
	flag.StringVar(&o.variants, "variants", "kernel,spinning,etran", "what to measure")
	flag.StringVar(&o.buildDir, "build", filepath.Dir(self), "where etrand and libetran.so are and the results go")
	flag.Parse()
	if o.rounds < 1 || flag.NArg() > 0 {
		return errors.New("usage: demo [--rounds N] [--budget TIME] [--variants LIST]")
	}
	chosen, err := chooseVariants(strings.Split(o.variants, ","))
	if err != nil {
		return err
	}
	results, err := measure(o, chosen)
	if err != nil {
		return err
	}
	return report(o, results)
}

// measure makes the testbed, runs everything on it, and removes it.
func measure(o options, chosen []variant) (_ *results, err error) {
	ctx := context.Background()
	progress := newProgress(os.Stdout)
	progress.line("making two hosts and a wire with eTran and one without")
	tb, err := testbed.New(ctx, testbed.Options{
		Name: testbedName, BuildDir: o.buildDir, Log: os.Stderr, NoDaemon: !needsDaemon(chosen),
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, tb.Close()) }()

	s := &session{tb: tb, variants: chosen, progress: progress}
	if err := s.startServers(ctx); err != nil {
		return nil, err
	}
	if err := s.calibrate(ctx, o); err != nil {
		return nil, err
	}
	for round := range o.rounds {
		if err := s.round(ctx, round, o.rounds); err != nil {
			return nil, err
		}
	}
	return s.results(), nil
}

// report prints and writes the results, and fails if they aren't eTran's.
func report(o options, r *results) error {
	fmt.Println()
	if err := printTable(os.Stdout, r); err != nil {
		return err
	}
	data := filepath.Join(o.buildDir, "demo.json")
	if err := writeJSON(data, r); err != nil {
		return err
	}
	picture := filepath.Join(o.buildDir, "demo.png")
	if err := drawPlot(picture, r); err != nil {
		return err
	}
	fmt.Printf("\nwritten: %s, %s\n", data, picture)
	return r.checkShare()
}
