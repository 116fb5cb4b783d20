//go:build e2e

package volume

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes"
)

// quotaDisk mounts an ext4 with project quotas and reports whether this kernel
// keeps them; where it does not, an ext4 without.
func quotaDisk(t *testing.T) (dir string, quotas bool) {
	t.Helper()
	dir = t.TempDir()
	disk := filepath.Join(t.TempDir(), "disk")
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	for _, options := range []string{"loop,prjquota", "loop"} {
		must(t, os.RemoveAll(disk))
		must(t, growFile(disk, 128<<20))
		format := []string{"-q", "-F", disk}
		if options != "loop" {
			format = append([]string{"-O", "project,quota", "-E", "quotatype=prjquota"}, format...)
		}
		_, err := execute(t.Context(), "mkfs.ext4", format...)
		must(t, err)
		if _, err = execute(t.Context(), "mount", "-t", "ext4", "-o", options, disk, dir); err == nil {
			return dir, options != "loop"
		}
		t.Log(err)
	}
	t.Fatal("no ext4 can be mounted")
	return "", false
}

// fillAsContainer writes megabytes as a container would, without CAP_SYS_RESOURCE.
func fillAsContainer(path string, megabytes int) error {
	cmd := exec.Command("setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource",
		"dd", "if=/dev/zero", "of="+path, "bs=1M", fmt.Sprintf("count=%d", megabytes))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func TestProjectQuotasBindDirectories(t *testing.T) {
	disk, quotas := quotaDisk(t)
	p := newPersistent(t, disk, t.TempDir())
	t.Cleanup(func() { must(t, p.Reset(context.Background(), true)) })
	one, two := provisioned("one", "8Mi", nil), provisioned("two", "8Mi", nil)
	for _, v := range []*nodes.Volume{one, two} {
		status, err := p.Ensure(t.Context(), v)
		must(t, err)
		if (status.Unenforced == "") != quotas {
			t.Fatalf("the kernel keeps quotas: %v, and the status says %q", quotas, status.Unenforced)
		}
	}
	if !quotas {
		return // which was looked at above
	}
	path := filepath.Join(staged(t, p, one).Path, "big")
	if err := fillAsContainer(path, 9); err == nil || !strings.Contains(err.Error(), "quota exceeded") && !strings.Contains(err.Error(), "No space left") {
		t.Errorf("9 MiB in a volume of 8: %v", err)
	}
	must(t, fillAsContainer(filepath.Join(staged(t, p, two).Path, "other"), 7)) // it counts for itself
	if status, err := p.Ensure(t.Context(), larger(one, "16Mi")); err != nil || status.Unenforced != "" {
		t.Fatalf("%+v, %v", status, err)
	}
	must(t, fillAsContainer(path, 12))
}
