// SPDX-License-Identifier: Apache-2.0

package system

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/adminapi"
	"github.com/etran-go/etran/tests/adversary"
	"github.com/etran-go/etran/tests/internal/testbed"
)

const (
	hostileUID = 65534
	victimUID  = 1001
)

// mostThreads is what the daemon may take for one user: each session waits in
// a thread, each application has some for its requests, and threads stay.
const mostThreads = 4*abi.MaxApps + 100

// attackSeconds is how long an attack goes on that has no end of its own.
func attackSeconds() string {
	if long() > 0 {
		return strconv.Itoa(20 * long())
	}
	return "0.5"
}

// attacked is one line of the hostile program.
type attacked struct {
	Attack   string `json:"attack"`
	Tries    uint64 `json:"tries"`
	Breaches uint   `json:"breaches"`
	Told     string `json:"told"`
}

// A siege is a testbed whose host A has a hostile program. Host B has no
// daemon, so that its kernel is the peer of everything and its wire can be
// watched.
type siege struct {
	*testing.T
	tb    *testbed.Testbed
	echo  string // address
	judge *adversary.Judge
	pid   int // of the daemon
	start usage
	port  int // of the victims, counting up

	answers []time.Duration // of the daemon
	most    map[uint32]int  // applications of each user at a time
	watch   sync.WaitGroup
	stop    chan struct{}
}

// usage is what a process has taken.
type usage struct{ descriptors, threads, kilobytes int }

func newSiege(t *testing.T) *siege {
	t.Helper()
	s := &siege{T: t, tb: testbed.ForTest(t, testbed.Options{}), port: 7000,
		most: map[uint32]int{}, stop: make(chan struct{})}
	if err := s.tb.B.StopDaemon(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.echo = serveEcho(t, s.tb.B)
	s.judge = newJudge(t, s.tb)
	status, err := s.tb.A.Admin().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.pid, s.start = status.Pid, used(t, status.Pid)
	s.watch.Go(s.askDaemon)
	return s
}

// newJudge watches at host B what host A sends by eTran's wire.
func newJudge(t *testing.T, tb *testbed.Testbed) (j *adversary.Judge) {
	t.Helper()
	var macs [2][6]byte
	for i, h := range []*testbed.Host{tb.A, tb.B} {
		err := h.Do(func() error {
			link, err := net.InterfaceByName(testbed.WireInterface)
			if err == nil {
				copy(macs[i][:], link.HardwareAddr)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	err := tb.B.Do(func() error {
		link, err := net.InterfaceByName(testbed.WireInterface)
		if err != nil {
			return err
		}
		j, err = adversary.NewJudge(link.Index, netip.MustParseAddr(testbed.WireA),
			netip.MustParseAddr(testbed.WireB), macs[0], macs[1])
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// serveEcho sends back what it gets. After "stall" it reads no more.
func serveEcho(t *testing.T, h *testbed.Host) string {
	t.Helper()
	var l net.Listener
	if err := h.Do(func() (err error) { l, err = net.Listen("tcp4", h.Wire+":0"); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 4096)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					if string(buf[:n]) == "stall" {
						<-t.Context().Done()
						return
					}
					if _, err := c.Write(buf[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

func used(t *testing.T, pid int) (u usage) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/", pid)
	fds, err := os.ReadDir(dir + "fd")
	if err != nil {
		t.Fatal(err)
	}
	u.descriptors = len(fds)
	text, err := os.ReadFile(dir + "status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		_, _ = fmt.Sscanf(line, "VmRSS: %d", &u.kilobytes)
		_, _ = fmt.Sscanf(line, "Threads: %d", &u.threads)
	}
	return u
}

// askDaemon wants an answer about everything, again and again.
func (s *siege) askDaemon() {
	admin := s.tb.A.Admin()
	defer admin.Close()
	for {
		select {
		case <-s.stop:
			return
		case <-time.After(50 * time.Millisecond):
		}
		began := time.Now()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(s.Context()), 10*time.Second)
		_, err := admin.Stats(ctx)
		if err == nil {
			_, err = admin.SS(ctx)
		}
		if err == nil {
			err = s.countApps(ctx, admin)
		}
		cancel()
		if err != nil {
			s.Errorf("the daemon does not answer: %v", err)
		}
		s.answers = append(s.answers, time.Since(began))
	}
}

func (s *siege) countApps(ctx context.Context, admin *adminapi.Client) error {
	status, err := admin.Status(ctx)
	if err != nil {
		return err
	}
	now := map[uint32]int{}
	for _, a := range status.Apps {
		now[a.Uid]++
		s.most[a.Uid] = max(s.most[a.Uid], now[a.Uid])
	}
	return nil
}

func (s *siege) command(attacks ...string) testbed.Command {
	args := []string{program(s.T, "hostile"), s.tb.A.RunDir, s.echo,
		fmt.Sprintf("%s:%d", testbed.WireA, 7000), attackSeconds(), "1"}
	return testbed.Command{Args: append(args, attacks...), UID: hostileUID}
}

// hostile starts the program; each line of its output goes to the channel.
func (s *siege) hostile(attacks ...string) <-chan attacked {
	s.Helper()
	r, w := io.Pipe()
	c := s.command(attacks...)
	c.Stdout = w
	p := start(s.T, s.tb.A, c)
	lines := make(chan attacked)
	go func() {
		<-p.Done()
		if err := p.Wait(context.Background()); err != nil {
			s.Logf("the hostile program ended: %v", err)
		}
		w.Close()
	}()
	go func() {
		defer close(lines)
		for in := bufio.NewScanner(r); in.Scan(); {
			var a attacked
			if err := json.Unmarshal(in.Bytes(), &a); err != nil {
				s.Errorf("hostile program: %v: %s", err, in.Bytes())
			}
			lines <- a
		}
	}()
	return lines
}

// streams runs another user's content-checked streams once; false if they were
// not as they must be.
func (s *siege) streams(seconds string) {
	s.Helper()
	s.port++
	startStreams(s.T, s.tb, streamEnds{client: true, port: s.port, uid: victimUID, unpinned: true},
		"--connections", "4", "--seconds", seconds, "--rate", "500000").finish(s.T)
}

// report fails for every breach, and checks that all attacks have run.
func (s *siege) report(lines <-chan attacked, attacks ...string) {
	s.Helper()
	n := 0
	for a := range lines {
		n++
		s.Logf("%-13s %9d tries: %s", a.Attack, a.Tries, a.Told)
		if a.Breaches > 0 {
			s.Errorf("%s: %d breaches: %s", a.Attack, a.Breaches, a.Told)
		}
	}
	if n != len(attacks) {
		s.Errorf("%d of %d attacks were reported", n, len(attacks))
	}
}

// end says what the siege has done to the daemon and to the wire.
func (s *siege) end() {
	s.Helper()
	close(s.stop)
	s.watch.Wait()
	status, err := s.tb.A.Admin().Status(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	if status.Pid != s.pid {
		s.Errorf("the daemon was process %d and is %d", s.pid, status.Pid)
	}
	slices.Sort(s.answers)
	n := len(s.answers)
	most, p95 := s.answers[n-1], s.answers[n*95/100]
	// This process has no more priority than the hostile one.
	if p95 > time.Second || most > 5*time.Second {
		s.Errorf("the daemon took %v to answer, p95 %v", most, p95)
	}
	now := s.settled()
	s.Logf("daemon: before %+v, after %+v; %d answers, p95 %v, slowest %v", s.start, now, n, p95, most)
	if now.descriptors > s.start.descriptors+10 || now.threads > s.start.threads+mostThreads ||
		now.kilobytes > s.start.kilobytes+100<<10 {
		s.Errorf("the daemon has grown: before %+v, after %+v", s.start, now)
	}
	// One user cannot take every place, and another gets his.
	s.Logf("applications at a time, by user: %v", s.most)
	if s.most[victimUID] == 0 || s.most[hostileUID] > abi.MaxApps*3/4 {
		s.Errorf("applications at a time, by user: %v", s.most)
	}
	v := s.judge.Verdict()
	s.Logf("wire: %d frames, %d segments judged, %d with a wrong checksum, %d lost, %d wrong",
		v.Frames, v.Segments, v.BadSums, v.Lost, v.Wrong)
	for _, f := range v.Faults {
		s.Errorf("on the wire: %s", f)
	}
	if v.Segments == 0 {
		s.Error("nothing was judged")
	}
}

// settled waits until the daemon has given back what dead programs had.
func (s *siege) settled() (u usage) {
	for range 150 {
		if u = used(s.T, s.pid); u.descriptors <= s.start.descriptors+10 {
			return u
		}
		time.Sleep(100 * time.Millisecond)
	}
	links, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.pid))
	for _, l := range links {
		to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", s.pid, l.Name()))
		s.Logf("descriptor %s: %s", l.Name(), to)
	}
	return u
}

// A program that has the device's queues, and with them every handle that an
// application can get.
func TestHostileOwner(t *testing.T) {
	s := newSiege(t)
	attacks := []string{"tap-frames", "tap-flood", "tap-ioctls", "map", "xsk-rings", "arena-words", "stale-tuple",
		"stale-frames", "repair-race", "slots", "quotas", "nonsense", "memory", "lingering"}
	before := stats(t, s.tb.A)
	lines := s.hostile(attacks...)
	s.awaitDirect()
	s.streamsWhile("2", func() { s.report(lines, attacks...) })
	if n := stats(t, s.tb.A).Drops["ring_broken"] - before.Drops["ring_broken"]; n == 0 {
		t.Error("no frame was kept from a spoilt ring")
	}
	s.end()
}

// A hostile program dies in the middle of what it does.
func TestHostileDeaths(t *testing.T) {
	s := newSiege(t)
	attacks := []string{"tap-frames", "xsk-rings", "arena-words", "repair-race", "slots", "stale-tuple", "memory", "quotas"}
	s.streamsWhile("2", func() {
		for i, attack := range attacks {
			p := start(t, s.tb.A, s.command(attack, attack, attack))
			time.Sleep(time.Duration(100+137*i%500) * time.Millisecond)
			if err := p.Signal(syscall.SIGKILL); err != nil {
				t.Logf("%s: %v", attack, err)
			}
			<-p.Done()
		}
	})
	s.end()
}

// streamsWhile runs the victim's streams, again and again, until f has
// returned.
func (s *siege) streamsWhile(seconds string, f func()) {
	s.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	for ended := false; !ended; {
		s.streams(seconds)
		select {
		case <-done:
			ended = true
		default:
		}
	}
}

// awaitDirect waits until some application has the queues.
func (s *siege) awaitDirect() {
	s.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		status, err := s.tb.A.Admin().Status(s.Context())
		if err != nil {
			s.Fatal(err)
		}
		for _, a := range status.Apps {
			if a.Direct {
				return
			}
		}
	}
	s.Fatal("nobody has the queues")
}

// A hostile program beside another user's, whose connections are fast.
func TestHostileNeighbour(t *testing.T) {
	s := newSiege(t)
	before := stats(t, s.tb.A)
	attacks := []string{"nonsense", "map", "slots", "arena-words", "sessions", "quotas"}
	s.streamsWhile("3", func() {
		time.Sleep(time.Second) // the victim is to be first
		s.report(s.hostile(attacks...), attacks...)
	})
	if fast(t, s.tb.A, before) == 0 {
		t.Error("the victim's streams were not on the fast path")
	}
	s.end()
}

// =============================================================================
// The network's side
// =============================================================================

// A blind attacker knows, or guesses, everything of a connection but its
// numbers.
type blind struct {
	fd       int // packet socket on the victim's wire
	ethernet []byte
	random   *rand.Rand
}

func newBlind(t *testing.T, tb *testbed.Testbed) *blind {
	t.Helper()
	b := &blind{random: rand.New(rand.NewPCG(1, 2))}
	var to net.HardwareAddr
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(tb.A.Do(func() error {
		link, err := net.InterfaceByName(testbed.WireInterface)
		if err == nil {
			to = link.HardwareAddr
		}
		return err
	}))
	must(tb.B.Do(func() error {
		link, err := net.InterfaceByName(testbed.WireInterface)
		if err != nil {
			return err
		}
		b.ethernet = slices.Concat(to, link.HardwareAddr, []byte{8, 0})
		if b.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.Bind(b.fd, &unix.SockaddrLinklayer{Ifindex: link.Index})
	}))
	t.Cleanup(func() { unix.Close(b.fd) })
	return b
}

// segment is any segment at all that names the connection.
func (b *blind) segment(from, to netip.AddrPort) []byte {
	r := b.random
	flags := []byte{0x02, 0x04, 0x14, 0x11, 0x10, 0x18, 0x30, 0x12, 0x00, byte(r.Uint32())}[r.IntN(10)]
	payload := []int{0, 0, 1, 100, 1400}[r.IntN(5)]
	options := []int{0, 0, 0, 12, 40}[r.IntN(5)]
	f := append([]byte{}, b.ethernet...)
	ip := make([]byte, 20, 1600)
	ip[0], ip[8], ip[9] = 0x45, 64, 6
	if r.IntN(16) == 0 { // IPv4 options
		ip = append(ip, 1, 1, 1, 1)
		ip[0]++
	}
	if r.IntN(16) == 0 { // a fragment
		binary.BigEndian.PutUint16(ip[6:], uint16(r.Uint32())&0x3fff)
	}
	src, dst := from.Addr().As4(), to.Addr().As4()
	copy(ip[12:], src[:])
	copy(ip[16:], dst[:])
	tcp := make([]byte, 20+options+payload)
	binary.BigEndian.PutUint16(tcp, from.Port())
	binary.BigEndian.PutUint16(tcp[2:], to.Port())
	binary.BigEndian.PutUint32(tcp[4:], r.Uint32())
	binary.BigEndian.PutUint32(tcp[8:], r.Uint32())
	tcp[12], tcp[13] = byte(5+options/4)<<4, flags
	binary.BigEndian.PutUint16(tcp[14:], uint16(r.Uint32()))
	binary.BigEndian.PutUint16(tcp[18:], uint16(r.Uint32()))
	if options == 12 { // timestamps
		copy(tcp[20:], []byte{1, 1, 8, 10})
		binary.BigEndian.PutUint64(tcp[24:], r.Uint64())
	}
	total := len(ip) + len(tcp)
	if r.IntN(16) == 0 { // lengths that lie
		total = int(r.Uint32() & 0xffff)
		tcp[12] = byte(r.Uint32())
	}
	binary.BigEndian.PutUint16(ip[2:], uint16(total))
	binary.BigEndian.PutUint16(ip[10:], ^adversary.Checksum(ip))
	pseudo := slices.Concat(ip[12:20], []byte{0, 6, byte(len(tcp) >> 8), byte(len(tcp))})
	binary.BigEndian.PutUint16(tcp[16:], ^adversary.Checksum(append(pseudo, tcp...)))
	return slices.Concat(f, ip, tcp)
}

// attack sends segments for all connections until stop is closed, from their
// peers' addresses and from one that nobody has, and returns how many.
func (b *blind) attack(conns []adminapi.Conn, stop <-chan struct{}) (n int, err error) {
	third := netip.MustParseAddr("10.77.0.3")
	for ; ; n++ {
		select {
		case <-stop:
			return n, nil
		default:
		}
		c := conns[n%len(conns)]
		from, to := netip.MustParseAddrPort(c.Remote), netip.MustParseAddrPort(c.Local)
		if n%8 == 0 {
			from = netip.AddrPortFrom(third, from.Port())
		}
		// ENOBUFS, ENOTCONN: the frame is lost, as frames are.
		_, err := unix.Write(b.fd, b.segment(from, to))
		if err != nil && err != unix.ENOBUFS && err != unix.EAGAIN {
			return n, err
		}
	}
}

// Segments with the right addresses and any numbers, at the highest rate there
// is, do not disturb connections on the fast path, nor drive them from it.
func TestBlindSegments(t *testing.T) {
	tb := testbed.ForTest(t, testbed.Options{})
	streams := startStreams(t, tb, streamEnds{client: true, server: true, unpinned: true},
		"--connections", "4", "--rate", "500000")
	conns := awaitFast(t, tb.A, streams.client.Pid(), 4)
	before := stats(t, tb.A)
	stop := make(chan struct{})
	time.AfterFunc(time.Duration(span(3, 60))*time.Second, func() { close(stop) })
	began := time.Now()
	n, err := newBlind(t, tb).attack(conns, stop)
	if err != nil {
		t.Fatal(err)
	}
	now := stats(t, tb.A)
	took := time.Since(began)
	sent := now.FastSegsOut - before.FastSegsOut
	t.Logf("%d segments in %v; %d sent meanwhile", n, took.Round(time.Millisecond), sent)
	for reason, count := range now.Drops {
		t.Logf("  %s: %d", reason, count-before.Drops[reason])
	}
	// What the streams send, one challenge per connection and millisecond, and
	// one answer to each segment of old data, as Linux does.
	if limit := uint64(took.Milliseconds())*uint64(len(conns))*2 + uint64(n)/4; sent > limit {
		t.Errorf("%d segments sent meanwhile, at most %d were to be expected", sent, limit)
	}
	if rate := now.Drops["rate_limit"] - before.Drops["rate_limit"]; rate == 0 {
		t.Error("no answer was limited: the attack did not reach the program")
	}
	for reason, count := range now.Demotions {
		if count != before.Demotions[reason] {
			t.Errorf("%d connections demoted: %s", count-before.Demotions[reason], reason)
		}
	}
	streams.stop()
	streams.finish(t)
}
