package main

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// keySize is the length of the cluster key and of every key derived from it, in bytes.
const keySize = 32

// errKeyLost is returned when there is no key, but something that needs it.
var errKeyLost = errors.New("the cluster key is missing")

// clusterKey is the secret that everything kept encrypted goes back to.
type clusterKey []byte

// openKey reads the cluster key from dir, or makes one where none is yet.
func openKey(dir string) (clusterKey, error) {
	path := filepath.Join(dir, "key")
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if missed := needsKey(dir); missed != "" {
			return nil, fmt.Errorf("%s: %w, but %s was made with it: restore the key from your backup; "+
				"without one, run tally reset, which stops everything, and remove that file to begin anew", path, errKeyLost, missed)
		}
		return makeKey(path)
	}
	if err != nil {
		return nil, fmt.Errorf("read the cluster key: %w", err)
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(content)))
	if err != nil || len(key) != keySize {
		return nil, fmt.Errorf("%s is not a cluster key (%d hexadecimal digits): restore it from your backup; "+
			"without it the stored assignments cannot be read", path, 2*keySize)
	}
	return key, nil
}

// needsKey names what an earlier key encrypted, if there is any.
func needsKey(dir string) string {
	for _, name := range []string{"agent/agent.db", "server/observed.db"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return filepath.Join(dir, name)
		}
	}
	return ""
}

// makeKey writes a new key.
func makeKey(path string) (clusterKey, error) {
	key := make([]byte, keySize)
	rand.Read(key)
	if err := writeWhole(path, []byte(hex.EncodeToString(key)+"\n")); err != nil {
		return nil, fmt.Errorf("write the cluster key: %w", err)
	}
	return key, nil
}

// derive gives the key for one purpose; knowing it tells nothing of the others.
func (k clusterKey) derive(purpose string) ([]byte, error) {
	return hkdf.Key(sha256.New, k, nil, "tallyman "+purpose, keySize)
}

// writeWhole writes a file that only root reads so that, whatever happens, it
// is there whole or as it was.
func writeWhole(path string, content []byte) error {
	temporary := path + ".new"
	file, err := os.OpenFile(temporary, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
