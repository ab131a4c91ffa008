// SPDX-License-Identifier: Apache-2.0

package adminapi

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// serve runs handler on the administration socket of a fresh run directory.
func serve(t *testing.T, handler http.Handler) *Client {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, SocketName))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: handler}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	c := NewClient(dir)
	t.Cleanup(c.Close)
	return c
}

func TestClientReadsStatus(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+PathStatus, func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(Status{Version: "1.2", Interfaces: []Interface{{Name: "wire", MTU: 1500}}})
	})
	st, err := serve(t, mux).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st.Version != "1.2" || len(st.Interfaces) != 1 || st.Interfaces[0].MTU != 1500 {
		t.Errorf("got %+v", st)
	}
}

func TestClientSendsSwitchRequest(t *testing.T) {
	var got SwitchRequest
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+PathDemote, func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil {
			t.Error(err)
		}
		json.NewEncoder(w).Encode(SwitchResult{Selected: 2, Switched: 1, Refused: map[string]uint64{"busy": 1}})
	})
	res, err := serve(t, mux).Demote(t.Context(), SwitchRequest{Pid: 7})
	if err != nil {
		t.Fatal(err)
	}
	if got.Pid != 7 || res.Selected != 2 || res.Refused["busy"] != 1 {
		t.Errorf("request %+v, result %+v", got, res)
	}
}

func TestClientErrors(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc(PathPromote, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		json.NewEncoder(w).Encode(Error{Message: "no process 9"})
	})
	c := serve(t, mux)

	var apiErr *Error
	if _, err := c.Promote(t.Context(), SwitchRequest{Pid: 9}); !errors.As(err, &apiErr) ||
		apiErr.Code != http.StatusNotFound || apiErr.Message != "no process 9" {
		t.Errorf("daemon's error: got %v", err)
	}
	if _, err := c.Stats(t.Context()); !errors.As(err, &apiErr) || !strings.Contains(err.Error(), "404") {
		t.Errorf("an answer that is no Error: got %v", err)
	}
	if _, err := NewClient(t.TempDir()).Status(t.Context()); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("no socket: got %v, want ErrNoDaemon", err)
	}
}

func TestSwitchRequestValidate(t *testing.T) {
	for _, tc := range []struct {
		req SwitchRequest
		ok  bool
	}{
		{SwitchRequest{}, false},
		{SwitchRequest{All: true}, true},
		{SwitchRequest{Conn: "1:2"}, true},
		{SwitchRequest{Pid: 3, All: true}, false},
		{SwitchRequest{Pid: -3}, false},
	} {
		if err := tc.req.Validate(); (err == nil) != tc.ok {
			t.Errorf("%+v: %v", tc.req, err)
		}
	}
}
