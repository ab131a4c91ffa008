// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// The environment variables that libetran.so reads.
const (
	envPromote = "ETRAN_PROMOTE"
	envSpin    = "ETRAN_SPIN_US"
	envAfter   = "ETRAN_PROMOTE_AFTER"
	envLog     = "ETRAN_LOG"
	envRequire = "ETRAN_REQUIRE"
	envRunDir  = "ETRAN_RUN_DIR"
)

// envLib names the library to preload, in place of the one beside the tool.
const envLib = "ETRAN_LIB"

const envPreload = "LD_PRELOAD"

// controlSocket is where libetran.so meets the daemon, in its run directory.
const controlSocket = "control.sock"

// Exit statuses for programs that can't be run, as env(1) and shells use them.
const (
	statusRefused  = 125 // by --require
	statusNoExec   = 126
	statusNotFound = 127
)

// runOptions are the flags of etran run.
type runOptions struct {
	promote   string
	spinUs    int
	exchanges int
	log       string
	require   bool
}

func newRunCommand(runDir *string) *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run [options] -- command…",
		Short: "run a program with its TCP connections on the fast path",
		Long: `Run a program with libetran.so preloaded. Its TCP connections go to the fast
path when they have shown that they live, and back whenever it must be.

A program that can't be accelerated is run all the same, on the kernel's TCP,
and a line on standard error says why; --require makes that an error.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return run(cmd, *runDir, o, args)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // flags after the command are the command's
	f.StringVar(&o.promote, "promote", "on", "when connections go to the fast path: on (when worth it), off, eager")
	f.IntVar(&o.spinUs, "spin-us", 0, "how long calls spin before they block, at most, in µs; 0 never spins (default: adaptive)")
	f.IntVar(&o.exchanges, "after-exchanges", 0, "exchanges before a connection is promoted (default: the library's)")
	f.StringVar(&o.log, "log", "", "file for the library's log")
	f.BoolVar(&o.require, "require", false, "fail if the program can't be accelerated")
	return cmd
}

// run replaces this process by the program. It returns only errors.
func run(cmd *cobra.Command, runDir string, o runOptions, args []string) error {
	settings, err := o.environment(cmd.Flags().Changed, runDir)
	if err != nil {
		return err
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		status := statusNotFound
		if errors.Is(err, fs.ErrPermission) {
			status = statusNoExec
		}
		return &exitError{status, err}
	}
	if err := checkProgram(cmd.ErrOrStderr(), path, args[1:], runDir, o.require); err != nil {
		return err
	}
	lib, err := findLibrary()
	if err != nil {
		return err
	}
	environ := mergeEnvironment(os.Environ(), settings)
	environ = mergeEnvironment(environ, []string{preload(lib, os.Getenv(envPreload))})
	if err := syscall.Exec(path, args, environ); err != nil {
		return &exitError{statusNoExec, fmt.Errorf("running %s: %w", path, err)}
	}
	return nil
}

// environment translates the flags that were given. Others leave the
// environment alone, so that an outer setting passes through.
func (o runOptions) environment(given func(flag string) bool, runDir string) ([]string, error) {
	if !slices.Contains([]string{"on", "off", "eager"}, o.promote) {
		return nil, fmt.Errorf("--promote=%s: it takes on, off or eager", o.promote)
	}
	if o.spinUs < 0 || o.exchanges < 0 {
		return nil, errors.New("--spin-us and --after-exchanges take no negative numbers")
	}
	env := []string{envRunDir + "=" + runDir}
	if given("promote") {
		env = append(env, envPromote+"="+o.promote)
	}
	if given("spin-us") {
		env = append(env, envSpin+"="+strconv.Itoa(o.spinUs))
	}
	if given("after-exchanges") {
		env = append(env, envAfter+"="+strconv.Itoa(o.exchanges))
	}
	if given("log") {
		// The program may change its working directory.
		path, err := filepath.Abs(o.log)
		if err != nil {
			return nil, fmt.Errorf("finding the log file %s: %w", o.log, err)
		}
		env = append(env, envLog+"="+path)
	}
	if o.require {
		env = append(env, envRequire+"=1")
	}
	return env, nil
}

// checkProgram says on w why a program won't be accelerated, or returns that
// as an error if acceleration is required.
func checkProgram(w io.Writer, path string, args []string, runDir string, require bool) error {
	reason, err := whyNotPreloadable(path, args)
	if err != nil {
		return &exitError{statusNoExec, err}
	}
	socket := filepath.Join(runDir, controlSocket)
	if reason == "" {
		if _, err := os.Stat(socket); err != nil {
			reason = fmt.Sprintf("%s can't be accelerated: no etrand runs there (%v)", path, err)
		}
	}
	if reason == "" {
		return nil
	}
	if require {
		return &exitError{statusRefused, errors.New(reason)}
	}
	fmt.Fprintf(w, "etran: %s; it runs on the kernel's TCP\n", reason)
	return nil
}

// findLibrary finds libetran.so: where $ETRAN_LIB says, beside this program,
// or in the lib directory of the installation that this program is in.
func findLibrary() (string, error) {
	var candidates []string
	if lib := os.Getenv(envLib); lib != "" {
		candidates = []string{lib}
	} else {
		self, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("finding libetran.so: %w", err)
		}
		dir := filepath.Dir(self)
		candidates = []string{
			filepath.Join(dir, "libetran.so"),
			filepath.Join(dir, "..", "lib", "etran", "libetran.so"),
		}
	}
	for _, path := range candidates {
		if _, err := os.Stat(path); err != nil {
			continue
		}
		abs, err := filepath.Abs(path)
		if err != nil {
			return "", fmt.Errorf("finding libetran.so: %w", err)
		}
		if strings.ContainsAny(abs, " :") {
			return "", fmt.Errorf("libetran.so is at %q: the dynamic linker takes no path with spaces or colons", abs)
		}
		return abs, nil
	}
	return "", fmt.Errorf("finding libetran.so: not at %s; set $%s", strings.Join(candidates, " nor "), envLib)
}

// preload adds the library in front of what is preloaded already.
func preload(lib, before string) string {
	if before == "" {
		return envPreload + "=" + lib
	}
	return envPreload + "=" + lib + ":" + before
}

// mergeEnvironment replaces variables of an environment, and adds new ones.
func mergeEnvironment(environ, settings []string) []string {
	var merged []string
	for _, old := range environ {
		name, _, _ := strings.Cut(old, "=")
		replaced := slices.ContainsFunc(settings, func(s string) bool {
			return strings.HasPrefix(s, name+"=")
		})
		if !replaced {
			merged = append(merged, old)
		}
	}
	return append(merged, settings...)
}
