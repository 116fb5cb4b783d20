package csi

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// share makes dir part of a shared mount: what is mounted below it on the
// machine appears in containers, and the other way round. Mark is called before
// dir is mounted on itself for that.
func share(dir string, mark func() error) error {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	point, shared, err := mountOf(dir)
	if err != nil || shared {
		return err
	}
	if point != dir {
		if err := mark(); err != nil {
			return err
		}
		if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s on itself: %w", dir, err)
		}
	}
	return unix.Mount("", dir, "", unix.MS_SHARED, "")
}

// mountOf finds the mount that a path lies on, and whether that is shared.
func mountOf(path string) (point string, shared bool, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 7 {
			continue
		}
		at := unescape.Replace(words[4])
		inside := at == path || at == "/" || strings.HasPrefix(path, at+"/")
		if inside && len(at) >= len(point) { // of two at one place, the later is on top
			point, shared = at, false
			for _, w := range words[6:] {
				if w == "-" {
					break
				}
				shared = shared || strings.HasPrefix(w, "shared:")
			}
		}
	}
	return point, shared, lines.Err()
}

// unescape undoes how the kernel writes paths in mountinfo.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// mountedOn reports whether anything is mounted on a path.
func mountedOn(path string) (bool, error) {
	real, err := filepath.EvalSymlinks(filepath.Dir(path))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	path = filepath.Join(real, filepath.Base(path))
	point, _, err := mountOf(path)
	return point == path, err
}
