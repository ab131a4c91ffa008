// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/etran-go/etran/tests/internal/testbed"
)

const (
	clientCPU = 0
	serverCPU = 1

	port = "6379"

	// What the library may add or leave.
	callBound  = 20.0  // ns
	startBound = 400.0 // µs
	pageBound  = 50.0
	shortBound = 0.95
	redisBound = 0.98

	processes   = 100
	connections = 4000
	requests    = 60000

	// ready bounds the wait for a server.
	ready = 20 * time.Second
)

// meter measures, and keeps what it found.
type meter struct {
	tb       *testbed.Testbed
	buildDir string
	costs    map[string]*cost
	order    []string
}

// record adds a value to a cost, which it makes like c if it is new.
func (m *meter) record(c cost, under bool, value float64) {
	if m.costs[c.name] == nil {
		m.costs[c.name] = &c
		m.order = append(m.order, c.name)
	}
	kept := m.costs[c.name]
	if under {
		kept.under = append(kept.under, value)
	} else {
		kept.plain = append(kept.plain, value)
	}
}

// report prints all costs, with the load of the machine.
func (m *meter) report(check bool) error {
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return err
	}
	fmt.Printf("%-28s %12s %12s  what the library costs   (load %s)\n", "", "without", "with", strings.Fields(string(load))[0])
	var missed []string
	for _, name := range m.order {
		c := m.costs[name]
		fmt.Println(c)
		if !c.met() {
			missed = append(missed, name)
		}
	}
	if check && len(missed) > 0 {
		return fmt.Errorf("beyond the bound: %s", strings.Join(missed, ", "))
	}
	return nil
}

func (m *meter) program(name string) string {
	return filepath.Join(m.buildDir, "progs", name)
}

// calls times calls on descriptors that are none of the library's. The program
// compares libc's functions with what stands before them itself.
func (m *meter) calls(ctx context.Context, under bool) error {
	if !under {
		return nil
	}
	out, err := m.tb.A.Output(ctx, testbed.Command{
		Args: []string{m.program("calls")}, Etran: under, CPUs: []int{clientCPU},
	})
	if err != nil {
		return err
	}
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		var name string
		var plain, added float64
		if _, err := fmt.Sscan(s.Text(), &name, &plain, &added); err != nil {
			return fmt.Errorf("calls said %q: %w", s.Text(), err)
		}
		c := cost{name: "call " + name, unit: "ns", bound: callBound}
		m.record(c, false, plain)
		m.record(c, true, plain+added)
	}
	return nil
}

// start times the life of a program that does nothing: the least time, which is
// the one that nothing else was in, and the pages it touched.
func (m *meter) start(ctx context.Context, under bool) error {
	least := time.Hour
	var faults int64
	for range processes {
		start := time.Now()
		p, err := m.tb.A.Start(testbed.Command{Args: []string{m.program("nothing")}, Etran: under, CPUs: []int{clientCPU}})
		if err == nil {
			err = p.Wait(ctx)
		}
		if err != nil {
			return err
		}
		least = min(least, time.Since(start))
		faults = p.PageFaults()
	}
	m.record(cost{name: "start and end", unit: "µs", bound: startBound}, under, float64(least.Nanoseconds())/1000)
	m.record(cost{name: "pages touched by it", unit: "pages", bound: pageBound}, under, float64(faults))
	return nil
}

// serve starts a server on host B and waits until it can be reached.
func (m *meter) serve(under bool, args ...string) (*testbed.Process, error) {
	p, err := m.tb.B.Start(testbed.Command{Args: args, Etran: under, CPUs: []int{serverCPU}})
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(ready); ; {
		err := m.tb.A.Do(func() error {
			c, err := net.DialTimeout("tcp4", net.JoinHostPort(m.tb.B.Plain, port), time.Second)
			if err == nil {
				c.Close()
			}
			return err
		})
		if err == nil {
			return p, nil
		}
		if time.Now().After(deadline) {
			p.Stop()
			return nil, fmt.Errorf("%s does not answer: %w", args[0], err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// shortConnections measures how many short connections a server takes.
func (m *meter) shortConnections(ctx context.Context, under bool) error {
	server, err := m.serve(under, m.program("shortlived"), "serve", port)
	if err != nil {
		return err
	}
	defer server.Stop()
	return m.rate(ctx, cost{name: "short connections", unit: "the rate", bound: shortBound, rate: true}, under,
		m.program("shortlived"), "ask", m.tb.B.Plain, port, strconv.Itoa(connections))
}

// redis measures a server whose connections stay on the kernel.
func (m *meter) redis(ctx context.Context, under bool) error {
	server, err := m.serve(under, "redis-server", "--port", port, "--save", "", "--appendonly", "no",
		"--protected-mode", "no", "--daemonize", "no", "--logfile", "/dev/null")
	if err != nil {
		return err
	}
	defer server.Stop()
	return m.rate(ctx, cost{name: "redis GET, 50 clients", unit: "the rate", bound: redisBound, rate: true}, under,
		"redis-benchmark", "-h", m.tb.B.Plain, "-p", port, "-t", "get", "-c", "50", "-n", strconv.Itoa(requests), "--csv")
}

// rate records what a client on host A says, and makes sure that none of the
// connections was ever fast.
func (m *meter) rate(ctx context.Context, c cost, under bool, args ...string) error {
	before, err := m.tb.B.Admin().Stats(ctx)
	if err != nil {
		return err
	}
	out, err := m.tb.A.Output(ctx, testbed.Command{Args: args, CPUs: []int{clientCPU}})
	if err != nil {
		return err
	}
	after, err := m.tb.B.Admin().Stats(ctx)
	if err != nil {
		return err
	}
	if after.Promotions != before.Promotions {
		return errors.New("connections were promoted: that is another path")
	}
	value, err := parseRate(string(out))
	if err != nil {
		return err
	}
	m.record(c, under, value)
	return nil
}

// parseRate finds the requests per second in what a client printed: a number,
// or redis-benchmark's table, in which it is the second column of the last line.
func parseRate(text string) (float64, error) {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	last := lines[len(lines)-1]
	if columns := strings.Split(last, ","); len(columns) > 1 {
		last = strings.Trim(columns[1], `"`)
	}
	value, err := strconv.ParseFloat(last, 64)
	if err != nil {
		return 0, fmt.Errorf("a client said %q", text)
	}
	return value, nil
}
