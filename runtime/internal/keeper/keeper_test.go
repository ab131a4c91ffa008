// SPDX-License-Identifier: Apache-2.0

package keeper

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is its own keeper, as etrand is.
func TestMain(m *testing.M) {
	if os.Args[0] == Name {
		if Serve() != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func start(t *testing.T) (dir string, k *Client) {
	t.Helper()
	dir = t.TempDir()
	k, err := Start(dir, quiet)
	must(t, err)
	t.Cleanup(k.Quit)
	return dir, k
}

// vanish makes the client as a dead daemon's: its socket is closed.
func vanish(k *Client) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	unix.Close(k.fd)
}

func pipe(t *testing.T) (r, w int) {
	t.Helper()
	var p [2]int
	must(t, unix.Pipe2(p[:], unix.O_CLOEXEC))
	t.Cleanup(func() { unix.Close(p[0]); unix.Close(p[1]) })
	return p[0], p[1]
}

func connect(t *testing.T, dir string) (*Client, []Item) {
	t.Helper()
	k, items, err := Connect(dir, quiet)
	must(t, err)
	if k == nil {
		t.Fatal("no keeper")
	}
	t.Cleanup(func() { CloseAll(items) })
	slices.SortFunc(items, func(a, b Item) int { return strings.Compare(a.Name, b.Name) })
	return k, items
}

// What a client put is there for the next one, however the first one ended, and
// the descriptors are the same files.
func TestItemsSurviveTheirClient(t *testing.T) {
	dir, k := start(t)
	r, w := pipe(t)
	const n = 2000 // more than the socket's buffer takes
	for i := range n {
		k.Put(fmt.Sprintf("slot-%04d", i), false, map[string]int{"I": i, "Round": 1}, w)
	}
	for i := range n {
		if i%2 == 0 {
			k.Delete(fmt.Sprintf("slot-%04d", i))
		} else {
			k.Put(fmt.Sprintf("slot-%04d", i), false, map[string]int{"I": i, "Round": 2}, w)
		}
	}
	vanish(k)
	next, items := connect(t, dir)
	if len(items) != n/2 {
		t.Fatalf("%d items of %d", len(items), n/2)
	}
	for i, item := range items {
		want := fmt.Sprintf(`{"I":%d,"Round":2}`, 2*i+1)
		if item.Name != fmt.Sprintf("slot-%04d", 2*i+1) || string(item.Blob) != want || len(item.Fds) != 1 {
			t.Fatalf("item %d is %+v", i, item)
		}
	}
	text := []byte("through the keeper")
	if _, err := unix.Write(items[7].Fds[0], text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 64)
	count, err := unix.Read(r, got)
	must(t, err)
	if !bytes.Equal(got[:count], text) {
		t.Errorf("read %q", got[:count])
	}
	next.Quit()
}

// A keeper that dies is replaced, and the new one has everything.
func TestKeeperIsReplaced(t *testing.T) {
	dir, k := start(t)
	_, w := pipe(t)
	k.Put("a", false, 1, w)
	k.mu.Lock()
	first, err := unix.FcntlInt(uintptr(k.pidfd), unix.F_DUPFD_CLOEXEC, 0)
	k.mu.Unlock()
	must(t, err)
	defer unix.Close(first)
	must(t, unix.PidfdSendSignal(first, unix.SIGKILL, nil, 0))
	for deadline := time.Now().Add(10 * time.Second); !k.replaced(first); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no new keeper")
		}
	}
	k.Put("b", false, 2)
	vanish(k)
	next, items := connect(t, dir)
	if len(items) != 2 || items[0].Name != "a" || len(items[0].Fds) != 1 || items[1].Name != "b" {
		t.Errorf("items %+v", items)
	}
	next.Quit()
}

// replaced says whether the keeper is another process than that of the pidfd.
func (k *Client) replaced(pidfd int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	var first, now unix.Stat_t
	return k.fd >= 0 && unix.Fstat(pidfd, &first) == nil && unix.Fstat(k.pidfd, &now) == nil && first.Ino != now.Ino
}

func TestQuit(t *testing.T) {
	dir, k := start(t)
	k.Put("a", false, 1)
	k.Quit()
	if _, err := os.Stat(filepath.Join(dir, SocketName)); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
	if k, _, err := Connect(dir, quiet); k != nil || err != nil {
		t.Errorf("a keeper after Quit: %v %v", k, err)
	}
}

// Packets that are none end the connection, not the keeper.
func TestNoPackets(t *testing.T) {
	dir, k := start(t)
	k.Put("a", false, 1)
	vanish(k)
	for _, packet := range [][]byte{
		{0}, bytes.Repeat([]byte{0xff}, 100), encode(opPut, &Item{Name: strings.Repeat("x", MaxName+1)}),
		append(encode(opPut, &Item{Name: "x"}), make([]byte, MaxBlob+1)...),
	} {
		if _, _, err := decode(packet); err == nil && len(packet) != 1 {
			t.Errorf("packet of %d octets is taken", len(packet))
		}
		fd, err := dial(filepath.Join(dir, SocketName))
		must(t, err)
		must(t, unix.Sendmsg(fd, packet, nil, nil, 0))
		if n, err := unix.Read(fd, make([]byte, 1)); n != 0 || err != nil && err != unix.ECONNRESET {
			t.Errorf("read %d, %v", n, err)
		}
		unix.Close(fd)
	}
	next, items := connect(t, dir)
	if len(items) != 1 {
		t.Errorf("items %+v", items)
	}
	next.Quit()
}

func TestAlive(t *testing.T) {
	cmd := exec.Command("sleep", "100")
	must(t, cmd.Start())
	pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	must(t, err)
	defer unix.Close(pidfd)
	s := &server{client: -1, items: map[string]Item{"app": {Alive: true, Fds: []int{pidfd}}, "x": {}},
		alone: time.Now().Add(-2 * lonely)}
	if s.deserted() {
		t.Error("deserted while a process lives")
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	if s.deserted() {
		t.Error("deserted at once")
	}
	s.alone = time.Now().Add(-2 * lonely)
	if !s.deserted() {
		t.Error("not deserted")
	}
}
