// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/etran-go/etran/tests/internal/testbed"
)

// Ports of the web servers, and of those that the front servers ask on host A.
const (
	webPort      = 8080
	tlsPort      = 8443
	proxyPort    = 8090
	upstreamPort = 8081
)

// nginxPath is whole: an nginx that was found by its name cannot find its successor.
const nginxPath = "/usr/sbin/nginx"

var webServers = []program{
	{name: "nginx", serve: nginx(2, false), use: browse("http", webPort), client: fast, server: fast},
	{name: "nginx-4-sendfile", serve: nginx(4, true), use: browse("http", webPort), client: fast, server: fast},
	{name: "nginx-tls", serve: nginx(2, false), use: browse("https", tlsPort), client: fast, server: fast},
	{name: "nginx-proxy", serve: behind(nginx(2, false)), use: browse("http", proxyPort), client: fast, server: fast},
	{name: "nginx-reload", serve: nginx(2, false), use: underLoad(reload), client: fast, server: fast},
	{name: "nginx-upgrade", serve: nginx(2, false), use: underLoad(upgrade), client: fast, server: fast},
	{name: "haproxy", serve: behind(haproxy), use: browse("http", webPort), client: fast, server: fast},
}

// sizes are those of the files that the web servers have.
var sizes = []int{0, 1, 100, 1459, 1460, 1461, 10_000, 65_536, 100_000, 700_000}

// nginx is a server on host B.
func nginx(workers int, sendfile bool) func(*run) {
	return func(r *run) {
		r.nginx(r.tb.B, "front", workers, sendfile, webPort)
	}
}

// behind starts what a front server asks, on host A, and then the front server.
func behind(front func(*run)) func(*run) {
	return func(r *run) {
		r.nginx(r.tb.A, "back", 1, false, upstreamPort)
		front(r)
	}
}

// nginx starts a daemon. (With "daemon off" it would ignore upgrades.)
func (r *run) nginx(h *testbed.Host, name string, workers int, sendfile bool, port int) {
	r.Helper()
	for i, size := range sizes {
		r.random(filepath.Join("www", strconv.Itoa(i)), size)
	}
	switches := map[bool]string{false: "off", true: "on"}
	certificate, key := r.certificate()
	conf := r.write(name+".conf", "nginx.conf", map[string]any{
		"Name": name, "Dir": r.dir, "Workers": workers, "Sendfile": switches[sendfile],
		"Certificate": certificate, "Key": key, "Port": port, "TLSPort": port + tlsPort - webPort,
		"ProxyPort": port + proxyPort - webPort, "Upstream": fmt.Sprintf("%s:%d", testbed.WireA, upstreamPort),
	})
	r.on(h, testbed.Command{Args: []string{nginxPath, "-c", conf}})
	r.Cleanup(func() {
		if r.Failed() {
			r.Logf("nginx on host %s said: %s", h.Name, tail(r.read(r.path(name+".log"))))
		}
		if pid := r.pid(name); pid != 0 {
			_ = syscall.Kill(pid, syscall.SIGTERM)
		}
		r.await("the end of nginx", func() bool { return r.pid(name) == 0 })
	})
	r.awaitListening(h, port, nil)
}

// pid is the process that a file names, 0 without one.
func (r *run) pid(name string) int {
	r.Helper()
	text, err := os.ReadFile(r.path(name + ".pid"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0 // not written yet
	}
	return pid
}

// certificate makes a key and a certificate for it.
func (r *run) certificate() (certificate, key string) {
	r.Helper()
	certificate, key = r.path("certificate.pem"), r.path("key.pem")
	if r.once("key.pem") {
		r.use("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
			"-subj", "/CN=etran", "-days", "2", "-keyout", key, "-out", certificate)
	}
	return certificate, key
}

func haproxy(r *run) {
	conf := r.write("haproxy.conf", "haproxy.conf", map[string]any{
		"Port": webPort, "Upstream": fmt.Sprintf("%s:%d", testbed.WireA, upstreamPort)})
	r.serve(webPort, "haproxy", "-db", "-f", conf)
}

// ---- clients --------------------------------------------------------------

// browse asks for the files with several clients.
func browse(scheme string, port int) func(*run) {
	return func(r *run) {
		base := fmt.Sprintf("%s://%s:%d/", scheme, testbed.WireB, port)
		r.use(r.curl(base, testbed.Span(4, 20))...)
		r.compare(testbed.Span(4, 20))
		r.wrk(base)
		r.ab(base)
	}
}

// curl asks for all files, one after the other on one connection, some times.
func (r *run) curl(base string, times int) []string {
	args := []string{"curl", "-sS", "--fail", "--insecure", "--create-dirs"}
	for n := range times {
		for i := range sizes {
			args = append(args, "-o", r.got(n, i), base+strconv.Itoa(i))
		}
	}
	return args
}

// got is the file for an answer.
func (r *run) got(n, i int) string { return r.path(filepath.Join("got", fmt.Sprintf("%d-%d", n, i))) }

// compare looks at what curl got.
func (r *run) compare(times int) {
	r.Helper()
	for n := range times {
		for i := range sizes {
			got := r.got(n, i)
			if sizes[i] == 0 { // curl makes no empty files
				continue
			}
			r.same(got, r.path(filepath.Join("www", strconv.Itoa(i))))
			if err := os.Remove(got); err != nil {
				r.Error(err)
			}
		}
	}
}

// wrk asks for a file on many connections.
func (r *run) wrk(base string) {
	r.Helper()
	seconds := strconv.Itoa(testbed.Span(1, 10))
	const file = "6"
	out := r.use("wrk", "-t", "2", "-c", "16", "-d", seconds, "-s", r.script("same.lua"), base+file, r.path("www/"+file))
	m := regexp.MustCompile(`good (\d+) bad (\d+)`).FindStringSubmatch(out)
	if m == nil || len(m[1]) < 3 || m[2] != "0" {
		r.Errorf("wrk said: %s", out)
	}
}

// ab asks for a file on connections that are kept, and on one each.
func (r *run) ab(base string) {
	r.Helper()
	requests := strconv.Itoa(testbed.Span(500, 10000))
	for _, keep := range [][]string{{"-k"}, nil} {
		args := append([]string{"ab", "-q", "-n", requests, "-c", "8"}, keep...)
		r.abSays(r.use(append(args, base+"2")...))
	}
}

// abSays makes sure that nothing failed.
func (r *run) abSays(out string) {
	r.Helper()
	ended := strings.Count(out, "Failed requests:")
	good := len(regexp.MustCompile(`Failed requests: +0\n`).FindAllString(out, -1))
	if ended == 0 || good != ended || strings.Contains(out, "Non-2xx") {
		r.Errorf("ab said: %s", out)
	}
}

// ---- nginx changes under load ---------------------------------------------

// underLoad changes nginx while clients ask it. None of them may notice.
func underLoad(change func(*run)) func(*run) {
	return func(r *run) {
		base := fmt.Sprintf("http://%s:%d/", testbed.WireB, webPort)
		stop := r.path("stop")
		files := strconv.Itoa(len(sizes))
		before := r.stats(r.tb.B)
		out := r.together(func() {
			for range testbed.Span(2, 20) {
				time.Sleep(500 * time.Millisecond)
				if r.server {
					now := before.Promotions
					r.await("a promotion", func() bool { now = r.stats(r.tb.B).Promotions; return now > before.Promotions })
					before.Promotions = now
				}
				change(r)
			}
			if err := os.WriteFile(stop, nil, 0o644); err != nil {
				r.Error(err)
			}
		}, []string{"sh", r.script("curls.sh"), stop, base, r.path("www"), r.path("got"), files},
			[]string{"sh", "-c", `until [ -e "$0" ]; do ab -q -t 1 -n 1000000 -c 2 "$1" || exit; done`, stop, base + "2"})
		r.abSays(out[1])
		if err := os.Remove(stop); err != nil {
			r.Error(err)
		}
	}
}

// reload makes nginx start new workers, and end the old ones.
func reload(r *run) {
	r.on(r.tb.B, testbed.Command{Args: []string{nginxPath, "-c", r.path("front.conf"), "-s", "reload"}})
}

// upgrade lets a new nginx take over the listening sockets.
func upgrade(r *run) {
	old := r.pid("front")
	signal := func(s syscall.Signal) {
		if err := syscall.Kill(old, s); err != nil {
			r.Errorf("nginx, process %d: %v", old, err)
		}
	}
	signal(syscall.SIGUSR2)
	r.await("the new nginx", func() bool { now := r.pid("front"); return now != 0 && now != old })
	signal(syscall.SIGWINCH)
	time.Sleep(200 * time.Millisecond)
	signal(syscall.SIGQUIT)
	r.await("the end of the old nginx", func() bool { return syscall.Kill(old, 0) != nil })
}
