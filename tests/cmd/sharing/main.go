// SPDX-License-Identifier: Apache-2.0

// Command sharing measures what shared rings cost: Redis and redis-benchmark
// with 64-byte values on two testbeds, one whose applications have direct rings
// and one whose applications have shared rings (at both ends, so that a round
// trip makes two hops more). The two take turns; the figures are medians of the
// rounds, the ratio the median of the rounds' ratios.
package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/etran-go/etran/runtime/adminapi"
	"github.com/etran-go/etran/tests/internal/median"
	"github.com/etran-go/etran/tests/internal/testbed"
)

// The cores of the two programs.
const (
	benchmarkCPU = 0
	serverCPU    = 1
)

// requiredShare of the payload must take the fast path; the rest are the
// connections' beginnings.
const requiredShare = 0.9

// modes of the daemons, and how the programs must receive then.
var modes = []struct{ sharing, rings string }{
	{"auto", adminapi.RingsDirect},
	{"always", adminapi.RingsShared},
}

// loads are numbers of clients; redis-benchmark runs GET.
var loads = []int{1, 50}

// sample is one run.
type sample struct{ rate, p50us float64 }

func main() {
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "sharing: %v\n", err)
		os.Exit(1)
	}
}

func run() (err error) {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding the build directory: %w", err)
	}
	rounds := flag.Int("rounds", 7, "how often to measure everything")
	requests := flag.Int("requests", 200000, "of one run")
	flag.Parse()
	if *rounds < 1 || *requests < 1 || flag.NArg() > 0 {
		return errors.New("usage: sharing [--rounds N] [--requests N]")
	}
	ctx := context.Background()
	var beds []*testbed.Testbed
	for _, m := range modes {
		tb, err := testbed.New(ctx, testbed.Options{
			Name: testbed.TestName() + "-" + m.sharing, BuildDir: filepath.Dir(self),
			DaemonArgs: []string{"--sharing", m.sharing},
		})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, tb.Close()) }()
		if err := startServer(tb); err != nil {
			return err
		}
		beds = append(beds, tb)
	}
	return measure(ctx, beds, *rounds, *requests)
}

func startServer(tb *testbed.Testbed) error {
	_, err := tb.B.Start(testbed.Command{
		Args: []string{"redis-server", "--port", "6379", "--bind", "0.0.0.0", "--protected-mode", "no",
			"--save", "", "--appendonly", "no"},
		Etran: true, CPUs: []int{serverCPU},
	})
	time.Sleep(time.Second) // and what does not run then fails below
	return err
}

// measure prints a line for each load.
func measure(ctx context.Context, beds []*testbed.Testbed, rounds, requests int) error {
	samples := make(map[int][2][]sample)
	for round := range rounds {
		for _, clients := range loads {
			all := samples[clients]
			for i := range modes {
				// Each mode is first in some rounds.
				mode := (i + round) % len(modes)
				s, err := once(ctx, beds[mode], modes[mode].rings, clients, requests)
				if err != nil {
					return fmt.Errorf("%s rings, %d clients: %w", modes[mode].rings, clients, err)
				}
				all[mode] = append(all[mode], s)
				fmt.Fprintf(os.Stderr, "round %d of %d, %s, %d clients: %.0f/s, p50 %.0f µs\n",
					round+1, rounds, modes[mode].rings, clients, s.rate, s.p50us)
			}
			samples[clients] = all
		}
	}
	fmt.Printf("%-12s %14s %14s %8s %14s %14s\n", "GET, 64 B", "direct", "shared", "ratio", "p50 direct", "p50 shared")
	for _, clients := range loads {
		direct, shared := samples[clients][0], samples[clients][1]
		ratios := make([]float64, rounds)
		for i := range ratios {
			ratios[i] = shared[i].rate / direct[i].rate
		}
		rate := func(s sample) float64 { return s.rate }
		p50 := func(s sample) float64 { return s.p50us }
		fmt.Printf("%3d clients  %12.0f/s %12.0f/s %8.2f %11.0f µs %11.0f µs\n", clients, medianOf(direct, rate),
			medianOf(shared, rate), median.Of(ratios), medianOf(direct, p50), medianOf(shared, p50))
	}
	return nil
}

func medianOf(list []sample, what func(sample) float64) float64 {
	var values []float64
	for _, s := range list {
		values = append(values, what(s))
	}
	return median.Of(values)
}

// once runs the benchmark, and makes sure that it measures what it says.
func once(ctx context.Context, tb *testbed.Testbed, rings string, clients, requests int) (s sample, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	before, err := tb.B.Admin().Stats(ctx)
	if err != nil {
		return s, err
	}
	out, err := tb.A.Output(ctx, testbed.Command{
		Args: []string{"redis-benchmark", "-h", testbed.WireB, "-d", "64", "-t", "get", "--csv", "--precision", "3",
			"-c", strconv.Itoa(clients), "-n", strconv.Itoa(requests)},
		Etran: true, CPUs: []int{benchmarkCPU},
	})
	if err != nil {
		return s, err
	}
	after, err := tb.B.Admin().Stats(ctx)
	if err != nil {
		return s, err
	}
	fast := float64(after.FastBytesIn + after.FastBytesOut - before.FastBytesIn - before.FastBytesOut)
	kernel := float64(after.KernelBytesIn + after.KernelBytesOut - before.KernelBytesIn - before.KernelBytesOut)
	if fast < requiredShare*(fast+kernel) {
		return s, fmt.Errorf("only %.1f%% of the payload took the fast path", 100*fast/(fast+kernel))
	}
	status, err := tb.B.Admin().Status(ctx)
	if err != nil {
		return s, err
	}
	for _, a := range status.Apps {
		if a.Rings != rings {
			return s, fmt.Errorf("%s has %q rings", a.Comm, a.Rings)
		}
	}
	return parse(out)
}

// parse reads "test","rps","avg","min","p50",… in milliseconds.
func parse(out []byte) (s sample, err error) {
	rows, err := csv.NewReader(bytes.NewReader(out)).ReadAll()
	if err != nil || len(rows) != 2 || len(rows[1]) < 5 {
		return s, fmt.Errorf("redis-benchmark printed %q: %v", out, err)
	}
	rate, err1 := strconv.ParseFloat(rows[1][1], 64)
	p50, err2 := strconv.ParseFloat(rows[1][4], 64)
	return sample{rate, p50 * 1000}, errors.Join(err1, err2)
}
