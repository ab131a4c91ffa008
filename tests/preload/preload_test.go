// SPDX-License-Identifier: Apache-2.0

package preload_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A result is what the starter of a program sees of it.
type result struct {
	stdout, stderr string
	exit           int
}

// build returns the path of something that make built.
func build(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("../../build", name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v (run make first)", err)
	}
	return path
}

// run starts a program, preloaded or not; there is no daemon for it to find.
func run(t *testing.T, preload bool, name string, args ...string) result {
	t.Helper()
	env := []string{"ETRAN_RUN_DIR=" + t.TempDir()}
	if preload {
		env = append(env, "LD_PRELOAD="+build(t, "libetran.so"))
	}
	return runEnv(t, env, name, args...)
}

// runEnv starts a program with additions to the environment.
func runEnv(t *testing.T, env []string, name string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = slices.Concat(os.Environ(), []string{"LC_ALL=C"}, env)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v", cmd, err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

func wantSuccess(t *testing.T, got result, stdout string) {
	t.Helper()
	if want := (result{stdout: stdout}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestUnnoticed runs programs that have nothing to do with TCP.
func TestUnnoticed(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"ls", "-la", "/etc"},
		{"ls", "/does/not/exist"},
		{"cat", "/proc/self/limits"},
		{"sh", "-c", "echo $0 $#; exit 7", "a", "b"},
		{"bash", "-c", "echo out; echo err >&2; ulimit -n; trap; exit 3"},
		{"bash", "-c", "ls /proc/self/fd | wc -l; (exit 4) | cat; echo ${PIPESTATUS[0]}"},
		{"bash", "-c", "kill -TERM $$"},
		{"bash", "-c", "yes | head -1; echo ${PIPESTATUS[0]}"},
		{"python3", "-c", "1"},
		{"python3", "-c", "print(1)"},
		{"python3", "-c", "import subprocess; print(subprocess.run(['echo', 'x']).returncode)"},
		{"python3", "-c", "import threading; print(threading.active_count())"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			t.Parallel()
			want := run(t, false, args[0], args[1:]...)
			if got := run(t, true, args[0], args[1:]...); got != want {
				t.Errorf("preloaded: %+v\nwithout:   %+v", got, want)
			}
		})
	}
}

// TestThreads: a process has only the threads it made itself until it uses TCP.
func TestThreads(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"none", "udp", "unix"} {
		wantSuccess(t, run(t, true, build(t, "progs/threads"), kind), "1\n")
	}
	wantSuccess(t, run(t, true, "grep", "-c", "Threads:\t1$", "/proc/self/status"), "1\n")
	wantSuccess(t, run(t, true, "sh", "-c", "cat /proc/self/status | grep -c 'Threads:.1$'"), "1\n")
	if got := run(t, true, build(t, "progs/threads"), "tcp"); got.stdout == "1\n" || got.exit != 0 {
		t.Errorf("the first use of TCP did not start the Go side: %+v", got)
	}
}

// TestStartLeavesNoTrace: what the start of the Go side must not change.
func TestStartLeavesNoTrace(t *testing.T) {
	t.Parallel()
	prog := build(t, "progs/snapshot")
	wantSuccess(t, run(t, true, prog, "threads"), "")
	// Go raises a soft limit that is below the hard one.
	wantSuccess(t, run(t, true, "bash", "-c", "ulimit -S -n 512; exec "+prog+" threads"), "")
}

// TestStartRefused: situations in which Go's runtime would end or disturb the
// program. It must not even be tried: one thread, and TCP works.
func TestStartRefused(t *testing.T) {
	t.Parallel()
	prog := build(t, "progs/threads")
	t.Run("address space", func(t *testing.T) {
		wantSuccess(t, run(t, true, "bash", "-c", "ulimit -v 1000000; exec "+prog+" tcp"), "1\n")
	})
	t.Run("Go program", func(t *testing.T) {
		// The section is what tells a Go executable; this one has only that.
		goProg := filepath.Join(t.TempDir(), "prog")
		out, err := exec.Command("objcopy", "--add-section", ".go.buildinfo="+os.Args[0], prog, goProg).CombinedOutput()
		if err != nil {
			t.Fatalf("objcopy: %v: %s", err, out)
		}
		wantSuccess(t, run(t, true, goProg, "tcp"), "1\n")
	})
}

// TestStart runs the unit test of the start that has a Go side linked in.
func TestStart(t *testing.T) {
	t.Parallel()
	if got := run(t, false, build(t, "progs/start_go")); got.exit != 0 || got.stderr != "" {
		t.Errorf("%+v", got)
	}
}

func TestForkWithoutExec(t *testing.T) {
	t.Parallel()
	wantSuccess(t, run(t, true, build(t, "progs/forker")), "done\n")
}

const httpExchange = `
import http.server, threading, urllib.request
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[::-1])
    def log_message(self, *args):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever).start()
body = bytes(range(256)) * 4096
for _ in range(10):
    url = "http://127.0.0.1:%d/" % server.server_port
    with urllib.request.urlopen(url, data=body) as response:
        assert response.read() == body[::-1]
server.shutdown()
print("done")
`

// TestKernelTCP: without a daemon every connection is the kernel's.
func TestKernelTCP(t *testing.T) {
	t.Parallel()
	wantSuccess(t, run(t, true, "python3", "-c", httpExchange), "done\n")
}
