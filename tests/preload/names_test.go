// SPDX-License-Identifier: Apache-2.0

package preload_test

import (
	"bufio"
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/etran-go/etran/runtime/adminapi"
	"github.com/etran-go/etran/tests/internal/testbed"
)

// stayFast are the names after whose use the connection is still fast. After
// others it need not be, or is gone.
var stayFast = strings.Fields(`
	__connect __poll __poll_chk __ppoll_chk __read __read_chk __recv_chk __recvfrom_chk __select __send
	__write accept accept4 bind connect epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2
	epoll_wait getpeername getsockname getsockopt ioctl listen poll ppoll preadv2 preadv64v2 pselect
	pwritev2 pwritev64v2 read readv recv recvfrom recvmsg select send sendmsg sendto sigaction __sigaction
	signal bsd_signal sysv_signal __sysv_signal sigset siginterrupt socket vfork __vfork __clone write writev`)

// closes are the names that end the connection, which the peer must see.
var closes = []string{"__close", "close", "close_range", "closefrom", "shutdown"}

// indistinguishable are names without which a program fares the same here: what
// they are for takes a race, or another function makes up for them. For these
// only the binding is tested.
var indistinguishable = []string{"bind", "daemon", "getpeername", "getsockname", "listen"}

// A nameTest is one use of one name by one process.
type nameTest struct {
	name     string
	lib      string // in place of the build's
	check    bool   // that the name leads to the library
	patience time.Duration

	by    []string // runs the program, which then has the library from there
	plain bool     // over the wire without daemons
	env   []string
}

// TestNames: every libc name that the library takes over does what it should on
// a connection that is on the fast path. The peer is a kernel socket.
func TestNames(t *testing.T) {
	tb := testbed.ForTest(t, testbed.Options{})
	for _, name := range goldenNames(t) {
		t.Run(name, func(t *testing.T) {
			n := nameTest{name: name, lib: build(t, "libetran.so"), check: true, patience: time.Minute}
			if err := n.run(t, tb); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestBeyondNames: what is not the matter of a single name.
func TestBeyondNames(t *testing.T) {
	tb := testbed.ForTest(t, testbed.Options{})
	for _, name := range []string{"rights", "threads"} {
		t.Run(name, func(t *testing.T) {
			n := nameTest{name: name, lib: build(t, "libetran.so"), patience: time.Minute}
			if err := n.run(t, tb); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestNamesAreNeeded: TestNames would notice each name that is missing. In a
// copy of the library one name after another is hidden from the dynamic linker.
func TestNamesAreNeeded(t *testing.T) {
	if os.Getenv("ETRAN_LONG") == "" {
		t.Skip("takes minutes: set ETRAN_LONG")
	}
	tb := testbed.ForTest(t, testbed.Options{})
	for _, name := range goldenNames(t) {
		t.Run(name, func(t *testing.T) {
			n := nameTest{
				name: name, lib: hide(t, name), patience: 3 * time.Second,
				check: slices.Contains(indistinguishable, name),
			}
			if err := n.run(t, tb); err == nil {
				t.Error("not missed")
			} else {
				t.Log(err)
			}
		})
	}
}

func goldenNames(t *testing.T) []string {
	t.Helper()
	list, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(list))
}

// run makes a connection, waits until it is fast, and has the name used.
func (n *nameTest) run(t *testing.T, tb *testbed.Testbed) error {
	ctx, cancel := context.WithTimeoutCause(t.Context(), n.patience, errors.New("it took too long"))
	defer cancel()
	before, err := tb.A.Admin().Stats(ctx)
	if err != nil {
		return err
	}
	p, err := n.start(ctx, tb)
	if err != nil {
		return err
	}
	defer p.end()
	if err := p.use(ctx, n.name); err != nil {
		return errors.Join(err, p.complaint())
	}
	after, err := tb.A.Admin().Stats(ctx)
	if err != nil {
		return err
	}
	if after.Seized != before.Seized {
		return errors.New("the daemon had to demote without the program")
	}
	if slices.Contains(closes, n.name) && after.ClosedBehind != before.ClosedBehind {
		return errors.New("the library did not see the end")
	}
	return errors.Join(p.finish(ctx), p.complaint())
}

// partner is the program with what the test has of it.
type partner struct {
	host    *testbed.Host
	process *testbed.Process
	stdin   io.WriteCloser
	lines   chan string
	stderr  *bytes.Buffer
	conn    net.Conn
	eof     chan struct{} // closed at the end of the connection
}

func (n *nameTest) start(ctx context.Context, tb *testbed.Testbed) (*partner, error) {
	address := tb.B.Wire
	if n.plain {
		address = tb.B.Plain
	}
	var listener net.Listener
	err := tb.B.Do(func() (err error) {
		listener, err = net.Listen("tcp4", net.JoinHostPort(address, "0"))
		return err
	})
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		return nil, err
	}
	prog, err := filepath.Abs("../../build/progs/symbols")
	if err != nil {
		return nil, err
	}
	args := append(slices.Clone(n.by), prog, n.name, address, port)
	if n.check {
		args = append(args, "check")
	}
	in, stdin, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	out, stdout, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p := &partner{host: tb.A, stdin: stdin, lines: make(chan string, 8), stderr: new(bytes.Buffer), eof: make(chan struct{})}
	go func() {
		defer close(p.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			p.lines <- s.Text()
		}
	}()
	p.process, err = tb.A.Start(testbed.Command{
		Args: args, Env: append(n.env, "LD_PRELOAD="+n.lib),
		Stdin: in, Stdout: stdout, Stderr: p.stderr,
	})
	in.Close()
	stdout.Close()
	if err != nil {
		return nil, err
	}
	if err := p.meet(ctx, tb, listener); err != nil {
		p.end()
		return nil, errors.Join(err, p.complaint())
	}
	go p.echo()
	return p, nil
}

// meet takes the program's connection, or connects to where it says.
func (p *partner) meet(ctx context.Context, tb *testbed.Testbed, listener net.Listener) error {
	accepted := make(chan net.Conn, 1)
	go func() {
		if c, err := listener.Accept(); err == nil {
			accepted <- c
		}
	}()
	select {
	case p.conn = <-accepted:
		return nil
	case line := <-p.lines:
		port, ok := strings.CutPrefix(line, "port ")
		if !ok {
			return fmt.Errorf("the program said %q", line)
		}
		return tb.B.Do(func() (err error) {
			p.conn, err = net.Dial("tcp4", net.JoinHostPort(tb.A.Wire, port))
			return err
		})
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (p *partner) echo() {
	defer close(p.eof)
	_, _ = io.Copy(p.conn, p.conn) // an error is seen by the program
	_ = p.conn.(*net.TCPConn).CloseWrite()
}

// path is the way of the connection on the program's host.
func (p *partner) path(ctx context.Context) (adminapi.Conn, error) {
	list, err := p.host.Admin().SS(ctx)
	if err != nil {
		return adminapi.Conn{}, err
	}
	i := slices.IndexFunc(list.Conns, func(c adminapi.Conn) bool { return c.Remote == p.conn.LocalAddr().String() })
	if i < 0 {
		return adminapi.Conn{}, nil
	}
	return list.Conns[i], nil
}

// use waits until the connection is fast, has the name used, and looks at what
// became of the connection.
func (p *partner) use(ctx context.Context, name string) error {
	for {
		conn, err := p.path(ctx)
		if err != nil {
			return err
		}
		if conn.Path == adminapi.PathFast {
			break
		}
		select {
		case <-p.process.Done():
			return errors.New("the program ended")
		case <-ctx.Done():
			return fmt.Errorf("the connection does not become fast: %+v", conn)
		case <-time.After(5 * time.Millisecond):
		}
	}
	if _, err := io.WriteString(p.stdin, "\n"); err != nil {
		return err
	}
	select {
	case line, ok := <-p.lines:
		if !ok || line != "done" {
			return fmt.Errorf("the program said %q", line)
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if slices.Contains(stayFast, name) {
		if conn, err := p.path(ctx); err != nil || conn.Path != adminapi.PathFast {
			return fmt.Errorf("the connection was demoted: %+v, %v", conn, err)
		}
	}
	if slices.Contains(closes, name) {
		select {
		case <-p.eof:
		case <-ctx.Done():
			return errors.New("the peer does not see the end")
		}
	}
	return nil
}

// finish lets the program end. If its connection is fast, that is a death.
func (p *partner) finish(ctx context.Context) error {
	p.stdin.Close()
	return p.process.Wait(ctx)
}

func (p *partner) end() {
	p.stdin.Close()
	p.process.Stop()
	if p.conn != nil {
		p.conn.Close()
	}
}

// complaint is what an ended program wrote to standard error.
func (p *partner) complaint() error {
	select {
	case <-p.process.Done():
		if p.stderr.Len() > 0 {
			return errors.New(strconv.Quote(p.stderr.String()))
		}
	default:
	}
	return nil
}

// hide returns a copy of the library without one of its names: a symbol without
// a value and a section is one that the dynamic linker looks for elsewhere.
func hide(t *testing.T, name string) string {
	t.Helper()
	image, err := os.ReadFile(build(t, "libetran.so"))
	if err != nil {
		t.Fatal(err)
	}
	lib, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	symbols, err := lib.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(symbols, func(s elf.Symbol) bool { return s.Name == name && s.Section != elf.SHN_UNDEF })
	if i < 0 {
		t.Fatalf("the library has no %s", name)
	}
	// DynamicSymbols leaves out the first, empty one.
	entry := image[lib.Section(".dynsym").Offset+uint64(i+1)*elf.Sym64Size:]
	const section, value = 6, 8
	binary.LittleEndian.PutUint16(entry[section:], uint16(elf.SHN_UNDEF))
	binary.LittleEndian.PutUint64(entry[value:], 0)
	path := filepath.Join(t.TempDir(), "libetran.so")
	if err := os.WriteFile(path, image, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}
