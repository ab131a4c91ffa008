// SPDX-License-Identifier: Apache-2.0

package system

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"

	"github.com/etran-go/etran/runtime/adminapi"
	"github.com/etran-go/etran/tests/internal/testbed"
)

// firewall is what an operator's ruleset looks like, in both directions. What
// it drops is counted; nothing may be.
const firewall = `
table inet firewall {
	counter invalid { }
	counter refused { }
	chain common {
		ct state invalid counter name invalid drop
		iif lo accept
		oif lo accept
		ct state established,related accept
		tcp dport 6379 ct state new accept
		ip version 4 counter name refused drop
	}
	chain in {
		type filter hook input priority 0; policy drop;
		jump common
	}
	chain out {
		type filter hook output priority 0; policy drop;
		jump common
	}
}
`

func nft(t *testing.T, h *testbed.Host, rules string) {
	t.Helper()
	run(t, h, testbed.Command{Args: []string{"nft", "-f", "-"}, Stdin: strings.NewReader(rules)})
}

// counted reads the packets that the named counters of a host's rules saw.
func counted(t *testing.T, h *testbed.Host) map[string]uint64 {
	t.Helper()
	var list struct {
		Nftables []struct {
			Counter *struct {
				Name    string `json:"name"`
				Packets uint64 `json:"packets"`
			} `json:"counter"`
		} `json:"nftables"`
	}
	out := run(t, h, testbed.Command{Args: []string{"nft", "-j", "list", "counters"}})
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("nft printed %q: %v", out, err)
	}
	packets := map[string]uint64{}
	for _, object := range list.Nftables {
		if object.Counter != nil {
			packets[object.Counter.Name] = object.Counter.Packets
		}
	}
	return packets
}

// establishedTimeout sets how long connection tracking of a host remembers a
// connection without packets.
func establishedTimeout(t *testing.T, h *testbed.Host, timeout time.Duration) {
	t.Helper()
	err := h.Do(func() error {
		return os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established",
			strconv.AppendInt(nil, int64(timeout/time.Second), 10), 0)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// withFirewall makes a testbed whose hosts have the firewall, and checks that
// it dropped nothing when the test ends.
func withFirewall(t *testing.T) *testbed.Testbed {
	t.Helper()
	tb := testbed.ForTest(t, testbed.Options{})
	for _, h := range []*testbed.Host{tb.A, tb.B} {
		nft(t, h, firewall)
	}
	return tb
}

func droppedNothing(t *testing.T, tb *testbed.Testbed) {
	t.Helper()
	for _, h := range []*testbed.Host{tb.A, tb.B} {
		if packets := counted(t, h); packets["invalid"] != 0 || packets["refused"] != 0 {
			t.Errorf("the firewall of host %s dropped %v", h.Name, packets)
		}
	}
}

// A whole benchmark through both hosts' firewalls while connections change
// their path at random on either host: no error, no stall, nothing invalid.
func TestFirewallWhileSwitching(t *testing.T) {
	tb := withFirewall(t)
	serve(t, tb.B, true)
	a, b := stats(t, tb.A), stats(t, tb.B)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		switchAtRandom(t.Context(), tb, stop)
	}()
	slowest, runs := 0.0, 0
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end); runs++ {
		begin := time.Now()
		out := run(t, tb.A, testbed.Command{Etran: true, CPUs: []int{clientCPU},
			Args: []string{"redis-benchmark", "-h", testbed.WireB, "-c", "50", "-n", "20000",
				"-d", "1000", "-t", "get,set,incr,mset", "--csv"}})
		slowest = max(slowest, slowestCall(t, out))
		t.Logf("run of %v, longest call %.1f ms", time.Since(begin), slowestCall(t, out))
	}
	close(stop)
	<-done
	t.Logf("%d runs, longest call %.1f ms; A %s; B %s", runs, slowest, switches(t, tb.A, a), switches(t, tb.B, b))
	if slowest > 1000 {
		t.Errorf("a call took %.0f ms", slowest)
	}
	usedFast(t, tb.A, a)
	usedFast(t, tb.B, b)
	droppedNothing(t, tb)
}

// slowestCall reads what redis-benchmark --csv printed: the longest call of any
// test, in milliseconds.
func slowestCall(t *testing.T, csv string) (slowest float64) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(csv), "\n")
	if len(lines) != 5 {
		t.Fatalf("redis-benchmark printed %q", csv)
	}
	for _, line := range lines[1:] {
		fields := strings.Split(line, ",")
		ms, err := strconv.ParseFloat(strings.Trim(fields[len(fields)-1], `"`), 64)
		if err != nil {
			t.Fatalf("redis-benchmark printed %q: %v", line, err)
		}
		slowest = max(slowest, ms)
	}
	return slowest
}

// switches tells how many promotions and demotions a host made since before.
func switches(t *testing.T, h *testbed.Host, before *adminapi.Stats) string {
	t.Helper()
	now := stats(t, h)
	demotions := maps.Clone(now.Demotions)
	for reason, n := range before.Demotions {
		demotions[reason] -= n
	}
	if now.Promotions == before.Promotions || demotions["request"] == 0 {
		t.Errorf("host %s did not switch: %d promotions, demotions %v", h.Name,
			now.Promotions-before.Promotions, demotions)
	}
	return fmt.Sprintf("%d promotions, demotions %v", now.Promotions-before.Promotions, demotions)
}

// prompt is a redis-cli that is typed into.
type prompt struct {
	t     *testing.T
	in    io.Writer
	lines chan string
	// local is the address of its connection.
	local string
}

func startPrompt(t *testing.T, tb *testbed.Testbed) *prompt {
	t.Helper()
	in, typed := pipe(t)
	printed, out := pipe(t)
	start(t, tb.A, testbed.Command{Etran: true, Args: []string{"redis-cli", "-h", testbed.WireB}, Stdin: in, Stdout: out})
	p := &prompt{t: t, in: typed, lines: make(chan string, 1000)}
	go func() {
		for lines := bufio.NewScanner(printed); lines.Scan(); {
			p.lines <- lines.Text()
		}
	}()
	p.send("CLIENT ID")
	id := p.line(patience)
	for _, line := range strings.Split(run(t, tb.B, testbed.Command{Args: []string{"redis-cli", "CLIENT", "LIST"}}), "\n") {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "id="+id {
			p.local = strings.TrimPrefix(fields[1], "addr=")
		}
	}
	if p.local == "" {
		t.Fatalf("Redis does not know client %s", id)
	}
	return p
}

// pipe is one of files, which a program gets without a goroutine in between.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

func (p *prompt) send(line string) {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.in, line); err != nil {
		p.t.Fatal(err)
	}
}

// line returns the next line of the answer, "" if none comes in time.
func (p *prompt) line(limit time.Duration) string {
	select {
	case line := <-p.lines:
		return line
	case <-time.After(limit):
		return ""
	}
}

func (p *prompt) expect(want string) {
	p.t.Helper()
	if got := p.line(patience); got != want {
		p.t.Fatalf("redis-cli printed %.100q, want %.100q", got, want)
	}
}

// warm types until both hosts have the connection on the fast path, and then
// moves more octets than any window, so that connection tracking, which sees
// none of them, is far behind.
func (p *prompt) warm(tb *testbed.Testbed) {
	p.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		for range 30 {
			p.send("PING")
			p.expect("PONG")
		}
		if paths(p.t, tb.A)[serverAddress].Path == adminapi.PathFast &&
			paths(p.t, tb.B)[p.local].Path == adminapi.PathFast {
			break
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("not promoted: A %+v, B %+v", paths(p.t, tb.A), paths(p.t, tb.B))
		}
	}
	const chunk = 50_000
	value := strings.Repeat("v", chunk)
	p.send("SET value " + value)
	p.expect("OK")
	for range 100 {
		p.send("ECHO " + value)
		p.expect(value)
	}
}

// A promoted connection that is silent for far longer than connection tracking
// remembers one is still known, on both hosts; and after its demotion, on
// either host or both, either end may speak first.
func TestFirewallAfterSilence(t *testing.T) {
	const remembered = 3 * time.Second
	// The first time. After 15 seconds redis-cli's keepalive wants the kernel.
	silence := 4 * remembered
	tb := withFirewall(t)
	for _, h := range []*testbed.Host{tb.A, tb.B} {
		establishedTimeout(t, h, remembered)
	}
	serve(t, tb.B, true)
	p := startPrompt(t, tb)
	for _, demoted := range [][]*testbed.Host{{tb.A, tb.B}, {tb.A}, {tb.B}} {
		for _, speaker := range []string{"server", "client"} {
			p.warm(tb)
			if speaker == "server" {
				p.send("BLPOP queue 0")
			}
			stayKnown(t, tb, p.local, silence)
			silence = time.Second
			for _, h := range demoted {
				demoteAll(t, h)
			}
			if speaker == "server" {
				p.awaitKernel(tb, demoted)
			}
			speak(t, tb, p, speaker)
			p.awaitKernel(tb, demoted)
		}
	}
	droppedNothing(t, tb)
}

// awaitKernel waits until hosts have the connection on the kernel.
func (p *prompt) awaitKernel(tb *testbed.Testbed, hosts []*testbed.Host) {
	p.t.Helper()
	for _, h := range hosts {
		peer := serverAddress
		if h == tb.B {
			peer = p.local
		}
		awaitKernel(p.t, h, peer)
	}
}

// stayKnown waits, while both hosts' connection tracking must know the fast
// connection.
func stayKnown(t *testing.T, tb *testbed.Testbed, client string, silence time.Duration) {
	t.Helper()
	for end := time.Now().Add(silence); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		for _, h := range []*testbed.Host{tb.A, tb.B} {
			e, ok := track(t, h, client, serverAddress)
			if !ok || e.State != nl.TCP_CONNTRACK_ESTABLISHED || !e.Liberal {
				t.Fatalf("host %s tracks the connection as %+v (%v)", h.Name, e, ok)
			}
		}
	}
	if paths(t, tb.A)[serverAddress].Path != adminapi.PathFast || paths(t, tb.B)[client].Path != adminapi.PathFast {
		t.Fatalf("not on the fast path any more: A %+v, B %+v", paths(t, tb.A)[serverAddress], paths(t, tb.B)[client])
	}
}

// speak has one end say something, and makes sure that it arrives at once and
// that the connection then works in both directions.
func speak(t *testing.T, tb *testbed.Testbed, p *prompt, speaker string) {
	t.Helper()
	begin := time.Now()
	if speaker == "server" {
		run(t, tb.B, testbed.Command{Args: []string{"redis-cli", "RPUSH", "queue", "element"}})
		begin = time.Now()
		p.expect("queue")
		p.expect("element")
	} else {
		p.send("ECHO hello")
		p.expect("hello")
	}
	if took := time.Since(begin); took > time.Second {
		t.Errorf("the %s was heard after %v", speaker, took)
	}
	p.send("ECHO again")
	p.expect("again")
}

// The same with window checks as strict as they were: the firewall calls what
// comes after the demotion invalid, and the connection is dead. So the tests
// above can fail.
func TestFirewallNeedsLiberalTracking(t *testing.T) {
	tb := withFirewall(t)
	serve(t, tb.B, true)
	p := startPrompt(t, tb)
	p.warm(tb)
	p.send("BLPOP queue 0")
	hosts := []*testbed.Host{tb.A, tb.B}
	for _, h := range hosts {
		demoteAll(t, h)
	}
	p.awaitKernel(tb, hosts)
	for _, h := range hosts {
		strict(t, h, p.local, serverAddress)
	}
	run(t, tb.B, testbed.Command{Args: []string{"redis-cli", "RPUSH", "queue", "element"}})
	if line := p.line(2 * time.Second); line != "" {
		t.Errorf("redis-cli printed %q through firewalls that should have stopped it", line)
	}
	if a, b := counted(t, tb.A), counted(t, tb.B); a["invalid"]+b["invalid"] == 0 {
		t.Errorf("nothing was invalid: host A dropped %v, host B %v", a, b)
	}
}

// What was told to connection tracking ends with the connection: whichever way
// it ends, the entry knows it, and the next connection between the same ports
// begins with strict checks. A connection that is not promoted has its checks
// back as soon as that is clear.
func TestTrackingEndsWithTheConnection(t *testing.T) {
	tb := withFirewall(t)
	serve(t, tb.B, true)
	for name, end := range map[string]struct {
		linger int
		states []uint8
	}{
		"closed": {-1, []uint8{nl.TCP_CONNTRACK_TIME_WAIT, nl.TCP_CONNTRACK_LAST_ACK}},
		"reset":  {0, []uint8{nl.TCP_CONNTRACK_CLOSE}},
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, tb.A, serverAddress)
			c.setLinger(end.linger)
			if e, ok := track(t, tb.B, c.local(), serverAddress); !ok || e.Liberal {
				t.Errorf("tracked as %+v (%v) at first", e, ok)
			}
			warm(t, tb.B, c)
			value := strings.Repeat("v", 1<<20)
			for range 5 {
				c.text("ECHO", value)
			}
			isFast(t, tb.B, c)
			c.Close()
			// Shorter than the entry would last that did not understand a reset.
			for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
				e, ok := track(t, tb.B, c.local(), serverAddress)
				if !ok || slices.Contains(end.states, e.State) {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("after its end the connection is tracked as %+v", e)
				}
			}
		})
	}
	droppedNothing(t, tb)
}

// Connections whose addresses this host translates stay on the kernel, with
// that reason, and work.
func TestTranslatedConnectionsStayOnTheKernel(t *testing.T) {
	const virtual = "10.96.0.99"
	for _, c := range []struct {
		name     string
		rules    map[string]string // by host
		address  string            // that the client connects to
		refuser  string            // host whose socket has other addresses than the wire
		promoter string            // host whose socket has the wire's
	}{
		{"destination at the client", map[string]string{"A": nat("output", "ip daddr "+virtual+" dnat to "+testbed.WireB)},
			virtual, "A", "B"},
		{"port at the server", map[string]string{"B": nat("prerouting", "tcp dport 6380 redirect to :6379")},
			testbed.WireB + ":6380", "B", "A"},
		{"masquerade at the client", map[string]string{"A": nat("postrouting", "tcp dport 6379 masquerade to :30000-30999")},
			testbed.WireB, "A", "B"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tb := testbed.ForTest(t, testbed.Options{})
			run(t, tb.A, testbed.Command{Args: []string{"ip", "route", "add", virtual, "via", testbed.WireB}})
			serve(t, tb.B, true)
			for name, rules := range c.rules {
				h, err := tb.Host(name)
				if err != nil {
					t.Fatal(err)
				}
				nft(t, h, rules)
			}
			refuser, promoter := tb.A, tb.B
			if c.refuser == "B" {
				refuser, promoter = tb.B, tb.A
			}
			host, port, _ := strings.Cut(c.address+":6379", ":")
			port, _, _ = strings.Cut(port, ":")
			before, other := stats(t, refuser), stats(t, promoter)
			verifyAt(t, tb, host, port)
			now := stats(t, refuser)
			if now.PromotionsRefused["nat"] == before.PromotionsRefused["nat"] {
				t.Errorf("host %s refused %v", refuser.Name, now.PromotionsRefused)
			}
			if moved := fast(t, refuser, before); moved != 0 || kernel(t, refuser, before) == 0 {
				t.Errorf("host %s moved %d bytes on the fast path, promotions %d",
					refuser.Name, moved, now.Promotions-before.Promotions)
			}
			// The other end has the wire's addresses and is not concerned.
			usedFast(t, promoter, other)
		})
	}
}

// nat is a ruleset with one rule.
func nat(hook, rule string) string {
	return "table ip nat {\nchain " + hook + " {\ntype nat hook " + hook + " priority 0\n" + rule + "\n}\n}\n"
}

// verifyAt is verify for another address of the server, or another load.
func verifyAt(t *testing.T, tb *testbed.Testbed, host, port string, load ...string) {
	t.Helper()
	if load == nil {
		// Not by time: a busy machine needs it for less.
		load = []string{"--connections", "8", "--ops", "8000", "--max-value", "20000"}
	}
	var v verified
	runJSON(t, tb.A, testbed.Command{Etran: true, CPUs: []int{clientCPU},
		Args: append([]string{program(t, "verify"), "--host", host, "--port", port}, load...)}, time.Minute, &v)
	if v.Errors != 0 || v.Mismatches != 0 || v.Ops < 100 {
		t.Errorf("verify: %+v", v)
	}
}

// A connection that an IPsec policy applies to stays on the kernel, with that
// reason. This one lets segments pass in the clear for want of a key, as long
// as the kernel is asked.
func TestConnectionsUnderIPsecStayOnTheKernel(t *testing.T) {
	tb := testbed.ForTest(t, testbed.Options{})
	run(t, tb.B, testbed.Command{Args: strings.Fields("ip xfrm policy add src " + testbed.WireB + " dst " + testbed.WireA +
		" dir out tmpl proto esp mode transport level use")})
	serve(t, tb.B, true)
	a, b := stats(t, tb.A), stats(t, tb.B)
	verifyAt(t, tb, testbed.WireB, "6379")
	if now := stats(t, tb.B); now.PromotionsRefused["ipsec"] == b.PromotionsRefused["ipsec"] || now.Promotions != b.Promotions {
		t.Errorf("host B refused %v and promoted %d", now.PromotionsRefused, now.Promotions)
	}
	usedFast(t, tb.A, a)
}

// A tunnel's inner connection has a device of its own, which nobody serves: it
// stays on the kernel. The tunnel's packets pass the served device.
func TestTunnelledConnectionsStayOnTheKernel(t *testing.T) {
	tb := testbed.ForTest(t, testbed.Options{})
	inner := map[*testbed.Host]string{tb.A: "10.79.0.1", tb.B: "10.79.0.2"}
	for h, address := range inner {
		peer := testbed.WireA
		if h == tb.A {
			peer = testbed.WireB
		}
		for _, args := range []string{
			"link add tunnel type vxlan id 7 remote " + peer + " dev wire dstport 4789",
			"address add " + address + "/24 dev tunnel",
			"link set tunnel up",
		} {
			run(t, h, testbed.Command{Args: append([]string{"ip"}, strings.Fields(args)...)})
		}
	}
	serve(t, tb.B, true)
	a, b := stats(t, tb.A), stats(t, tb.B)
	verifyAt(t, tb, inner[tb.B], "6379")
	for h, before := range map[*testbed.Host]*adminapi.Stats{tb.A: a, tb.B: b} {
		now := stats(t, h)
		if now.PromotionsRefused["no_device"] == before.PromotionsRefused["no_device"] || now.Promotions != before.Promotions {
			t.Errorf("host %s refused %v and promoted %d", h.Name, now.PromotionsRefused, now.Promotions)
		}
	}
}
