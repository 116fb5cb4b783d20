package keeper

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestALongListKillsNobodyElse: a list that does not fit may end within a number.
func TestALongListKillsNobodyElse(t *testing.T) {
	other := exec.Command("sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	const nobody = "4194304\n" // beyond what any kernel gives
	list := fmt.Sprintf("%s%d99\n", nobody, other.Process.Pid)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	for size := len(nobody); size < len(list); size++ {
		k := &killer{signal: unix.SIGKILL, procs: make([]byte, size)}
		if found, err := k.signalAll(dir, k.signal); err != nil || found != 1 {
			t.Errorf("%d bytes: found %d, %v", size, found, err)
		}
	}
	if err := other.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = other.Wait()
	if by := other.ProcessState.Sys().(syscall.WaitStatus).Signal(); by != syscall.SIGTERM {
		t.Errorf("another process ended by %s", by)
	}
}
