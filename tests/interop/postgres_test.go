// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/etran-go/etran/tests/internal/testbed"
)

var databases = []program{
	{name: "postgresql", serve: postgres, use: usePostgres, client: fast, server: path{share: 0.2}},
}

const (
	postgresPort = 5433
	nobody       = 65534 // PostgreSQL does not run as root
)

// postgres makes a database the first time and starts its server.
func postgres(r *run) {
	bin := r.postgresBin()
	data := r.path("data")
	if r.once("data") {
		if err := os.Mkdir(data, 0o700); err != nil {
			r.Fatal(err)
		}
		if err := os.Chown(data, nobody, nobody); err != nil {
			r.Fatal(err)
		}
		r.on(r.tb.B, testbed.Command{UID: nobody, Args: []string{filepath.Join(bin, "initdb"),
			"-D", data, "-U", "etran", "-A", "trust", "-E", "UTF8", "--locale", "C", "--no-sync"}})
		hba := []byte("host all all 10.77.0.0/24 trust\n")
		if err := os.WriteFile(filepath.Join(data, "pg_hba.conf"), hba, 0o644); err != nil {
			r.Fatal(err)
		}
	}
	r.start(r.tb.B, postgresPort, testbed.Command{UID: nobody, Args: []string{filepath.Join(bin, "postgres"),
		"-D", data, "-p", strconv.Itoa(postgresPort), "-k", "", "-h", testbed.WireB, "-F"}})
	// It listens before it takes connections.
	r.await("PostgreSQL", func() bool {
		return r.postgresClient("sh", "-c", "pg_isready -q && echo ready; true") == "ready\n"
	})
}

// postgresBin is where Debian has the server's programs of the newest version.
func (r *run) postgresBin() string {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		r.Fatalf("no PostgreSQL: %v; run tests/setup", err)
	}
	return filepath.Dir(found[len(found)-1])
}

// postgresClient runs one of the clients.
func (r *run) postgresClient(args ...string) string {
	r.Helper()
	return r.on(r.tb.A, testbed.Command{Args: args, Env: []string{"PGHOST=" + testbed.WireB,
		"PGPORT=" + strconv.Itoa(postgresPort), "PGUSER=etran", "PGDATABASE=postgres"}})
}

func (r *run) query(sql string) string {
	r.Helper()
	return strings.TrimSpace(r.postgresClient("psql", "-X", "-At", "-c", sql))
}

func usePostgres(r *run) {
	r.pgbench()
	r.copyTable(testbed.Span(8, 100) << 20)
	r.cancel()
}

// pgbench keeps connections, then makes one for each transaction. What all
// transactions did must be what the accounts have.
func (r *run) pgbench() {
	r.Helper()
	bench := filepath.Join(r.postgresBin(), "pgbench")
	r.postgresClient(bench, "-i", "-q", "-s", "1")
	for _, args := range [][]string{
		{"-c", "8", "-j", "2", "-t", strconv.Itoa(testbed.Span(100, 5000))},
		{"-c", "4", "-C", "-t", strconv.Itoa(testbed.Span(10, 500))},
	} {
		out := r.postgresClient(append([]string{bench, "-n"}, args...)...)
		r.says(out, "number of failed transactions: 0 ")
	}
	sums := r.query("select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)")
	if sums != "t" {
		r.Errorf("accounts and history differ: %s", sums)
	}
}

// copyTable copies a table in and out.
func (r *run) copyTable(size int) {
	r.Helper()
	in, out := r.path("rows"), r.path("rows.copied")
	if r.once("rows") {
		var rows bytes.Buffer
		for i := 0; rows.Len() < size; i++ {
			fmt.Fprintf(&rows, "%d\t%s\n", i, strings.Repeat(strconv.Itoa(i*7919), 10))
		}
		if err := os.WriteFile(in, rows.Bytes(), 0o644); err != nil {
			r.Fatal(err)
		}
	}
	r.query("drop table if exists copied; create unlogged table copied (i int, t text)")
	r.query(`\copy copied from ` + in)
	r.query(`\copy copied to ` + out)
	r.same(out, in)
}

// cancel ends a query on a connection that has shown that it lives.
func (r *run) cancel() {
	r.Helper()
	args := "timeout -s INT 1 psql -X"
	for range 20 {
		args += " -c 'select 1'"
	}
	out := r.postgresClient("sh", "-c", args+" -c 'select pg_sleep(60)' 2>&1; true")
	r.says(out, "canceling statement due to user request")
}
