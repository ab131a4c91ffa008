// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/etran-go/etran/runtime/internal/rules"
)

// envRunDir names the daemon's directory, to this tool and to libetran.so.
const envRunDir = "ETRAN_RUN_DIR"

// envRules names the file of rules.
const envRules = "ETRAN_RULES"

// envLib names the library to preload, in place of the one beside the tool.
const envLib = "ETRAN_LIB"

const envPreload = "LD_PRELOAD"

// controlSocket is where libetran.so meets the daemon, in its run directory.
const controlSocket = "control.sock"

// Exit statuses for programs that can't be run, as env(1) and shells use them.
const (
	statusRefused  = 125 // by --strict
	statusNoExec   = 126
	statusNotFound = 127
)

func newRunCommand(runDir *string) *cobra.Command {
	var o settingFlags
	var file string
	cmd := &cobra.Command{
		Use:   "run [options] -- command…",
		Short: "run a program with its TCP connections on the fast path",
		Long: `Run a program with libetran.so preloaded. Its TCP connections go to the fast
path when they have shown that they live, and back whenever it must be.

What the rules say of the program counts, if there are any; options win over
them. A program that can't be accelerated is run all the same, on the kernel's
TCP, and a line on standard error says why; --strict makes that an error, and
resets connections that are refused the fast path.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := rules.Load(file)
			if err != nil {
				return err
			}
			settings, err := o.settings(cmd.Flags().Changed)
			if err != nil {
				return err
			}
			return run(cmd, *runDir, &r, settings, args)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // flags after the command are the command's
	f.StringVar(&file, "rules", os.Getenv(envRules), "file of rules; the default is $"+envRules+", or "+rules.DefaultFile+" if it exists")
	o.define(f)
	return cmd
}

// settingFlags are the flags for what rules can say, too.
type settingFlags struct {
	profile, promote, log   string
	exchanges, bytes, spins uint32
	ports, networks         []string
	strict                  bool
}

func (o *settingFlags) define(f *pflag.FlagSet) {
	f.StringVar(&o.profile, "profile", "", "safe (promotes late, never spins), balanced (as the daemon has it) or latency (promotes at once, spins)")
	f.StringVar(&o.promote, "promote", "", "when connections go to the fast path: on (when worth it), off, eager (at once)")
	f.Uint32Var(&o.exchanges, "after-exchanges", 0, "exchanges before a connection is promoted (default: the daemon's)")
	f.Uint32Var(&o.bytes, "after-bytes", 0, "or bytes, whichever is first (default: the daemon's)")
	f.Uint32Var(&o.spins, "spin-us", 0, "how long calls spin before they block, at most, in µs; 0 never spins (default: the daemon's)")
	f.StringSliceVar(&o.ports, "ports", nil, "promote only connections with one of these ports, or ranges, at an end")
	f.StringSliceVar(&o.networks, "networks", nil, "promote only connections with a peer in one of these")
	f.BoolVar(&o.strict, "strict", false, "fail if the program or a connection of it can't be accelerated")
	f.StringVar(&o.log, "log", "", "file for the library's log")
}

// settings are those of the flags that were given.
func (o *settingFlags) settings(given func(flag string) bool) (rules.Settings, error) {
	s := rules.Settings{Log: o.log}
	if given("after-exchanges") {
		s.AfterExchanges = &o.exchanges
	}
	if given("after-bytes") {
		s.AfterBytes = &o.bytes
	}
	if given("spin-us") {
		s.SpinUs = &o.spins
	}
	if given("strict") {
		s.Strict = &o.strict
	}
	var err error
	if o.profile != "" {
		err = errors.Join(err, s.Profile.UnmarshalText([]byte(o.profile)))
	}
	if o.promote != "" {
		err = errors.Join(err, s.Promote.UnmarshalText([]byte(o.promote)))
	}
	for _, text := range o.ports {
		var ports rules.Ports
		err = errors.Join(err, ports.UnmarshalText([]byte(text)))
		s.Ports = append(s.Ports, ports)
	}
	for _, text := range o.networks {
		network, parseErr := netip.ParsePrefix(text)
		err = errors.Join(err, parseErr)
		s.Networks = append(s.Networks, network)
	}
	return s, err
}

// run replaces this process by the program. It returns only errors.
func run(cmd *cobra.Command, runDir string, r *rules.Rules, flags rules.Settings, args []string) error {
	path, err := exec.LookPath(args[0])
	if err != nil {
		status := statusNotFound
		if errors.Is(err, fs.ErrPermission) {
			status = statusNoExec
		}
		return &exitError{status, err}
	}
	settings := flags.Over(r.For(path))
	env, err := settings.Environment()
	if err != nil {
		return err
	}
	strict := settings.Strict != nil && *settings.Strict
	if err := checkProgram(cmd.ErrOrStderr(), path, args[1:], runDir, strict); err != nil {
		return err
	}
	lib, err := findLibrary()
	if err != nil {
		return err
	}
	env = append(env, envRunDir+"="+runDir, preload(lib, os.Getenv(envPreload)))
	if err := syscall.Exec(path, args, mergeEnvironment(os.Environ(), env)); err != nil {
		return &exitError{statusNoExec, fmt.Errorf("running %s: %w", path, err)}
	}
	return nil
}

// checkProgram says on w why a program won't be accelerated, or returns that
// as an error if the program is to run strictly.
func checkProgram(w io.Writer, path string, args []string, runDir string, strict bool) error {
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
	if strict {
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
