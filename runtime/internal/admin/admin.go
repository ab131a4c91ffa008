// SPDX-License-Identifier: Apache-2.0

// Package admin serves the daemon's administration interface (adminapi) over
// a unix socket. Everybody may connect: root and the daemon's own user see and
// control everything, others their own applications.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	abi "github.com/etran-go/etran/c-abi"
	"github.com/etran-go/etran/runtime/adminapi"
	"github.com/etran-go/etran/runtime/internal/app"
)

const (
	maxRequest = 64 << 10
	patience   = 10 * time.Second
)

// Server is the administration server.
type Server struct {
	http    *http.Server
	manager *app.Manager
	version string
	kernel  string
	log     *slog.Logger
}

// New makes a server for what the manager keeps.
func New(m *app.Manager, version string, log *slog.Logger) *Server {
	s := &Server{manager: m, version: version, kernel: kernelRelease(), log: log}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+adminapi.PathStatus, s.status)
	mux.HandleFunc("GET "+adminapi.PathSS, s.ss)
	mux.HandleFunc("GET "+adminapi.PathStats, s.stats)
	mux.HandleFunc("POST "+adminapi.PathPromote, s.switcher(abi.MsgTypePleasePromote))
	mux.HandleFunc("POST "+adminapi.PathDemote, s.switcher(abi.MsgTypePleaseDemote))
	s.http = &http.Server{
		Handler: mux, ConnContext: withViewer,
		ReadHeaderTimeout: patience, ReadTimeout: patience, IdleTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return s
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// Listen makes the socket in the run directory.
func Listen(runDir string) (net.Listener, error) {
	path := filepath.Join(runDir, adminapi.SocketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old administration socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for administration: %w", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, fmt.Errorf("open administration socket to all: %w", err)
	}
	return l, nil
}

// Serve answers requests until Close.
func (s *Server) Serve(l net.Listener) {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		s.log.Error("administration ended", "error", err)
	}
}

// Close ends the server.
func (s *Server) Close() { _ = s.http.Close() }

type viewerKey struct{}

// withViewer remembers who is at the other end. Whoever the kernel cannot name
// sees nothing.
func withViewer(ctx context.Context, c net.Conn) context.Context {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err != nil || credErr != nil {
		return ctx
	}
	all := cred.Uid == 0 || cred.Uid == uint32(os.Geteuid())
	return context.WithValue(ctx, viewerKey{}, app.Viewer{Uid: cred.Uid, All: all})
}

// viewer returns who asks; false after the request was refused.
func (s *Server) viewer(w http.ResponseWriter, r *http.Request) (app.Viewer, bool) {
	v, ok := r.Context().Value(viewerKey{}).(app.Viewer)
	if !ok {
		s.fail(w, http.StatusForbidden, "the kernel does not say who asks")
	}
	return v, ok
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	if v, ok := s.viewer(w, r); ok {
		status := s.manager.Status(v)
		status.Version, status.Pid, status.Kernel = s.version, os.Getpid(), s.kernel
		s.answer(w, http.StatusOK, status)
	}
}

func (s *Server) ss(w http.ResponseWriter, r *http.Request) {
	if v, ok := s.viewer(w, r); ok {
		s.answer(w, http.StatusOK, s.manager.SS(v))
	}
}

// stats are sums over everybody and give nobody away.
func (s *Server) stats(w http.ResponseWriter, _ *http.Request) {
	stats, err := s.manager.Stats()
	if err != nil {
		s.fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	s.answer(w, http.StatusOK, stats)
}

func (s *Server) switcher(t abi.MsgType) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, ok := s.viewer(w, r)
		if !ok {
			return
		}
		var request adminapi.SwitchRequest
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&request)
		if err == nil {
			err = request.Validate()
		}
		if err != nil {
			s.fail(w, http.StatusBadRequest, strings.TrimSpace(err.Error()))
			return
		}
		s.answer(w, http.StatusOK, s.manager.Switch(v, request, t))
	}
}

func (s *Server) fail(w http.ResponseWriter, code int, message string) {
	s.answer(w, code, &adminapi.Error{Code: code, Message: message})
}

func (s *Server) answer(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		s.log.Debug("answer not delivered", "error", err)
	}
}
