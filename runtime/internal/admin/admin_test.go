// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/etran-go/etran/runtime/adminapi"
	"github.com/etran-go/etran/runtime/internal/app"
	"github.com/etran-go/etran/runtime/internal/config"
	"github.com/etran-go/etran/runtime/internal/datapath"
	"github.com/etran-go/etran/runtime/internal/testnet"
)

func TestMain(m *testing.M) { testnet.Main(m) }

// serve runs the server of a daemon without applications.
func serve(t *testing.T) (*Server, string) {
	t.Helper()
	testnet.Require(t)
	v := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "ad0"}, PeerName: "ad1"}
	must(t, netlink.LinkAdd(v))
	t.Cleanup(func() { _ = netlink.LinkDel(v) })
	dir, err := os.MkdirTemp("", "etran-admin")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	c := config.Default()
	c.PinDir, c.Interfaces = filepath.Join(dir, "pins"), []config.Interface{{Name: "ad0"}}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	path, err := datapath.Open(&c, log)
	must(t, err)
	t.Cleanup(func() { path.Close(); _ = unix.Unmount(c.PinDir, unix.MNT_DETACH) })
	m, err := app.NewManager(&c, path, log)
	must(t, err)
	t.Cleanup(m.Stop)
	s := New(m, "test", log)
	l, err := Listen(dir)
	must(t, err)
	go s.Serve(l)
	t.Cleanup(s.Close)
	return s, dir
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestAnswers(t *testing.T) {
	_, dir := serve(t)
	client, ctx := adminapi.NewClient(dir), context.Background()
	defer client.Close()
	status, err := client.Status(ctx)
	must(t, err)
	if status.Version != "test" || status.Pid != os.Getpid() || len(status.Interfaces) != 1 ||
		status.Interfaces[0].Name != "ad0" || status.Interfaces[0].Mode != "native" {
		t.Errorf("status %+v", status)
	}
	ss, err := client.SS(ctx)
	must(t, err)
	if len(ss.Conns) != 0 {
		t.Errorf("connections %+v", ss.Conns)
	}
	stats, err := client.Stats(ctx)
	must(t, err)
	if stats.Promotions != 0 || stats.Demotions == nil {
		t.Errorf("stats %+v", stats)
	}
	result, err := client.Demote(ctx, adminapi.SwitchRequest{All: true})
	must(t, err)
	if result.Selected != 0 {
		t.Errorf("result %+v", result)
	}
}

func TestBadRequests(t *testing.T) {
	s, _ := serve(t)
	for name, c := range map[string]struct {
		method, path, body string
		known              bool
		code               int
	}{
		"nobody":       {http.MethodGet, adminapi.PathStatus, "", false, http.StatusForbidden},
		"no selection": {http.MethodPost, adminapi.PathDemote, "{}", true, http.StatusBadRequest},
		"two":          {http.MethodPost, adminapi.PathPromote, `{"all":true,"pid":1}`, true, http.StatusBadRequest},
		"no JSON":      {http.MethodPost, adminapi.PathDemote, "demote!", true, http.StatusBadRequest},
		"too long":     {http.MethodPost, adminapi.PathDemote, `{"conn":"` + strings.Repeat("x", maxRequest) + `"}`, true, http.StatusBadRequest},
		"GET demote":   {http.MethodGet, adminapi.PathDemote, "", true, http.StatusMethodNotAllowed},
		"elsewhere":    {http.MethodGet, "/v2/status", "", true, http.StatusNotFound},
	} {
		r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
		if c.known {
			r = r.WithContext(context.WithValue(r.Context(), viewerKey{}, app.Viewer{All: true}))
		}
		w := httptest.NewRecorder()
		s.http.Handler.ServeHTTP(w, r)
		if w.Code != c.code {
			t.Errorf("%s: status %d, want %d: %s", name, w.Code, c.code, w.Body)
		}
	}
}

// An unprivileged user may ask, too; what he sees is decided per application.
func TestUnprivilegedUserMayConnect(t *testing.T) {
	_, dir := serve(t)
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestUnprivilegedChild$")
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

const childEnv = "ETRAN_TEST_ADMIN_CHILD"

func TestUnprivilegedChild(t *testing.T) {
	dir := os.Getenv(childEnv)
	if dir == "" {
		t.Skip("runs inside TestUnprivilegedUserMayConnect")
	}
	client := adminapi.NewClient(dir)
	defer client.Close()
	if _, err := client.SS(context.Background()); err != nil {
		t.Fatal(err)
	}
}
