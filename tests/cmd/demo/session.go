// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/etran-go/etran/tests/internal/testbed"
)

// The cores of the two programs, which must not be the same.
const (
	benchmarkCPU = 0
	serverCPU    = 1
)

// variant is one of the ways to run Redis that are compared.
type variant struct {
	name string
	// title is what the table calls it.
	title string
	// address and port of the server.
	address string
	port    int
	// etran says whether both ends run under libetran.so, with env.
	etran bool
	env   []string
	// fast says whether the payload should take the fast path.
	fast bool
}

// Variants in the order of the table. Each has a server of its own.
var allVariants = []variant{
	{name: "kernel", title: "kernel TCP", address: testbed.PlainB, port: 6379},
	{
		name: "spinning", title: "kernel TCP, spinning", address: testbed.PlainB, port: 6380,
		etran: true, env: []string{"ETRAN_PROMOTE=off"},
	},
	{name: "etran", title: "eTran", address: testbed.WireB, port: 6381, etran: true, fast: true},
}

// chooseVariants finds variants by name, in the order of the table.
func chooseVariants(names []string) ([]variant, error) {
	var chosen []variant
	for _, v := range allVariants {
		if slices.Contains(names, v.name) {
			chosen = append(chosen, v)
		}
	}
	if len(chosen) != len(names) {
		return nil, fmt.Errorf("variants %q: choose from kernel, spinning and etran, each once", names)
	}
	return chosen, nil
}

func needsDaemon(chosen []variant) bool {
	return slices.ContainsFunc(chosen, func(v variant) bool { return v.fast })
}

// shape is the load that redis-benchmark makes; it runs SET and GET with each.
type shape struct {
	title    string
	clients  int
	pipeline int
	// probe is the number of requests to calibrate with.
	probe int
}

var shapes = []shape{
	{title: "1 client", clients: 1, pipeline: 1, probe: 4000},
	{title: "50 clients", clients: 50, pipeline: 1, probe: 20000},
	{title: "50 clients × 16", clients: 50, pipeline: 16, probe: 200000},
}

// session is one measurement in progress.
type session struct {
	tb       *testbed.Testbed
	variants []variant
	progress *progress
	// requests per run, by variant and shape.
	requests map[[2]string]int
	samples  []sample
}

// sample is one run of redis-benchmark with one command.
type sample struct {
	variant, shape, command string
	round                   int
	reply                   benchmark
	// payload that moved on each path, both hosts and both commands.
	fast, kernel uint64
}

// startServers starts one Redis for each variant. The idle ones sleep.
func (s *session) startServers(ctx context.Context) error {
	// The one on the fast path comes first: a host's receive queues serve
	// one application, the first that asks.
	order := slices.Clone(s.variants)
	slices.SortStableFunc(order, func(a, b variant) int {
		switch {
		case a.fast == b.fast:
			return 0
		case a.fast:
			return -1
		default:
			return 1
		}
	})
	for _, v := range order {
		s.progress.line("starting redis-server for %s", v.title)
		if err := s.startServer(ctx, v); err != nil {
			return err
		}
	}
	return nil
}

// serverPatience is how long Redis may take to answer its first PING.
const serverPatience = 10 * time.Second

func (s *session) startServer(ctx context.Context, v variant) error {
	output := &tail{}
	server, err := s.tb.B.Start(testbed.Command{
		Args: []string{
			"redis-server", "--port", strconv.Itoa(v.port), "--bind", "0.0.0.0", "--protected-mode", "no",
			"--save", "", "--appendonly", "no",
		},
		Etran: v.etran, Env: v.env, CPUs: []int{serverCPU},
		Stdout: output, Stderr: output,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, serverPatience)
	defer cancel()
	for {
		err := s.ping(v)
		if err == nil {
			return nil
		}
		select {
		case <-server.Done():
			return fmt.Errorf("redis-server for %s ended at once; it said:\n%s", v.title, output)
		case <-ctx.Done():
			return fmt.Errorf("redis-server for %s does not answer: %w; it said:\n%s", v.title, err, output)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// ping exchanges a PING with a server, from the other host.
func (s *session) ping(v variant) error {
	var conn net.Conn
	err := s.tb.A.Do(func() (err error) {
		conn, err = net.DialTimeout("tcp4", net.JoinHostPort(v.address, strconv.Itoa(v.port)), time.Second)
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "PING\r\n"); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	if !strings.HasPrefix(line, "+PONG") {
		return fmt.Errorf("it answered %q to PING", line)
	}
	return nil
}

// minRequests keeps a run long enough for percentiles.
const minRequests = 2000

// calibrate finds for every variant and shape how many requests fill its share
// of the time.
func (s *session) calibrate(ctx context.Context, o options) error {
	s.progress.line("calibrating")
	// Each run takes two commands, and some time to start and stop.
	const overhead = 60 * time.Millisecond
	runs := o.rounds * len(shapes) * len(s.variants)
	perCommand := (o.budget/time.Duration(runs) - overhead) / 2
	if perCommand <= 0 {
		return fmt.Errorf("a budget of %v is too small for %d rounds", o.budget, o.rounds)
	}
	s.requests = make(map[[2]string]int)
	for _, sh := range shapes {
		for _, v := range s.variants {
			rate, err := s.probe(ctx, v, sh)
			if err != nil {
				return err
			}
			s.requests[[2]string{v.name, sh.title}] = max(int(rate*perCommand.Seconds()), minRequests)
		}
	}
	return nil
}

// probe estimates a rate. Short runs underestimate it, since connections begin
// on the kernel's path and programs need time to start: those are repeated
// with more requests.
func (s *session) probe(ctx context.Context, v variant, sh shape) (float64, error) {
	const enough = 200 * time.Millisecond
	requests := sh.probe
	for try := 0; ; try++ {
		replies, err := s.benchmark(ctx, v, sh, requests)
		if err != nil {
			return 0, err
		}
		rate := min(replies[0].Rate, replies[1].Rate)
		if float64(requests) > rate*enough.Seconds()/2 || try == 2 {
			return rate, nil
		}
		requests = int(rate * enough.Seconds())
	}
}

// round measures every shape with every variant once, in turn.
func (s *session) round(ctx context.Context, round, rounds int) error {
	for _, sh := range shapes {
		var rates []string
		for i := range s.variants {
			// Each variant is first in some rounds, and after each other.
			v := s.variants[(i+round)%len(s.variants)]
			samples, err := s.measure(ctx, v, sh, round)
			if err != nil {
				return err
			}
			s.samples = append(s.samples, samples...)
			for _, sm := range samples {
				if sm.command == "GET" {
					rates = append(rates, fmt.Sprintf("%s %s/s", v.name, thousands(sm.reply.Rate)))
				}
			}
		}
		s.progress.line("round %d of %d, %-15s  GET: %s", round+1, rounds, sh.title, strings.Join(rates, ", "))
	}
	return nil
}

// measure does one run and counts which path its payload took.
func (s *session) measure(ctx context.Context, v variant, sh shape, round int) ([]sample, error) {
	var before, after payload
	var err error
	if v.fast {
		if before, err = s.payload(ctx); err != nil {
			return nil, err
		}
	}
	replies, err := s.benchmark(ctx, v, sh, s.requests[[2]string{v.name, sh.title}])
	if err != nil {
		return nil, err
	}
	if v.fast {
		if after, err = s.payload(ctx); err != nil {
			return nil, err
		}
	}
	var samples []sample
	for _, r := range replies {
		samples = append(samples, sample{
			variant: v.name, shape: sh.title, command: r.Command, round: round, reply: r,
			fast: after.fast - before.fast, kernel: after.kernel - before.kernel,
		})
	}
	return samples, nil
}

// payload counts bytes by the path that they took.
type payload struct{ fast, kernel uint64 }

// payload asks both daemons. A byte counts on the host that sends it and on
// the one that receives it.
func (s *session) payload(ctx context.Context) (payload, error) {
	var sum payload
	for _, h := range []*testbed.Host{s.tb.A, s.tb.B} {
		client := h.Admin()
		stats, err := client.Stats(ctx)
		client.Close()
		if err != nil {
			return payload{}, fmt.Errorf("asking the daemon of host %s for its counters: %w", h.Name, err)
		}
		sum.fast += stats.FastBytesIn + stats.FastBytesOut
		sum.kernel += stats.KernelBytesIn + stats.KernelBytesOut
	}
	return sum, nil
}

// runPatience is far above what a run takes that isn't stuck.
const runPatience = 30 * time.Second

// benchmark runs redis-benchmark with SET and GET.
func (s *session) benchmark(ctx context.Context, v variant, sh shape, requests int) ([]benchmark, error) {
	stuck := fmt.Errorf("it was not done after %v", runPatience)
	ctx, cancel := context.WithTimeoutCause(ctx, runPatience, stuck)
	defer cancel()
	out, err := s.tb.A.Output(ctx, testbed.Command{
		Args: []string{
			"redis-benchmark", "-h", v.address, "-p", strconv.Itoa(v.port),
			"-c", strconv.Itoa(sh.clients), "-P", strconv.Itoa(sh.pipeline), "-n", strconv.Itoa(requests),
			"-t", "set,get", "--csv", "--precision", "3",
		},
		Etran: v.etran, Env: v.env, CPUs: []int{benchmarkCPU},
	})
	if err != nil {
		return nil, fmt.Errorf("%s, %s: %w", v.title, sh.title, err)
	}
	replies, err := parseBenchmark(out)
	if err == nil && len(replies) != 2 {
		err = errors.New("it did not report on SET and GET")
	}
	if err != nil {
		return nil, fmt.Errorf("%s, %s: redis-benchmark's output: %w; it was\n%s", v.title, sh.title, err, out)
	}
	return replies, nil
}
