// SPDX-License-Identifier: Apache-2.0

package system

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/etran-go/etran/runtime/adminapi"
	"github.com/etran-go/etran/tests/internal/testbed"
)

const streamConns = 3

// eventStreams are streams that go on until stop.
func eventStreams(t *testing.T, tb *testbed.Testbed, port int) *streams {
	t.Helper()
	return startStreams(t, tb, streamEnds{client: true, server: true, port: port},
		"--connections", strconv.Itoa(streamConns), "--rate", "100000", "--timeout", "40")
}

// urgeFast waits until all connections of both ends are fast at once.
func (s *streams) urgeFast(t *testing.T, tb *testbed.Testbed) {
	t.Helper()
	await(t, "both ends to be fast", func() bool {
		if !s.running() {
			t.Fatal("the streams ended")
		}
		urge(t, tb.A)
		urge(t, tb.B)
		return len(fastConns(t, tb.A, s.client.Pid())) == streamConns && len(fastConns(t, tb.B, s.server.Pid())) == streamConns
	})
}

// moved waits until each host has moved octets on the path, after now.
func moved(t *testing.T, tb *testbed.Testbed, path func(*testing.T, *testbed.Host, *adminapi.Stats) uint64, hosts ...*testbed.Host) {
	t.Helper()
	for _, h := range hosts {
		before := stats(t, h)
		await(t, "octets on host "+h.Name, func() bool { return path(t, h, before) > 0 })
	}
}

// An event is something that happens to the network under connections that are
// fast on both hosts.
type event struct {
	name     string
	do, undo []string // "A: ip link …"
	hold     time.Duration
	// reasons are the ones for which a host must have demoted, "A device";
	// none: all connections must still be fast where they were.
	reasons []string
}

const detachWire = "bpftool link detach pinned /sys/fs/bpf/NAME-testbed/A/device-wire"

var events = []event{
	{"link down for a moment", []string{"A: ip link set wire down"}, []string{"A: ip link set wire up"},
		200 * time.Millisecond, []string{"A device"}},
	{"link down for seconds", []string{"B: ip link set wire down"}, []string{"B: ip link set wire up"},
		3 * time.Second, []string{"B device"}},
	{"smaller MTU", []string{"A: ip link set wire mtu 1400", "B: ip link set wire mtu 1400"}, nil, 0,
		[]string{"A device", "B device"}},
	{"larger MTU", []string{"A: ip link set wire mtu 1500", "B: ip link set wire mtu 1500"}, nil, 0,
		[]string{"A device", "B device"}},
	{"program detached by force", []string{"A: " + detachWire}, nil, 0, []string{"A device"}},
	{"peer's MAC changes", []string{"A: ip link set wire address 02:00:00:00:0a:77",
		"A: ip neigh del 10.77.0.2 dev wire", "A: ping -c 1 -W 5 10.77.0.2"}, nil, 0, nil},
	{"neighbour fails", []string{"B: ip neigh change 10.77.0.1 dev wire nud failed"}, nil, 0, nil},
	{"better route", []string{"A: ip route add 10.77.0.2/32 via 10.78.0.2 dev plain src 10.77.0.1"},
		[]string{"A: ip route del 10.77.0.2/32"}, 2 * time.Second, []string{"A route", "B stray"}},
	{"blackhole route", []string{"A: ip route add blackhole 10.77.0.2/32"},
		[]string{"A: ip route del blackhole 10.77.0.2/32"}, 2 * time.Second, []string{"A route"}},
	{"policy rule", []string{"B: ip rule add to 10.77.0.1 prohibit"},
		[]string{"B: ip rule del to 10.77.0.1"}, time.Second, []string{"B route"}},
	{"address away for a second", []string{"A: ip addr del 10.77.0.1/24 dev wire"},
		[]string{"A: ip addr add 10.77.0.1/24 dev wire"}, time.Second, []string{"A route"}},
	{"another address", []string{"A: ip addr add 10.77.0.9/24 dev wire"},
		[]string{"A: ip addr del 10.77.0.9/24 dev wire"}, time.Second, nil},
}

// run happens, and waits until it was noticed and all is fast again.
func (e event) run(t *testing.T, tb *testbed.Testbed, s *streams) {
	s.urgeFast(t, tb)
	moved(t, tb, fast, tb.A, tb.B)
	before := map[string]*adminapi.Stats{"A": stats(t, tb.A), "B": stats(t, tb.B)}
	e.commands(t, tb, e.do)
	time.Sleep(e.hold)
	for _, r := range e.reasons {
		host, reason, _ := strings.Cut(r, " ")
		h, err := tb.Host(host)
		if err != nil {
			t.Fatal(err)
		}
		await(t, "demotions: "+r, func() bool {
			return stats(t, h).Demotions[reason] > before[host].Demotions[reason]
		})
	}
	e.commands(t, tb, e.undo)
	if len(e.reasons) > 0 {
		return // the next one waits until they are fast again
	}
	time.Sleep(3 * time.Second)
	for _, h := range []*testbed.Host{tb.A, tb.B} {
		for reason, n := range stats(t, h).Demotions {
			if n != before[h.Name].Demotions[reason] {
				t.Errorf("host %s demoted: %s", h.Name, reason)
			}
		}
	}
	moved(t, tb, fast, tb.A, tb.B)
}

func (e event) commands(t *testing.T, tb *testbed.Testbed, lines []string) {
	t.Helper()
	for _, line := range lines {
		name, what, _ := strings.Cut(line, ": ")
		h, err := tb.Host(name)
		if err != nil {
			t.Fatal(err)
		}
		command(t, h, strings.ReplaceAll(what, "NAME", testbed.TestName()))
	}
}

// Everything that happens to route and device is noticed for what it is, and
// the streams go on.
func TestEventsUnderStreams(t *testing.T) {
	tb := testbed.ForTest(t, testbed.Options{})
	s := eventStreams(t, tb, 7000)
	for _, e := range events {
		if !t.Run(e.name, func(t *testing.T) { e.run(t, tb, s) }) {
			break
		}
	}
	s.stop()
	s.finish(t)
	for _, h := range []*testbed.Host{tb.A, tb.B} {
		v := stats(t, h)
		t.Logf("host %s: demotions %v, aborted %v, refused %v, %d strays, drops %v", h.Name,
			v.Demotions, v.PromotionsAborted, v.PromotionsRefused, v.Strays, v.Drops)
	}
	if status, err := tb.A.Admin().Status(t.Context()); err != nil || len(status.Interfaces) != 1 ||
		!status.Interfaces[0].Attached || status.Interfaces[0].Lost != 1 {
		t.Errorf("status of host A: %+v, %v", status, err)
	}
	if n := stats(t, tb.B).Strays; n == 0 {
		t.Error("host B counted no strays")
	}
}

// The wire is taken away and made anew: the connections go on in the kernel as
// they would under Linux, and the daemons serve the new devices.
func TestDeviceMadeAnewUnderStreams(t *testing.T) {
	tb := testbed.ForTest(t, testbed.Options{})
	s := eventStreams(t, tb, 7000)
	s.urgeFast(t, tb)
	moved(t, tb, fast, tb.A, tb.B)
	command(t, tb.A, "ip link del wire")
	for _, h := range []*testbed.Host{tb.A, tb.B} {
		await(t, "demotions on host "+h.Name, func() bool {
			// A frame may be refused by the device before its end is told.
			d := stats(t, h).Demotions
			return d["device"]+d["tx_error"]+d["route"] >= streamConns
		})
	}
	command(t, tb.A, "ip link add wire type veth peer name wire netns "+testbed.TestName()+"-B")
	for _, h := range []*testbed.Host{tb.A, tb.B} {
		command(t, h, "ip addr add "+h.Wire+"/24 dev wire")
		command(t, h, "ip link set wire up")
	}
	for _, h := range []*testbed.Host{tb.A, tb.B} {
		await(t, "host "+h.Name+" to serve the new device", func() bool {
			status, err := h.Admin().Status(t.Context())
			return err == nil && status.Interfaces[0].Attached && status.Interfaces[0].Lost > 0
		})
	}
	moved(t, tb, kernel, tb.A, tb.B)
	s.stop()
	s.finish(t)
	next := eventStreams(t, tb, 7001)
	next.urgeFast(t, tb)
	moved(t, tb, fast, tb.A, tb.B)
	next.stop()
	next.finish(t)
}

// rest is what tests/progs/patient.c prints.
type rest struct {
	Resting   bool `json:"resting"`
	Ended     bool `json:"ended"`
	Errno     int  `json:"errno"`
	Ms        int  `json:"ms"`
	Keepalive int  `json:"keepalive"`
	Idle      int  `json:"idle"`
	Interval  int  `json:"interval"`
	Count     int  `json:"count"`
	Timeout   int  `json:"timeout"`
}

// patient is a running client of tests/progs/patient.c.
type patient struct {
	stdin, stdout *os.File
	lines         *bufio.Scanner
}

func startPatient(t *testing.T, tb *testbed.Testbed, port int, etran bool, args ...string) *patient {
	t.Helper()
	start(t, tb.B, testbed.Command{Args: []string{program(t, "patient"), "--server", "--port", strconv.Itoa(port)}, Stdout: io.Discard})
	awaitListening(t, tb.B, port)
	in, stdin := pipe(t)
	stdout, out := pipe(t)
	start(t, tb.A, testbed.Command{Etran: etran, Stdin: in, Stdout: out,
		Args: append([]string{program(t, "patient"), "--host", testbed.WireB, "--port", strconv.Itoa(port)}, args...)})
	return &patient{stdin, stdout, bufio.NewScanner(stdout)}
}

func (p *patient) tell(t *testing.T) {
	t.Helper()
	if _, err := p.stdin.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
}

func (p *patient) next(t *testing.T) (r rest) {
	t.Helper()
	if err := p.stdout.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if !p.lines.Scan() {
		t.Fatalf("the program says nothing: %v", p.lines.Err())
	}
	if err := json.Unmarshal(p.lines.Bytes(), &r); err != nil {
		t.Fatalf("%q: %v", p.lines.Bytes(), err)
	}
	return r
}

// Keepalive and user timeout are the program's, whichever path its connection
// is on. The kernel on the same machine is the second opinion.
func TestPatience(t *testing.T) {
	tb := testbed.ForTest(t, testbed.Options{})
	for i, c := range []struct {
		name  string
		args  []string
		alive bool
	}{
		{"keepalive, peer alive", []string{"--keepalive", "1/1/3"}, true},
		{"keepalive, peer dead", []string{"--keepalive", "1/1/3"}, false},
		{"user timeout, peer dead", []string{"--timeout", "3000", "--send"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var took [2]rest
			onKernel := startPatient(t, tb, 7200+i, false, c.args...)
			onFast := startPatient(t, tb, 7300+i, true, c.args...)
			urgeFast(t, tb.A, 0, 1)
			moved(t, tb, fast, tb.A)
			before := stats(t, tb.A)
			for _, p := range []*patient{onKernel, onFast} {
				p.tell(t)
				r := p.next(t)
				if !r.Resting || c.args[0] == "--keepalive" && (r.Keepalive != 1 || r.Idle != 1 || r.Interval != 1 || r.Count != 3) ||
					c.args[0] == "--timeout" && r.Timeout != 3000 {
					t.Errorf("while it rests: %+v", r)
				}
			}
			if c.alive {
				time.Sleep(11 * time.Second)
				onKernel.tell(t)
				onFast.tell(t)
			} else {
				// B is silent, but A's link is up.
				command(t, tb.B, "ip route add blackhole 10.77.0.1/32")
			}
			took[0], took[1] = onKernel.next(t), onFast.next(t)
			if !c.alive {
				command(t, tb.B, "ip route del blackhole 10.77.0.1/32")
			}
			t.Logf("demotions: %v", difference(stats(t, tb.A).Demotions, before.Demotions))
			t.Logf("kernel %+v, eTran %+v", took[0], took[1])
			for name, r := range map[string]rest{"kernel": took[0], "eTran": took[1]} {
				if r.Ended == c.alive || !c.alive && syscall.Errno(r.Errno) != syscall.ETIMEDOUT {
					t.Errorf("%s: %+v", name, r)
				}
			}
			// The same class: what the fast path's watch adds, and a busy
			// machine.
			if k, e := took[0].Ms, took[1].Ms; !c.alive && (e < k-1500 || e > 2*k+3000) {
				t.Errorf("the kernel took %d ms, eTran %d ms", k, e)
			}
		})
	}
}
