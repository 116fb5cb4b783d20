package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tallyman-dev/tallyman/nodes"
)

// copied makes the data of a volume whose content begins with another's. The
// other must not be staged: a copy made file by file while somebody writes is
// of no one instant. Its lock is held meanwhile, so nobody stages it.
func (p *Persistent) copied(ctx context.Context, v *nodes.Volume) error {
	source := filepath.Join(p.dir, v.From.Name+"-"+v.From.UID)
	lock := filepath.Base(source)
	p.locks.Lock(lock)
	defer p.locks.Unlock(lock)
	kept, err := readRecord(source)
	if err != nil || !kept.Made {
		return trouble(ReasonProvisioning, "volume %s begins with the content of %s, which is not whole on this node", v.Name, v.From.Name)
	}
	image := filepath.Join(source, imageFile)
	inFile, err := asImage(v)
	if err != nil {
		return err
	}
	if !v.Snapshot && inFile != exists(image) {
		return trouble(ReasonProvisioning, "volume %s begins with the content of %s, which is kept in another way: give the claim the StorageClass of its source", v.Name, v.From.Name)
	}
	if exists(image) {
		err = copyImage(ctx, image, filepath.Join(p.home(v), imageFile))
	} else {
		err = p.copyDir(ctx, v, filepath.Join(source, dataDir), filepath.Join(p.home(v), dataDir))
	}
	if err != nil {
		return trouble(ReasonProvisioning, "copy %s to volume %s: %w", v.From.Name, v.Name, err)
	}
	return nil
}

// copyDir makes a directory with all that is in another. It gets its limit
// before its content, which is then counted.
func (p *Persistent) copyDir(ctx context.Context, v *nodes.Volume, from, to string) error {
	fresh := to + unfinished
	if err := removeTrees(fresh); err != nil {
		return err
	}
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return err
	}
	p.limit(fresh, v.Spec.Capacity.Storage().Value())
	if err := copyTo(ctx, "--archive", from, fresh); err != nil {
		return err
	}
	if err := syncTree(fresh); err != nil {
		return err
	}
	return renameSynced(fresh, to)
}

func copyImage(ctx context.Context, from, to string) error {
	fresh := to + unfinished
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := copyTo(ctx, "--sparse=always", from, fresh); err != nil {
		return err
	}
	if err := syncFile(fresh); err != nil {
		return err
	}
	return renameSynced(fresh, to)
}

// copyTo runs cp, for as long as it takes. Where the file system can, the copies
// share their blocks.
func copyTo(ctx context.Context, how, from, to string) error {
	path, err := findProgram("cp")
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, path, how, "--reflink=auto", "--no-target-directory", "--", from, to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("cp: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// syncTree writes everything on a path's file system to the disk.
func syncTree(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}
