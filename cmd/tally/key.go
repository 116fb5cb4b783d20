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

	"github.com/tallyman-dev/tallyman/nodes/trust"
)

// keySize is the length of the cluster key and of every key derived from it, in bytes.
const keySize = 32

// errKeyLost is returned when there is no key, but something that needs it.
var errKeyLost = errors.New("it is missing")

// clusterKey is the secret that everything kept encrypted goes back to.
type clusterKey []byte

func keyFile(dataDir string) string      { return filepath.Join(dataDir, "key") }
func agentDir(dataDir string) string     { return filepath.Join(dataDir, "agent") }
func agentKeyFile(dataDir string) string { return filepath.Join(agentDir(dataDir), "key") }
func agentStore(dataDir string) string   { return filepath.Join(agentDir(dataDir), "agent.db") }

// openKey reads the cluster key, or makes one where none is yet.
func openKey(dataDir string) (clusterKey, error) {
	return readOrMakeKey(keyFile(dataDir), "the cluster key", agentStore(dataDir), filepath.Join(dataDir, "server", "observed.db"))
}

// openAgentKey reads the key of an agent's store, or makes one where none is yet.
func openAgentKey(dataDir string) ([]byte, error) {
	if err := os.MkdirAll(agentDir(dataDir), 0o700); err != nil {
		return nil, err
	}
	return readOrMakeKey(agentKeyFile(dataDir), "the agent's key", agentStore(dataDir))
}

// isAgent reports whether a machine was given to a cluster by tally agent.
func isAgent(dataDir string) bool {
	_, err := os.Stat(agentKeyFile(dataDir))
	return err == nil
}

// isServed reports whether a machine ran tally up: it has a cluster of its own.
func isServed(dataDir string) bool {
	_, key := os.Stat(keyFile(dataDir))
	_, store := os.Stat(agentStore(dataDir))
	return key == nil && store == nil
}

// storeKey is the key of the agent's store, whatever command it ran under.
func storeKey(dataDir string) ([]byte, error) {
	if isAgent(dataDir) {
		return openAgentKey(dataDir)
	}
	key, err := openKey(dataDir)
	if err != nil {
		return nil, err
	}
	return key.derive("agent store")
}

// readOrMakeKey reads a key. One is made only where nothing is that another one
// was used for.
func readOrMakeKey(path, what string, usedFor ...string) ([]byte, error) {
	key, err := readKey(path, what)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	for _, made := range usedFor {
		if _, err := os.Stat(made); err == nil {
			return nil, fmt.Errorf("%s: %s: %w, but %s was made with it: restore the key from your backup (tally key import); "+
				"without one, run tally reset, which stops everything, and remove that file to begin anew", path, what, errKeyLost, made)
		}
	}
	key = make([]byte, keySize)
	rand.Read(key)
	return key, writeKey(path, what, key)
}

// readKey reads a key from a file; fs.ErrNotExist when there is none.
func readKey(path, what string) ([]byte, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	key, err := parseKey(content)
	if err != nil {
		return nil, fmt.Errorf("%s is not a key (%d hexadecimal digits): restore it from your backup; "+
			"without it the stored assignments cannot be read", path, 2*keySize)
	}
	return key, nil
}

func parseKey(content []byte) ([]byte, error) {
	key, err := hex.DecodeString(strings.TrimSpace(string(content)))
	if err == nil && len(key) != keySize {
		err = fmt.Errorf("%d bytes", len(key))
	}
	return key, err
}

func formatKey(key []byte) []byte { return []byte(hex.EncodeToString(key) + "\n") }

func writeKey(path, what string, key []byte) error {
	if err := trust.WriteSecret(path, formatKey(key)); err != nil {
		return fmt.Errorf("write %s: %w", what, err)
	}
	return nil
}

// derive gives the key for one purpose; knowing it tells nothing of the others.
func (k clusterKey) derive(purpose string) ([]byte, error) {
	return hkdf.Key(sha256.New, k, nil, "tallyman "+purpose, keySize)
}
