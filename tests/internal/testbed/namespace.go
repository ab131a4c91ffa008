// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// netnsDir is where ip(8) looks for named network namespaces.
const netnsDir = "/run/netns"

// namespaceWorker is a thread that lives in a network namespace and runs
// functions there. It also is the parent thread of the host's processes:
// PR_SET_PDEATHSIG counts from the death of the thread, not of the process,
// so that thread must last as long as its children may.
type namespaceWorker struct {
	jobs chan func()
	quit chan struct{} // closed when the worker must end
	done chan error
}

// errLeft is the error of functions for a worker that has ended.
var errLeft = errors.New("the testbed is closed")

// enterNamespace starts a worker in the namespace of the file at path.
func enterNamespace(path string) (*namespaceWorker, error) {
	w := &namespaceWorker{jobs: make(chan func()), quit: make(chan struct{}), done: make(chan error, 1)}
	entered := make(chan error)
	go w.run(path, entered)
	if err := <-entered; err != nil {
		return nil, err
	}
	return w, nil
}

func (w *namespaceWorker) run(path string, entered chan<- error) {
	runtime.LockOSThread()
	home, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
	if err != nil {
		entered <- fmt.Errorf("opening the thread's own namespace: %w", err)
		return
	}
	defer home.Close()
	if err := setns(path); err != nil {
		entered <- err
		return
	}
	entered <- nil
	w.work()
	if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
		// The thread stays locked and so dies with this goroutine.
		w.done <- fmt.Errorf("leaving the namespace %s: %w", path, err)
		return
	}
	runtime.UnlockOSThread()
	w.done <- nil
}

// work runs functions until the worker must end.
func (w *namespaceWorker) work() {
	for {
		select {
		case job := <-w.jobs:
			job()
		case <-w.quit:
			return
		}
	}
}

// do runs f in the namespace. f must not block for long: the worker runs one
// function at a time.
func (w *namespaceWorker) do(f func() error) error {
	result := make(chan error, 1)
	select {
	case w.jobs <- func() { result <- f() }:
		return <-result
	case <-w.quit:
		return errLeft
	}
}

// leave ends the worker, once. It is safe while others call do.
func (w *namespaceWorker) leave() error {
	close(w.quit)
	return <-w.done
}

// setns moves the calling thread into the network namespace of a file.
func setns(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("opening the network namespace: %w", err)
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering the network namespace %s: %w", path, err)
	}
	return nil
}

// makeNamespace makes a network namespace that "ip netns" sees: one that a
// bind mount at path keeps alive.
func makeNamespace(path string) error {
	if err := prepareNetnsDir(); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return fmt.Errorf("making the mount point of a namespace: %w", err)
	}
	f.Close()

	result := make(chan error)
	go func() {
		// Never unlocked: the thread, which is in the new namespace,
		// dies with the goroutine.
		runtime.LockOSThread()
		result <- unshareInto(path)
	}()
	return <-result
}

func unshareInto(path string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("making a network namespace: %w", err)
	}
	own := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
	if err := unix.Mount(own, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mounting a network namespace at %s: %w", path, err)
	}
	return nil
}

// prepareNetnsDir makes netnsDir a shared mount as ip(8) does. If it were not
// one yet, the first "ip netns add" would mount it over itself, and the mounts
// below would be out of reach for removal.
func prepareNetnsDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("making the directory of namespaces: %w", err)
	}
	share := func() error { return unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "") }
	err := share()
	if errors.Is(err, unix.EINVAL) { // not a mount point yet
		if err := unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mounting %s over itself: %w", netnsDir, err)
		}
		err = share()
	}
	if err != nil {
		return fmt.Errorf("making %s a shared mount: %w", netnsDir, err)
	}
	return nil
}

// removeNamespace undoes makeNamespace, also a half of it.
func removeNamespace(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmounting the namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the namespace: %w", err)
	}
	return nil
}

// makeHosts makes the namespaces.
func makeHosts(p paths, middlebox bool) error {
	hosts := []string{"A", "B"}
	if middlebox {
		hosts = append(hosts, middleName)
	}
	for _, host := range hosts {
		if err := makeNamespace(p.netns(host)); err != nil {
			return err
		}
	}
	return nil
}

// bpfFS is where the daemons pin their programs and maps.
const bpfFS = "/sys/fs/bpf"

// ensureBPFFS mounts a BPF file system if the machine has none, which is so in
// many containers and small VMs.
func ensureBPFFS() error {
	var st unix.Statfs_t
	if err := unix.Statfs(bpfFS, &st); err != nil {
		return fmt.Errorf("looking for the BPF file system at %s: %w", bpfFS, err)
	}
	if st.Type == unix.BPF_FS_MAGIC {
		return nil
	}
	if err := unix.Mount("bpf", bpfFS, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mounting the BPF file system at %s: %w", bpfFS, err)
	}
	return nil
}

// paths are the places that belong to the testbed of a name.
type paths struct {
	name  string
	lock  string
	state string
	pins  string
}

func pathsOf(name string) paths {
	return paths{
		name:  name,
		lock:  "/run/" + name + "-testbed.lock",
		state: "/run/" + name + "-testbed",
		pins:  filepath.Join(bpfFS, name+"-testbed"),
	}
}

// netns is the file of a host's network namespace.
func (p paths) netns(host string) string {
	return filepath.Join(netnsDir, p.name+"-"+host)
}

// runDir is the run directory of a host's daemon.
func (p paths) runDir(host string) string { return filepath.Join(p.state, host) }

// pinDir is where a host's daemon pins.
func (p paths) pinDir(host string) string { return filepath.Join(p.pins, host) }
