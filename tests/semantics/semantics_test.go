// SPDX-License-Identifier: Apache-2.0

// Package semantics has a C program with hundreds of small cases of what Linux
// sockets do, and demands that programs under libetran.so see exactly the same.
package semantics

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/etran-go/etran/runtime/adminapi"
	"github.com/etran-go/etran/tests/internal/testbed"
)

const (
	// patience bounds the run of all cases with one pair of programs.
	patience = 100 * time.Second
	// leastCases is how many cases there are at least.
	leastCases = 300
	// leastFast is the share of cases, of those whose connection may be fast,
	// that must begin with their connection on the fast path.
	leastFast = 0.9
	// basePort is the first one for control connections.
	basePort = 7100
)

// onlyEnv names the environment variable that selects cases: those whose name
// contains its value.
const onlyEnv = "ETRAN_CASES"

// transcript is what one run wrote down.
type transcript struct {
	// order of the cases, and the lines of each.
	order []string
	lines map[string][]string
	// warm cases had a connection that could be fast; fast is how many of
	// them had it there at the active end, peerFast the same of the peer.
	warm, fast, peerFast int
	// ended counts programs that hung or died in a case.
	ended int
}

// parse adds the active program's output.
func (t *transcript) parse(text string) error {
	name := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		var fast, peer int
		switch {
		case strings.HasPrefix(line, "== "):
			name = line[len("== "):]
			if _, twice := t.lines[name]; twice {
				return fmt.Errorf("case %s ran twice", name)
			}
			t.order = append(t.order, name)
			t.lines[name] = nil
		case strings.HasPrefix(line, "# fast "):
			if strings.HasSuffix(line, " cold") {
				continue
			}
			if _, err := fmt.Sscanf(line, "# fast %d %d", &fast, &peer); err != nil {
				return fmt.Errorf("reading %q: %w", line, err)
			}
			t.warm++
			t.fast += fast
			t.peerFast += peer
		default:
			t.lines[name] = append(t.lines[name], line)
		}
	}
	return nil
}

// ends are the two programs of a run.
type ends struct {
	client, server bool // is under eTran
	active         string
	port           int
}

func (e ends) String() string {
	return fmt.Sprintf("client-%s-server-%s-active-%s", path(e.client), path(e.server), e.active)
}

func path(etran bool) string {
	if etran {
		return "etran"
	}
	return "kernel"
}

// command is the program at one end, for the cases after one of them.
func (e ends) command(own, peer *testbed.Host, side string, etran bool, after string) testbed.Command {
	role := "--peer"
	if e.active == side {
		role = "--active"
	}
	c := testbed.Command{
		Args:  []string{program, role, "--" + side},
		Etran: etran,
		Env:   []string{"ETRAN_PROMOTE_AFTER=0"},
	}
	if etran {
		c.Args = append(c.Args, "--fast")
	}
	if after != "" {
		c.Args = append(c.Args, "--after="+after)
	}
	c.Args = append(c.Args, own.Wire, peer.Wire, testbed.PlainB, fmt.Sprint(e.port))
	if only := os.Getenv(onlyEnv); only != "" {
		c.Args = append(c.Args, only)
	}
	return c
}

var program, _ = filepath.Abs(filepath.Join("..", "..", "build", "progs", "semantics"))

// run runs all cases. After one that hangs or kills the program, the others are
// run with a new pair of programs.
func (e ends) run(ctx context.Context, tb *testbed.Testbed) (*transcript, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	all := &transcript{lines: map[string][]string{}}
	for {
		after := ""
		if n := len(all.order); n > 0 {
			after = all.order[n-1]
		}
		text, failed := e.runSome(ctx, tb, after)
		before := len(all.order)
		if err := all.parse(text); err != nil {
			return all, fmt.Errorf("%v: %w", e, err)
		}
		n := len(all.order)
		switch {
		case failed == nil:
			return all, nil
		case n == before || ctx.Err() != nil:
			return all, fmt.Errorf("%v: %w", e, failed)
		}
		last := all.order[n-1]
		all.ended++
		all.lines[last] = append(all.lines[last], "  the program ends: "+failed.Error())
	}
}

// runSome runs the cases after one with one pair of programs. It returns what
// was written down, even if there is an error, too.
func (e ends) runSome(ctx context.Context, tb *testbed.Testbed, after string) (string, error) {
	var text bytes.Buffer
	var complaints [2]bytes.Buffer
	commands := []testbed.Command{
		e.command(tb.B, tb.A, "server", e.server, after),
		e.command(tb.A, tb.B, "client", e.client, after),
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var procs []*testbed.Process
	for i, h := range []*testbed.Host{tb.B, tb.A} {
		c := commands[i]
		c.Stderr = &complaints[i]
		if slices.Contains(c.Args, "--active") {
			c.Stdout = &text
		}
		p, err := h.Start(c)
		if err != nil {
			return "", err
		}
		defer p.Stop()
		procs = append(procs, p)
	}
	var failed error
	select {
	case <-procs[0].Done():
	case <-procs[1].Done():
	case <-ctx.Done():
	}
	for _, p := range procs {
		// When one has ended the other does, or waits for it in vain.
		end, cancel := context.WithTimeout(ctx, 2*time.Second)
		if err := p.Wait(end); err != nil && failed == nil {
			failed = err
		}
		cancel()
	}
	if failed != nil {
		failed = fmt.Errorf("%w; server: %s, client: %s", failed,
			strings.TrimSpace(complaints[0].String()), strings.TrimSpace(complaints[1].String()))
	}
	return text.String(), failed
}

func stats(t *testing.T, h *testbed.Host) *adminapi.Stats {
	t.Helper()
	admin := h.Admin()
	defer admin.Close()
	s, err := admin.Stats(t.Context())
	if err != nil {
		t.Fatalf("statistics of host %s: %v", h.Name, err)
	}
	return s
}

// both runs the cases with each end being the active one, at the same time: so
// under eTran there are two programs on each interface.
func both(t *testing.T, tb *testbed.Testbed, client, server bool) (t1, t2 *transcript) {
	t.Helper()
	type result struct {
		t   *transcript
		err error
	}
	results := [2]chan result{make(chan result, 1), make(chan result, 1)}
	for i, active := range []string{"client", "server"} {
		e := ends{client, server, active, basePort + i}
		go func() {
			tr, err := e.run(t.Context(), tb)
			results[i] <- result{tr, err}
		}()
	}
	r1, r2 := <-results[0], <-results[1]
	for _, r := range []result{r1, r2} {
		if r.err != nil {
			t.Error(r.err)
		}
	}
	return r1.t, r2.t
}

// difference says in which of two transcripts' cases what differs.
func difference(kernel, other *transcript) map[string]string {
	d := map[string]string{}
	for _, name := range kernel.order {
		got, ran := other.lines[name]
		switch {
		case !ran:
			d[name] = "not reached"
		case !slices.Equal(kernel.lines[name], got):
			d[name] = "kernel:\n" + strings.Join(kernel.lines[name], "\n") +
				"\nhere:\n" + strings.Join(got, "\n")
		}
	}
	return d
}

// compare reports the cases in which a transcript differs from the kernel's, and
// counts the known differences, which only an end under eTran may have.
func compare(t *testing.T, kernel, other *transcript, etran bool, known map[string]int) {
	t.Helper()
	d := difference(kernel, other)
	for _, name := range kernel.order {
		text, differs := d[name]
		why, listed := knownDifferences[name]
		if !listed {
			why, listed = differencesByChance[name]
		}
		switch {
		case differs && listed && etran:
			t.Logf("known difference: %s: %s", name, why)
			known[name]++
		case differs:
			t.Errorf("%s\n%s", name, text)
		}
	}
}

// checkFast demands that cases began on the fast path where they should have.
func checkFast(t *testing.T, etran bool, warm, fast int, whose string) {
	t.Helper()
	t.Logf("%s: %d of %d cases began on the fast path", whose, fast, warm)
	switch {
	case !etran && fast > 0:
		t.Errorf("%s was on the fast path in %d cases without eTran", whose, fast)
	case etran && float64(fast) < leastFast*float64(warm):
		t.Errorf("%s was on the fast path in %d of %d cases only", whose, fast, warm)
	}
}

// TestSemantics runs the cases on the kernel twice, which must give the same
// transcripts, and then with one or both ends under eTran. The end whose
// transcript is compared is the client in one run and the server in another.
func TestSemantics(t *testing.T) {
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%v: run make first", err)
	}
	tb := testbed.ForTest(t, testbed.Options{})
	asClient, asServer := both(t, tb, false, false)
	if n := len(asClient.order); n < leastCases && os.Getenv(onlyEnv) == "" {
		t.Errorf("there are %d cases, want %d", n, leastCases)
	}
	again1, again2 := both(t, tb, false, false)
	for _, d := range []map[string]string{
		difference(asClient, again1), difference(asServer, again2),
	} {
		for _, name := range asClient.order {
			if text, differs := d[name]; differs {
				t.Errorf("%s gives one thing or another on the kernel\n%s", name, text)
			}
		}
	}
	if n := asClient.ended + asServer.ended; n > 0 {
		t.Errorf("%d cases hang or end the program on the kernel", n)
	}
	if t.Failed() {
		return
	}
	known := map[string]int{}
	for _, c := range []struct{ client, server bool }{{true, false}, {false, true}, {true, true}} {
		t.Run(fmt.Sprintf("client-%s-server-%s", path(c.client), path(c.server)), func(t *testing.T) {
			a, b := stats(t, tb.A).Promotions, stats(t, tb.B).Promotions
			client, server := both(t, tb, c.client, c.server)
			compare(t, asClient, client, c.client, known)
			compare(t, asServer, server, c.server, known)
			checkFast(t, c.client, client.warm, client.fast, "the client, active")
			checkFast(t, c.server, client.warm, client.peerFast, "its peer")
			checkFast(t, c.server, server.warm, server.fast, "the server, active")
			checkFast(t, c.client, server.warm, server.peerFast, "its peer")
			// What the program saw, by the daemons' word.
			checkPromotions(t, tb.A, a, client.fast+server.peerFast)
			checkPromotions(t, tb.B, b, client.peerFast+server.fast)
		})
	}
	for name := range knownDifferences {
		if _, ran := asClient.lines[name]; ran && known[name] == 0 {
			t.Errorf("%s does not differ any more: take it off the list", name)
		}
	}
}

func checkPromotions(t *testing.T, h *testbed.Host, before uint64, fast int) {
	t.Helper()
	if n := stats(t, h).Promotions - before; n < uint64(fast) {
		t.Errorf("host %s counts %d promotions, but %d cases were on the fast path", h.Name, n, fast)
	}
}
