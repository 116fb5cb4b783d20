package keeper

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
)

// file is a log file that is rotated by size. Both streams of a container write to it.
type file struct {
	path     string
	maxSize  int64
	maxFiles int

	mu   sync.Mutex // guards what follows; held over I/O, for order in the file is the point
	f    *os.File
	size int64
}

func openFile(path string, maxSize int64, maxFiles int) (*file, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	l := &file{path: path, maxSize: maxSize, maxFiles: maxFiles}
	return l, l.open()
}

// open opens the newest file and cuts off a record that was being written when
// a keeper died; its text is still in the pipe.
func (l *file) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	size, err := wholeRecords(f)
	if err == nil {
		err = f.Truncate(size)
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("mend log file %s: %w", l.path, err)
	}
	l.f, l.size = f, size
	return nil
}

// wholeRecords returns the size of a log file without an unfinished last record.
func wholeRecords(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	size := info.Size()
	tail := make([]byte, min(size, maxLine+256))
	if _, err := f.ReadAt(tail, size-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	return size - int64(len(tail)-1-bytes.LastIndexByte(tail, '\n')), nil
}

// write appends records, each whole in one file. When it fails, none of the
// records of the current file that were not written are tried again.
func (l *file) write(records []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(records) > 0 {
		if l.f == nil { // an earlier rotation went wrong half-way
			if err := l.open(); err != nil {
				return err
			}
		}
		fits := l.fitting(records)
		if fits == 0 {
			if err := l.rotate(); err != nil {
				return err
			}
			continue
		}
		if err := l.append(records[:fits]); err != nil {
			return err
		}
		records = records[fits:]
	}
	return nil
}

// fitting, of a file that is open, returns how many bytes of whole records the current file still
// takes; an empty file takes at least one record.
func (l *file) fitting(records []byte) int {
	room := l.maxSize - l.size
	if int64(len(records)) <= room {
		return len(records)
	}
	if room > 0 {
		if end := bytes.LastIndexByte(records[:room], '\n'); end >= 0 {
			return end + 1
		}
	}
	if l.size == 0 {
		return bytes.IndexByte(records, '\n') + 1
	}
	return 0
}

func (l *file) append(records []byte) error {
	n, err := l.f.Write(records)
	if err != nil && n > 0 {
		// Half a record would spoil the next one.
		if cut := l.f.Truncate(l.size); cut != nil {
			err = errors.Join(err, cut)
		}
		return err
	}
	l.size += int64(n)
	return err
}

// rotate moves Path to Path.1, Path.1 to Path.2 and so on, up to the first that
// is free; the last one goes. A keeper that dies in the midst leaves one free,
// which readers pass over and the next rotation fills.
// When it fails no file is open, and to rotate again before one is would lose logs.
func (l *file) rotate() error {
	if l.f != nil {
		l.f.Close()
		l.f = nil
	}
	free := min(1, l.maxFiles-1)
	for free < l.maxFiles-1 && exists(rotated(l.path, free)) {
		free++
	}
	for i := free; i > 0; i-- {
		err := os.Rename(rotated(l.path, i-1), rotated(l.path, i))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if l.maxFiles == 1 {
		if err := os.Remove(l.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return l.open()
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// rotated is the path of the file that was rotated i times.
func rotated(path string, i int) string {
	if i == 0 {
		return path
	}
	return fmt.Sprintf("%s.%d", path, i)
}

func (l *file) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		l.f.Close()
		l.f = nil
	}
}
