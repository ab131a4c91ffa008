// SPDX-License-Identifier: Apache-2.0

package adminapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"syscall"
	"time"
)

// ErrNoDaemon is wrapped by errors of requests that found nobody listening
// on the socket.
var ErrNoDaemon = errors.New("no etrand is running")

// maxAnswer bounds what a client reads: far above a table of all connections
// that a daemon can hold, and a stop for something that is not a daemon.
const maxAnswer = 256 << 20

// requestTimeout bounds one request. A switch of every connection of a busy
// daemon takes well below a second; a daemon starved by spinning programs on
// all cores may need several.
const requestTimeout = 30 * time.Second

// Client talks to one daemon. Its methods may be called concurrently.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client for the daemon whose run directory is runDir.
// It does not connect yet.
func NewClient(runDir string) *Client {
	socket := filepath.Join(runDir, SocketName)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	return &Client{
		socket: socket,
		http: &http.Client{
			Transport: &http.Transport{DialContext: dial, MaxIdleConns: 1},
			Timeout:   requestTimeout,
		},
	}
}

// Close drops the idle connection that the client keeps to the daemon.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status asks for the daemon's status.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	return call[Status](ctx, c, http.MethodGet, PathStatus, nil)
}

// SS asks for every connection.
func (c *Client) SS(ctx context.Context) (*SS, error) {
	return call[SS](ctx, c, http.MethodGet, PathSS, nil)
}

// Stats asks for the counters.
func (c *Client) Stats(ctx context.Context) (*Stats, error) {
	return call[Stats](ctx, c, http.MethodGet, PathStats, nil)
}

// Promote asks for the selected connections to go to the fast path.
func (c *Client) Promote(ctx context.Context, r SwitchRequest) (*SwitchResult, error) {
	return call[SwitchResult](ctx, c, http.MethodPost, PathPromote, &r)
}

// Demote asks for the selected connections to go back to the kernel.
func (c *Client) Demote(ctx context.Context, r SwitchRequest) (*SwitchResult, error) {
	return call[SwitchResult](ctx, c, http.MethodPost, PathDemote, &r)
}

// call performs one request and decodes its answer, or the daemon's Error.
func call[T any](ctx context.Context, c *Client, method, path string, request *SwitchRequest) (*T, error) {
	var body io.Reader = http.NoBody
	if request != nil {
		if err := request.Validate(); err != nil {
			return nil, err
		}
		encoded, err := json.Marshal(request)
		if err != nil {
			return nil, fmt.Errorf("encoding the request: %w", err)
		}
		body = bytes.NewReader(encoded)
	}
	// The host is never resolved: the transport always dials the socket.
	req, err := http.NewRequestWithContext(ctx, method, "http://etrand"+path, body)
	if err != nil {
		return nil, fmt.Errorf("making the request %s %s: %w", method, path, err)
	}
	if request != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	defer resp.Body.Close()

	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("reading etrand's answer to %s from %s: %w", path, c.socket, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, decodeError(resp.StatusCode, answer)
	}
	var out T
	if err := json.Unmarshal(answer, &out); err != nil {
		return nil, fmt.Errorf("decoding etrand's answer to %s: %w", path, err)
	}
	return &out, nil
}

// explain names the socket and turns the two errors that mean "nobody is
// there" into ErrNoDaemon.
func (c *Client) explain(err error) error {
	var wrapper *url.Error // adds only a URL that nobody typed
	if errors.As(err, &wrapper) {
		err = wrapper.Err
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w: %w", ErrNoDaemon, err)
	}
	return fmt.Errorf("asking etrand at %s: %w", c.socket, err)
}

// decodeError makes an *Error of an answer, also if it is not one of ours.
func decodeError(code int, answer []byte) error {
	var e Error
	if json.Unmarshal(answer, &e) == nil && e.Message != "" {
		e.Code = code
		return &e
	}
	return &Error{Code: code, Message: fmt.Sprintf("etrand answered %d %s", code, http.StatusText(code))}
}
