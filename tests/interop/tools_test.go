// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/etran-go/etran/tests/internal/testbed"
)

// sshd starts another sshd for each connection, which finds the socket as its
// standard input: the library does not know it. Who receives files with
// rsync shares the connection with a child; who sends them has it alone, but may
// have more in the kernel's send queue than can be moved: either path is right.
// Bash makes the socket its standard output whenever it writes, and libc's
// streams cannot be followed.
var tools = []program{
	{name: "iperf3", serve: iperf, use: useIperf, client: bulk, server: bulk},
	{name: "openssl", serve: openssl, use: useOpenssl, client: fast, server: fast},
	{name: "ssh", serve: sshd, use: useSSH, client: fast, server: path{never: true}},
	{name: "rsync", serve: rsyncd, use: useRsync, client: path{}, server: path{}},
	{name: "perl", serve: perl, use: usePerl, client: fast, server: fast},
	{name: "bash", serve: perl, use: useBash, client: path{never: true}, server: fast},
}

func iperf(r *run) { r.serve(7777, "iperf3", "-s", "-B", testbed.WireB, "-p", port) }

// useIperf sends on four connections, and in the other direction.
func useIperf(r *run) {
	size := testbed.Span(100, 4000) << 20
	for _, direction := range [][]string{{"-P", "4"}, {"-R"}} {
		args := []string{"iperf3", "-c", testbed.WireB, "-p", port, "--json", "-w", "256K", "-n", strconv.Itoa(size)}
		out := r.use(append(args, direction...)...)
		var result struct {
			Error string
			End   struct {
				Sent     struct{ Bytes int } `json:"sum_sent"`
				Received struct{ Bytes int } `json:"sum_received"`
			}
		}
		if err := json.Unmarshal([]byte(out), &result); err != nil {
			r.Fatalf("iperf3 said %s: %v", out, err)
		}
		// It ends when all is sent, and does not count what is still in buffers then.
		if result.Error != "" || result.End.Sent.Bytes < size || result.End.Received.Bytes < size*8/10 {
			r.Errorf("iperf3 %v: %+v", direction, result)
		}
	}
}

func openssl(r *run) {
	certificate, key := r.certificate()
	r.serve(7777, "openssl", "s_server", "-accept", testbed.WireB+":"+port, "-cert", certificate, "-key", key, "-rev", "-quiet")
}

// useOpenssl has lines turned round.
func useOpenssl(r *run) {
	rng := rand.New(rand.NewPCG(1, 2))
	var in, want bytes.Buffer
	for range testbed.Span(4000, 100_000) {
		line := []byte(strconv.FormatUint(rng.Uint64(), 36) + strings.Repeat("etran", rng.IntN(100)))
		fmt.Fprintf(&in, "%s\n", line)
		slices.Reverse(line)
		fmt.Fprintf(&want, "%s\n", line)
	}
	in.WriteString("CLOSE\n")
	out := r.feed(&in, "openssl", "s_client", "-connect", testbed.WireB+":"+port, "-quiet")
	if out != want.String() {
		r.Errorf("of %d octets %d came back, or others", want.Len(), len(out))
	}
}

const sshPort = 2222

func sshd(r *run) {
	for _, key := range []string{"host", "user"} {
		if r.once(key) {
			r.use("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", r.path(key))
		}
	}
	// Debian's sshd has this directory for its unprivileged part.
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		r.Fatal(err)
	}
	r.write("ssh.conf", "ssh.conf", map[string]any{"Dir": r.dir, "Port": sshPort})
	conf := r.write("sshd.conf", "sshd.conf", map[string]any{"Dir": r.dir, "Address": testbed.WireB, "Port": sshPort})
	r.serve(sshPort, "/usr/sbin/sshd", "-D", "-e", "-f", conf)
}

// useSSH pipes octets through a remote program, and copies a file there and back.
func useSSH(r *run) {
	file := r.random("file", testbed.Span(4, 100)<<20)
	octets := r.read(file)
	if got := r.feed(bytes.NewReader(octets), "ssh", "-F", r.path("ssh.conf"), testbed.WireB, "cat"); got != string(octets) {
		r.Errorf("of %d octets %d came back, or others", len(octets), len(got))
	}
	r.use("scp", "-q", "-F", r.path("ssh.conf"), file, testbed.WireB+":"+r.path("there"))
	r.same(r.path("there"), file)
	r.use("scp", "-q", "-F", r.path("ssh.conf"), testbed.WireB+":"+file, r.path("back"))
	r.same(r.path("back"), file)
}

func rsyncd(r *run) {
	conf := r.write("rsyncd.conf", "rsyncd.conf", map[string]any{"Dir": r.dir})
	r.serve(7777, "rsync", "--daemon", "--no-detach", "--config", conf, "--address", testbed.WireB, "--port", port)
}

// useRsync copies a tree there and back, and a second time after a change.
func useRsync(r *run) {
	if err := os.Mkdir(r.path("module"), 0o755); err != nil {
		r.Fatal(err)
	}
	for i := range 50 {
		r.random(fmt.Sprintf("tree/small/%d", i), i*i*10)
	}
	r.random("tree/large", testbed.Span(6, 200)<<20)
	module := fmt.Sprintf("rsync://%s:%s/module/", testbed.WireB, port)
	for range 2 {
		r.use("rsync", "-a", "--delete", "--checksum", r.path("tree")+"/", module)
		r.use("rsync", "-a", "--delete", "--checksum", module, r.path("copy")+"/")
		r.use("diff", "-r", r.path("tree"), r.path("copy"))
		if err := os.Truncate(r.path("tree/large"), 5_000_001); err != nil {
			r.Fatal(err)
		}
	}
	for _, dir := range []string{"tree", "copy", "module"} {
		if err := os.RemoveAll(r.path(dir)); err != nil {
			r.Error(err)
		}
	}
}

func perl(r *run) { r.serve(7777, "perl", r.script("echo.pl"), "server", testbed.WireB, port) }

func usePerl(r *run) {
	r.use("perl", r.script("echo.pl"), "client", testbed.WireB, port, strconv.Itoa(testbed.Span(2000, 50_000)))
}

func useBash(r *run) {
	r.use("bash", r.script("echo.sh"), testbed.WireB, port, strconv.Itoa(testbed.Span(3000, 30_000)))
}
