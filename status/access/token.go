package access

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
)

// minToken is the shortest token that we accept from the file, in characters.
const minToken = 20

// readOrMake gives the token in the file at path, which it makes first when
// there is none. Others than owner and group lose their access to it.
func readOrMake(path, group string) (string, error) {
	token, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := create(path, group); err != nil {
			return "", fmt.Errorf("make token %s: %w", path, err)
		}
		token, err = read(path)
	}
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	if len(token) < minToken {
		return "", fmt.Errorf("token %s has %d characters and needs %d: remove the file to have another made", path, len(token), minToken)
	}
	return token, nil
}

func read(path string) (string, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a regular file", path)
	}
	if info.Mode().Perm()&0o027 != 0 {
		if err := os.Chmod(path, info.Mode().Perm()&^0o027); err != nil {
			return "", err
		}
	}
	content, err := os.ReadFile(path)
	return strings.TrimSpace(string(content)), err
}

// create writes a new token under its final name at once and whole; when
// another process was faster, its file stays.
func create(path, group string) error {
	file, err := os.CreateTemp(filepath.Dir(path), ".token-*")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	if _, err := file.WriteString(newToken() + "\n"); err != nil {
		return err
	}
	if gid, found := groupID(group); found {
		if err := file.Chown(-1, gid); err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
	}
	if err := file.Chmod(0o640); err != nil {
		return err
	}
	if err := os.Link(file.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func groupID(name string) (int, bool) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, false
	}
	gid, err := strconv.Atoi(g.Gid)
	return gid, err == nil
}
