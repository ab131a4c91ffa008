// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"text/template"
	"time"

	"github.com/etran-go/etran/tests/internal/testbed"
)

// patience bounds what a loaded machine may take for anything.
const patience = time.Minute

// A run is one program in one combination of paths.
type run struct {
	*testing.T
	tb *testbed.Testbed
	// dir is the program's, whatever the combination.
	dir string
	// client and server say whether programs on hosts A and B are under eTran.
	client, server bool
}

// etran says whether a host's programs are under eTran.
func (r *run) etran(h *testbed.Host) bool {
	return h == r.tb.A && r.client || h == r.tb.B && r.server
}

// start starts a program on a host, which ends with the run. Port, if not 0, is
// one that it then listens on.
func (r *run) start(h *testbed.Host, port int, c testbed.Command) *testbed.Process {
	r.Helper()
	name := filepath.Base(c.Args[0])
	out, err := os.CreateTemp(r.dir, name+"-*.out")
	if err != nil {
		r.Fatal(err)
	}
	c.Etran = r.etran(h)
	c.Stdout, c.Stderr = out, out
	p, err := h.Start(c)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		p.Stop()
		out.Close()
		if r.Failed() {
			r.Logf("%s on host %s said: %s", name, h.Name, tail(r.read(out.Name())))
		}
	})
	if port != 0 {
		r.awaitListening(h, port, p)
	}
	return p
}

// serve starts a server on host B.
func (r *run) serve(port int, args ...string) *testbed.Process {
	r.Helper()
	return r.start(r.tb.B, port, testbed.Command{Args: args})
}

// on runs a program on a host to its end and returns what it printed.
func (r *run) on(h *testbed.Host, c testbed.Command) string {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), 2*patience)
	defer cancel()
	c.Etran = r.etran(h)
	out, err := h.Output(ctx, c)
	if err != nil {
		r.Fatalf("%v\nstdout: %s", err, tail(out))
	}
	return string(out)
}

// use runs a client on host A to its end and returns what it printed.
func (r *run) use(args ...string) string {
	r.Helper()
	return r.on(r.tb.A, testbed.Command{Args: args})
}

// feed is use for a client that reads its standard input.
func (r *run) feed(in io.Reader, args ...string) string {
	r.Helper()
	return r.on(r.tb.A, testbed.Command{Args: args, Stdin: in})
}

// together runs clients on host A to their ends and f meanwhile, and returns
// what they printed.
func (r *run) together(f func(), clients ...[]string) []string {
	r.Helper()
	printed := make([]string, len(clients))
	var wait sync.WaitGroup
	for i, args := range clients {
		wait.Go(func() {
			ctx, cancel := context.WithTimeout(r.Context(), 2*patience)
			defer cancel()
			out, err := r.tb.A.Output(ctx, testbed.Command{Args: args, Etran: r.client})
			if err != nil {
				r.Errorf("%v\nstdout: %s", err, tail(out))
			}
			printed[i] = string(out)
		})
	}
	f()
	wait.Wait()
	return printed
}

// awaitListening waits until somebody, the process if there is one, listens on
// a port, without connecting to it.
func (r *run) awaitListening(h *testbed.Host, port int, p *testbed.Process) {
	r.Helper()
	want := fmt.Sprintf(":%04X 00000000:0000 0A", port)
	r.await(fmt.Sprintf("a listener on port %d of host %s", port, h.Name), func() bool {
		if p != nil && ended(p) {
			r.Fatalf("the server has ended")
		}
		var text []byte
		if err := h.Do(func() (err error) { text, err = os.ReadFile("/proc/thread-self/net/tcp"); return err }); err != nil {
			r.Fatal(err)
		}
		return bytes.Contains(text, []byte(want))
	})
}

func ended(p *testbed.Process) bool {
	select {
	case <-p.Done():
		return true
	default:
		return false
	}
}

// await waits until f says true.
func (r *run) await(what string, f func() bool) {
	r.Helper()
	for deadline := time.Now().Add(patience); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// path is a file of the program.
func (r *run) path(name string) string { return filepath.Join(r.dir, name) }

// once says whether a file of the program does not exist yet, for what all
// combinations can share.
func (r *run) once(name string) bool {
	_, err := os.Stat(r.path(name))
	return err != nil
}

func (r *run) read(path string) []byte {
	r.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		r.Fatal(err)
	}
	return text
}

// write makes a file of the program from a template of testdata, and returns its path.
func (r *run) write(name, from string, data any) string {
	r.Helper()
	t, err := template.ParseFiles(filepath.Join("testdata", from))
	if err != nil {
		r.Fatal(err)
	}
	var text bytes.Buffer
	if err := t.Execute(&text, data); err != nil {
		r.Fatal(err)
	}
	if err := os.WriteFile(r.path(name), text.Bytes(), 0o644); err != nil {
		r.Fatal(err)
	}
	return r.path(name)
}

// random makes a file of random octets, the same for the same name and size.
func (r *run) random(name string, size int) string {
	r.Helper()
	path := r.path(name)
	if !r.once(name) {
		return path
	}
	seed := sha256.Sum256([]byte(name))
	octets := make([]byte, size)
	_, _ = rand.NewChaCha8(seed).Read(octets)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		r.Fatal(err)
	}
	if err := os.WriteFile(path, octets, 0o644); err != nil {
		r.Fatal(err)
	}
	return path
}

// same compares two files.
func (r *run) same(got, want string) {
	r.Helper()
	if g, w := r.read(got), r.read(want); !bytes.Equal(g, w) {
		r.Errorf("%s has %d octets, not the %d of %s, or others", got, len(g), len(w), want)
	}
}

// says makes sure that a program's output has a text.
func (r *run) says(output, want string) {
	r.Helper()
	if !strings.Contains(output, want) {
		r.Errorf("no %q in: %s", want, tail([]byte(output)))
	}
}

// script is the path of a program of testdata.
func (r *run) script(name string) string {
	r.Helper()
	path, err := filepath.Abs(filepath.Join("testdata", name))
	if err != nil {
		r.Fatal(err)
	}
	return path
}

func tail(text []byte) []byte { return text[max(0, len(text)-2000):] }
