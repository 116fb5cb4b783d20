package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest/daemon"
	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest/image"
	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest/registry"
	"github.com/tallyman-dev/tallyman/status/client"
)

// RegistryAddress is where a machine's registry listens: the one that
// examples-repo names.
const RegistryAddress = "127.0.0.1:7490"

// PageAddress is where a machine's tally serves HTTP.
const PageAddress = "127.0.0.1:7480"

// Machine is one machine with containerd, a registry and the tally binary. It
// belongs to one test.
type Machine struct {
	// Dir holds everything; DataDir and RunDir are tally's.
	Dir, DataDir, RunDir string
	Containerd           *daemon.Daemon
	Registry             *registry.Registry

	t      testing.TB
	binary string
	up     *exec.Cmd
	ended  chan struct{}
}

// binaryVariable names another binary than build/tally to test.
const binaryVariable = "TEST_TALLY"

// New makes a machine and clears it away when the test ends. The binary is
// build/tally, which make build makes, or the one that TEST_TALLY names.
func New(t testing.TB) *Machine {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "m") // short: a socket's path has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	m := &Machine{
		t: t, binary: Built(t), Dir: dir,
		DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "tally"),
	}
	ctx := context.Background()
	if m.Containerd, err = daemon.Start(ctx, filepath.Join(dir, "containerd")); err != nil {
		t.Fatal(err)
	}
	if m.Registry, err = registry.Start(ctx, registry.Options{Dir: filepath.Join(dir, "registry"), Addr: RegistryAddress}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.clear)
	return m
}

// Built is the binary under test.
func Built(t testing.TB) string {
	t.Helper()
	binary := os.Getenv(binaryVariable)
	if binary == "" {
		binary = filepath.Join(Root(t), "build", "tally")
	}
	if _, err := os.Stat(binary); err != nil {
		t.Fatalf("%v: run make build first", err)
	}
	return binary
}

// For returns the machine for a subtest, whose failures are then its own. Only
// the machine itself starts and stops tally.
func (m *Machine) For(t testing.TB) *Machine {
	other := *m
	other.t = t
	return &other
}

// clear ends everything and looks that nothing is left behind.
func (m *Machine) clear() {
	m.Stop()
	if _, err := os.Stat(m.DataDir); err == nil {
		r := m.TallyRaw("reset", "--data-dir", m.DataDir, "--run-dir", m.RunDir, "--containerd", m.Containerd.Address)
		if r.Code != 0 {
			m.t.Errorf("tally reset: exit code %d", r.Code)
		}
		defer func() {
			if m.t.Failed() {
				m.t.Logf("tally reset said:\n%s%s", r.Out, r.Err)
			}
		}()
	}
	m.checkNothingLeft()
	if m.t.Failed() {
		m.show("tally.log")
		m.show(filepath.Join("containerd", "containerd.log"))
	}
	if err := errors.Join(m.Registry.Stop(), m.Containerd.Stop(), os.RemoveAll(m.Dir)); err != nil {
		m.t.Error(err)
	}
}

// checkNothingLeft is what reset promises.
func (m *Machine) checkNothingLeft() {
	rules, err := exec.Command("iptables-save").Output()
	if err == nil && bytes.Contains(rules, []byte("TALLY")) {
		m.t.Errorf("reset left iptables rules:\n%s", rules)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	for _, dir := range []string{m.RunDir, m.KubeletDir()} {
		if err == nil && bytes.Contains(mounts, []byte(" "+dir)) {
			m.t.Errorf("reset left mounts below %s:\n%s", dir, mounts)
		}
	}
	links, err := exec.Command("ip", "-brief", "link").Output()
	if err == nil && bytes.Contains(links, []byte("tally")) {
		m.t.Errorf("reset left network links:\n%s", links)
	}
	err = retry(30*time.Second, func() error { // a shim ends a moment after its last container
		for line := range strings.Lines(processes()) {
			if strings.Contains(line, m.RunDir) || strings.Contains(line, "containerd-shim") {
				return fmt.Errorf("reset left a process: %s", line)
			}
		}
		return nil
	})
	if err != nil {
		m.t.Error(err)
	}
}

func processes() string {
	var all strings.Builder
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		if content, err := os.ReadFile(path); err == nil && len(content) > 0 {
			all.WriteString(strings.ReplaceAll(string(content), "\x00", " ") + "\n")
		}
	}
	return all.String()
}

func (m *Machine) show(log string) { ShowLog(m.t, log, filepath.Join(m.Dir, log)) }

// ShowLog tells what is worth reading of a log after a failure, the newest of
// it: a hundred pages would bury the failure itself.
func ShowLog(t testing.TB, name, path string) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		return
	}
	const last, most, wide = 15, 40, 300 // lines, and their characters
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	var shown []string
	for i, line := range slices.Backward(lines) {
		said := strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR")
		if len(shown) < most && (said || i >= len(lines)-last) {
			shown = append(shown, line[:min(len(line), wide)])
		}
	}
	slices.Reverse(shown)
	t.Logf("of %s:\n%s", name, strings.Join(shown, "\n"))
}

// Root is the root of the sources.
func Root(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		t.Fatalf("find the root of the sources: %v", err)
	}
	return strings.TrimSpace(string(out))
}

func (m *Machine) command(args ...string) *exec.Cmd {
	return exec.Command(m.binary, args...)
}

// Up starts tally up with more flags and waits until it is ready.
func (m *Machine) Up(flags ...string) {
	m.t.Helper()
	m.Start(flags...)
	m.await("/readyz")
}

// Serve starts tally server, without a node on this machine, and waits until it
// answers.
func (m *Machine) Serve(flags ...string) {
	m.t.Helper()
	m.start(append([]string{"server", "--data-dir", m.DataDir, "--run-dir", m.RunDir, "--http", PageAddress}, flags...))
	m.await("/healthz")
}

// await asks a page that needs no token until it answers.
func (m *Machine) await(page string) {
	m.t.Helper()
	m.Eventually(30*time.Second, "tally answers at "+page, func() error {
		select {
		case <-m.ended:
			m.show("tally.log")
			m.t.Fatal("tally ended")
		default:
		}
		answer, err := http.Get("http://" + PageAddress + page)
		if err != nil {
			return err
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return errors.New(answer.Status)
		}
		return nil
	})
}

// KubeletDir is the directory that storage drivers share with the node.
func (m *Machine) KubeletDir() string { return filepath.Join(m.Dir, "kubelet") }

// Start starts tally up without waiting.
func (m *Machine) Start(flags ...string) {
	m.t.Helper()
	m.start(append([]string{
		"up", "--data-dir", m.DataDir, "--run-dir", m.RunDir, "--containerd", m.Containerd.Address,
		"--http", PageAddress, "--node-name", "node", "--device-plugins", filepath.Join(m.RunDir, "device-plugins"), "--kubelet-dir", m.KubeletDir(),
	}, flags...))
}

// start runs a long-running command of tally.
func (m *Machine) start(args []string) {
	m.t.Helper()
	log, err := os.OpenFile(filepath.Join(m.Dir, "tally.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	m.up = m.command(args...)
	m.up.Stdout, m.up.Stderr = log, log
	if err := m.up.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.ended = make(chan struct{})
	go func(cmd *exec.Cmd, ended chan struct{}) { cmd.Wait(); close(ended) }(m.up, m.ended)
}

// Use has all that is started from now on run another binary.
func (m *Machine) Use(binary string) { m.binary = binary }

// Binary that is run.
func (m *Machine) Binary() string { return m.binary }

// PID of tally up.
func (m *Machine) PID() int { return m.up.Process.Pid }

// Kill ends tally up as a crash would; Stop asks it to end.
func (m *Machine) Kill() { m.end(syscall.SIGKILL) }

// Stop ends tally up; containers and the keeper stay.
func (m *Machine) Stop() { m.end(syscall.SIGTERM) }

func (m *Machine) end(signal syscall.Signal) {
	if m.up == nil {
		return
	}
	if err := m.up.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		m.t.Error(err)
	}
	select {
	case <-m.ended:
	case <-time.After(20 * time.Second):
		m.t.Error("tally up did not end in 20 s")
		m.up.Process.Kill()
		<-m.ended
	}
	m.up = nil
}

// Result of a command.
type Result struct {
	Out, Err string
	Code     int
}

// Tally runs a client command of tally against this machine's server.
func (m *Machine) Tally(command string, args ...string) Result {
	m.t.Helper()
	return run(m.command(append([]string{command, "--run-dir", m.RunDir}, args...)...))
}

// TallyRaw runs tally with exactly these arguments.
func (m *Machine) TallyRaw(args ...string) Result { return run(m.command(args...)) }

func run(cmd *exec.Cmd) Result { return Run(cmd, (*exec.Cmd).Start) }

// Run starts a command as told and waits for its end.
func Run(cmd *exec.Cmd, start func(*exec.Cmd) error) Result {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	code := cmd.ProcessState.ExitCode()
	if err != nil && code <= 0 {
		return Result{out.String(), errs.String() + err.Error(), -1}
	}
	return Result{out.String(), errs.String(), code}
}

// Overview is what the server shows now.
func (m *Machine) Overview() (*nodes.Overview, error) {
	c, err := client.New(client.Options{Socket: filepath.Join(m.RunDir, "tally.sock")})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return c.Overview(ctx)
}

// Token opens the server over HTTP.
func (m *Machine) Token() string {
	m.t.Helper()
	content, err := os.ReadFile(filepath.Join(m.RunDir, "token"))
	if err != nil {
		m.t.Fatal(err)
	}
	return strings.TrimSpace(string(content))
}

// PushImage builds a Go program of this module and pushes it as
// RegistryAddress/name; env tells versions of one program apart.
func (m *Machine) PushImage(program, name string, env ...string) string {
	m.t.Helper()
	ref := RegistryAddress + "/" + name
	PushProgram(m.t, program, ref, env...)
	return ref
}

// PushProgram builds a Go program of this module and pushes it under a reference.
func PushProgram(t testing.TB, program, ref string, env ...string) {
	t.Helper()
	binary, err := image.BuildBinary(context.Background(), program, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	built, err := image.Build(image.Spec{Binaries: map[string]string{"/program": binary}, Entrypoint: []string{"/program"}, Env: env})
	if err != nil {
		t.Fatal(err)
	}
	if err := image.Push(context.Background(), ref, built, "", ""); err != nil {
		t.Fatal(err)
	}
}

// Eventually tries until it works; when patience ends the test fails with the
// last error. It is the one place where tests wait.
func (m *Machine) Eventually(patience time.Duration, what string, try func() error) {
	m.t.Helper()
	Eventually(m.t, patience, what, try)
}

// Eventually is the same for tests that have no Machine.
func Eventually(t testing.TB, patience time.Duration, what string, try func() error) {
	t.Helper()
	if err := retry(patience, try); err != nil {
		t.Fatalf("%s: not after %s: %v", what, patience, err)
	}
}

// retry returns the last error when patience ends.
func retry(patience time.Duration, try func() error) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if err := try(); err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// WaitConverged waits until the revision is in force, converged and healthy.
func (m *Machine) WaitConverged(sha string, patience time.Duration) {
	m.t.Helper()
	if r := m.Tally("wait", "--commit", sha, "--timeout", patience.String()); r.Code != 0 {
		m.t.Fatalf("revision %s: exit code %d: %s", sha, r.Code, r.Err)
	}
}

// Pods lists the running pods of an owner's name prefix in a namespace.
func Pods(o *nodes.Overview, namespace, prefix string) []nodes.ObjectHealth {
	var pods []nodes.ObjectHealth
	for _, object := range o.Objects {
		if object.Pod != nil && object.Key.Namespace == namespace && strings.HasPrefix(object.Key.Name, prefix) {
			pods = append(pods, object)
		}
	}
	return pods
}
