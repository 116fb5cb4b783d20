package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
)

// visits counts in a file, which outlives the program where it is on a volume.
type visits struct {
	file string
	mu   sync.Mutex
}

// next is one more than the last. The file is replaced as a whole: whenever
// the program dies, one number or the next is there.
func (v *visits) next() (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	n := 0
	text, err := os.ReadFile(v.file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return 0, err
	default:
		if n, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
			return 0, fmt.Errorf("%s: %w", v.file, err)
		}
	}
	n++
	if err := os.WriteFile(v.file+".new", fmt.Appendln(nil, n), 0o644); err != nil {
		return 0, err
	}
	return n, os.Rename(v.file+".new", v.file)
}
