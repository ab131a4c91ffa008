// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/etran-go/etran/runtime/adminapi"
)

// ownName keeps these tests apart from those that use a testbed.
const ownName = "etran-self"

// roleEnv makes the test program play another one.
const roleEnv = "ETRAN_TESTBED_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "daemon":
		exitWith(fakeDaemon())
	case "holder":
		exitWith(holdTestbed())
	default:
		os.Exit(m.Run())
	}
}

func exitWith(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// fakeDaemon answers for the status as etrand does.
func fakeDaemon() error {
	f := flag.NewFlagSet("etrand", flag.ContinueOnError)
	runDir := f.String("run-dir", "", "")
	fail := f.Bool("fail", false, "")
	for _, name := range []string{"interface", "pin-dir", "log-file"} {
		f.String(name, "", "")
	}
	if err := f.Parse(os.Args[1:]); err != nil {
		return err
	}
	if *fail {
		return fmt.Errorf("this kernel is too old")
	}
	socket := filepath.Join(*runDir, adminapi.SocketName)
	if err := os.RemoveAll(socket); err != nil {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	http.HandleFunc("GET "+adminapi.PathStatus, func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(adminapi.Status{Pid: os.Getpid()})
	})
	return http.Serve(l, nil)
}

// fakeBuild is a build directory with a fake etrand.
func fakeBuild(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\n%s=daemon exec %s \"$@\"\n", roleEnv, self)
	if err := os.WriteFile(filepath.Join(dir, "etrand"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// holdTestbed makes a testbed, says so, and waits for its end.
func holdTestbed() error {
	tb, err := New(context.Background(), Options{Name: ownName, NoDaemon: true})
	if err != nil {
		return err
	}
	if _, err := tb.A.Start(Command{Args: []string{"sleep", "1000"}}); err != nil {
		return err
	}
	fmt.Println("up")
	select {}
}

// checkGone fails unless nothing is left of the testbed.
func checkGone(t *testing.T) {
	t.Helper()
	p := pathsOf(ownName)
	for _, path := range []string{p.state, p.pins, p.netns("A"), p.netns("B"), p.netns(middleName)} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is left (%v)", path, err)
		}
	}
}

func TestWires(t *testing.T) {
	tb := ForTest(t, Options{Name: ownName, NoDaemon: true, MTU: 9000, Queues: 2})
	for _, address := range []string{WireB, PlainB} {
		if err := exchange(tb, address); err != nil {
			t.Errorf("talking to %s: %v", address, err)
		}
	}
	for _, h := range []*Host{tb.A, tb.B} {
		for _, name := range []string{WireInterface, PlainInterface} {
			var link netlink.Link
			err := h.Do(func() (err error) { link, err = netlink.LinkByName(name); return err })
			if err != nil {
				t.Fatal(err)
			}
			if a := link.Attrs(); a.MTU != 9000 || a.NumRxQueues != 2 || a.NumTxQueues != 2 {
				t.Errorf("host %s, %s: MTU %d, %d and %d queues", h.Name, name, a.MTU, a.NumRxQueues, a.NumTxQueues)
			}
		}
	}
	if err := tb.Close(); err != nil {
		t.Error(err)
	}
	checkGone(t)
}

// exchange sends some bytes from A to an address of B.
func exchange(tb *Testbed, address string) error {
	var l net.Listener
	err := tb.B.Do(func() (err error) { l, err = net.Listen("tcp4", address+":0"); return err })
	if err != nil {
		return err
	}
	defer l.Close()
	var c net.Conn
	err = tb.A.Do(func() (err error) { c, err = net.Dial("tcp4", l.Addr().String()); return err })
	if err != nil {
		return err
	}
	if _, err := io.WriteString(c, "hello"); err != nil {
		return err
	}
	c.Close()
	s, err := l.Accept()
	if err != nil {
		return err
	}
	defer s.Close()
	got, err := io.ReadAll(s)
	if err == nil && string(got) != "hello" {
		err = fmt.Errorf("received %q", got)
	}
	return err
}

func TestRun(t *testing.T) {
	tb := ForTest(t, Options{Name: ownName, NoDaemon: true})
	got, err := tb.B.Output(t.Context(), Command{
		Args: []string{"sh", "-c", "id -u; id -G; echo $X $ETRAN_RUN_DIR; grep Cpus_allowed_list /proc/self/status; cat /proc/net/dev"},
		Env:  []string{"X=y"}, CPUs: []int{0}, UID: 65534,
	})
	if err != nil {
		t.Fatal(err)
	}
	want := "65534\n65534\ny " + tb.B.RunDir + "\nCpus_allowed_list:\t0\n"
	if !strings.HasPrefix(string(got), want) || !strings.Contains(string(got), "plain:") {
		t.Errorf("got %s, want it to begin with %s", got, want)
	}
	err = tb.A.Run(t.Context(), Command{Args: []string{"sh", "-c", "echo sorry >&2; exit 3"}})
	if err == nil || !strings.Contains(err.Error(), "sorry") || !strings.Contains(err.Error(), "status 3") {
		t.Errorf("a program that fails: %v", err)
	}
	if err := tb.A.Run(t.Context(), Command{Args: []string{"true"}, Etran: true, Env: nil}); err != nil &&
		!strings.Contains(err.Error(), "libetran.so") {
		t.Errorf("under eTran: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := tb.A.Run(ctx, Command{Args: []string{"sleep", "1000"}}); err == nil {
		t.Error("a program that takes too long: no error")
	}
}

func TestCloseEndsDaemonizedPrograms(t *testing.T) {
	tb := ForTest(t, Options{Name: ownName, NoDaemon: true})
	out, err := tb.A.Output(t.Context(), Command{
		// Deaf to SIGTERM, in a session of its own, and its parent is gone.
		Args: []string{"sh", "-c", `setsid sh -c 'trap "" TERM; echo $$; exec >&- 2>&-; while :; do sleep 1; done' &`},
	})
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	proc, err := processOf(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := tb.Close(); err != nil {
		t.Error(err)
	}
	if proc.alive() {
		t.Errorf("process %d survived", pid)
	}
	checkGone(t)
}

func TestDaemon(t *testing.T) {
	tb := ForTest(t, Options{Name: ownName, BuildDir: fakeBuild(t)})
	client := tb.A.Admin()
	defer client.Close()
	first, err := client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := tb.A.StopDaemon(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Status(t.Context()); err == nil {
		t.Error("a stopped daemon answers")
	}
	if err := tb.A.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	second, err := client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if first.Pid == second.Pid {
		t.Errorf("the daemon has pid %d before and after", first.Pid)
	}
	daemon, err := processOf(second.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := tb.Close(); err != nil {
		t.Error(err)
	}
	if daemon.alive() {
		t.Errorf("daemon %d survived", second.Pid)
	}
	checkGone(t)
}

func TestDaemonThatFails(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the testbed needs root")
	}
	tb, err := New(t.Context(), Options{Name: ownName, BuildDir: fakeBuild(t), DaemonArgs: []string{"--fail"}})
	if err == nil {
		tb.Close()
		t.Fatal("no error")
	}
	if !strings.Contains(err.Error(), "this kernel is too old") {
		t.Errorf("the error does not say why: %v", err)
	}
	checkGone(t)
}

// startHolder starts a process that has made a testbed.
func startHolder(t *testing.T) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	holder := exec.Command(self)
	holder.Env = append(os.Environ(), roleEnv+"=holder")
	holder.Stderr = t.Output()
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("up\n"))); err != nil {
		t.Fatalf("the holder did not make a testbed: %v", err)
	}
	return holder
}

func TestInterrupt(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the testbed needs root")
	}
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		holder := startHolder(t)
		if err := holder.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		_ = holder.Wait() // always an error; what kind is next
		if got := holder.ProcessState.Sys().(syscall.WaitStatus); !got.Signaled() || got.Signal() != s {
			t.Errorf("%v: ended with %v", s, holder.ProcessState)
		}
		checkGone(t)
	}
}

func TestStaleTestbedIsCleared(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the testbed needs root")
	}
	holder := startHolder(t)
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = holder.Wait() // the error is the signal
	if _, err := os.Stat(pathsOf(ownName).netns("A")); err != nil {
		t.Fatalf("nothing stale to clear: %v", err)
	}
	tb := ForTest(t, Options{Name: ownName, NoDaemon: true})
	if err := exchange(tb, WireB); err != nil {
		t.Error(err)
	}
}

func TestLockAndOpen(t *testing.T) {
	tb := ForTest(t, Options{Name: ownName, NoDaemon: true})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := Down(ctx, ownName, nil); err == nil {
		t.Error("a testbed in use was taken down")
	}
	other, err := Open(Options{Name: ownName})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	if err := tb.Detach(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Down(t.Context(), ownName, nil); err != nil {
			t.Error(err)
		}
	}
	checkGone(t)
	if other, err := Open(Options{Name: ownName}); err == nil {
		other.Close()
		t.Error("a testbed that is down was opened")
	}
}
