// SPDX-License-Identifier: Apache-2.0

package preload_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// goPreloaded is tests/preload/progs/preloaded.c in Go.
const goPreloaded = `package main

import (
	"fmt"
	"os"
	"strings"
)

func main() {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		panic(err)
	}
	if strings.Contains(string(maps), "libetran.so") {
		fmt.Println("preloaded")
	} else {
		fmt.Println("plain")
	}
	os.Exit(7)
}
`

// TestRun: etran run says what it can't accelerate, and why, and runs it all the
// same; --strict makes that an error. The programs are real ones, and say
// themselves whether they have the library.
func TestRun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	for _, tc := range []struct {
		name, program string
		env           []string
		says          string // stdout
		reason        string // part of the notice; "" for none
	}{
		{"dynamic", build(t, "progs/preloaded"), nil, "preloaded", ""},
		{"script", script(t, build(t, "progs/preloaded")), nil, "preloaded", ""},
		{"static", staticProgram(t), nil, "plain", "it is statically linked"},
		{"script of a static program", script(t, staticProgram(t)), nil, "plain", "it is statically linked"},
		{"Go", goProgram(t, "CGO_ENABLED=0"), nil, "plain", "it is a Go program"},
		// The dynamic linker loads the library, which then does nothing.
		{"Go with libc", goProgram(t, "CGO_ENABLED=1", "-ldflags=-linkmode=external"), nil, "", "it is a Go program"},
		{"setuid", privileged(t, os.ModeSetuid), nil, "plain", "it is a setuid program"},
		{"setgid", privileged(t, os.ModeSetgid), nil, "plain", "it is a setgid program"},
		{"no daemon", build(t, "progs/preloaded"), []string{"ETRAN_RUN_DIR=" + t.TempDir()}, "preloaded", "no etrand runs there"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.program == "" {
				t.Skip("only root can give a file away")
			}
			env := append([]string{"ETRAN_RUN_DIR=" + dir}, tc.env...)
			got := etranRun(t, env, "run", "--", tc.program)
			if got.exit != 7 || (tc.says != "" && got.stdout != tc.says+"\n") {
				t.Errorf("got %+v, want %q and status 7", got, tc.says)
			}
			if !strings.Contains(got.stderr, tc.reason) || (tc.reason == "") != (got.stderr == "") {
				t.Errorf("said %q, want %q in it", got.stderr, tc.reason)
			}
			if tc.reason != "" && !strings.Contains(got.stderr, "it runs on the kernel's TCP") {
				t.Errorf("said %q, want what happens", got.stderr)
			}
			got = etranRun(t, env, "run", "--strict", "--", tc.program)
			if tc.reason == "" && got.exit != 7 {
				t.Errorf("with --strict: %+v", got)
			}
			if tc.reason != "" && (got.exit != 125 || got.stdout != "" || !strings.Contains(got.stderr, tc.reason)) {
				t.Errorf("with --strict: %+v, want status 125 and %q", got, tc.reason)
			}
		})
	}
}

// etranRun runs the build's etran.
func etranRun(t *testing.T, env []string, args ...string) result {
	t.Helper()
	return runEnv(t, env, build(t, "etran"), args...)
}

func staticProgram(t *testing.T) string {
	t.Helper()
	return compile(t, nil, "cc", "-static", "-o", "OUT", "progs/preloaded.c")
}

func goProgram(t *testing.T, env string, flags ...string) string {
	t.Helper()
	source := filepath.Join(t.TempDir(), "main.go")
	text := goPreloaded
	if env == "CGO_ENABLED=1" {
		text = strings.Replace(text, "import (", "import \"C\"\n\nimport (", 1)
	}
	if err := os.WriteFile(source, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"go", "build", "-o", "OUT"}, flags...)
	return compile(t, []string{env}, append(args, source)...)
}

// compile runs a compiler whose argument OUT is the program to make.
func compile(t *testing.T, env []string, args ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "program")
	for i := range args {
		if args[i] == "OUT" {
			args[i] = out
		}
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, text)
	}
	return out
}

func script(t *testing.T, interpreter string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(path, []byte("#!"+interpreter+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// privileged copies a dynamic program and gives it another's rights; "" if this
// is not root, who alone can.
func privileged(t *testing.T, mode os.FileMode) string {
	t.Helper()
	if os.Getuid() != 0 {
		return ""
	}
	image, err := os.ReadFile(build(t, "progs/preloaded"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "privileged")
	if err := os.WriteFile(path, image, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o755|mode); err != nil {
		t.Fatal(err)
	}
	return path
}
