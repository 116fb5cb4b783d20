package keeper

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

// ReadOptions for Read.
type ReadOptions struct {
	// Follow waits for more at the end, until Done says that there will be none.
	Follow bool
	// Tail, when positive, is how many of the last lines to begin with.
	Tail int
	// Since, when set, leaves out what was written before.
	Since time.Time
	// Timestamps puts the time before each line.
	Timestamps bool
	// Done tells that the container has ended and its log is complete; nil means never.
	Done func() bool
}

// followPoll is how often a follower looks for more.
const followPoll = 50 * time.Millisecond

// maxRotated bounds the search for rotated files.
const maxRotated = 1000

// mayMiss is how many files are missing while a log is rotated, or when a keeper
// died in the midst of it.
const mayMiss = 1

// Read copies a log, its rotated files first, to w. It may run while the log
// is written and rotated: every line comes once and in order, unless a follower
// is so slow that a file it has not read is rotated away.
func Read(ctx context.Context, path string, o ReadOptions, w io.Writer) error {
	r := &reader{path: path, options: o, out: bufio.NewWriter(w)}
	defer r.close()
	if err := r.openAll(); err != nil {
		return fmt.Errorf("read log %s: %w", path, err)
	}
	if err := r.copy(ctx); err != nil {
		return fmt.Errorf("read log %s: %w", path, err)
	}
	return nil
}

type reader struct {
	path    string
	options ReadOptions
	out     *bufio.Writer
	// files that are still to be read, the oldest first; the last one may grow.
	files []*os.File
	// skip is how many lines to leave out at the beginning.
	skip int
	// partial is a record of which only the beginning has been read so far.
	partial []byte
	// inLine tells that the line being written is not finished.
	inLine bool
}

func (r *reader) close() {
	for _, f := range r.files {
		f.Close()
	}
}

// openAll opens the files, the newest first. Those that are rotated meanwhile are
// seen again rather than missed, perhaps after newer ones: where a file was seen
// last is its place.
func (r *reader) openAll() error {
	missing := 0
	for i := range maxRotated {
		f, err := os.Open(rotated(r.path, i))
		if errors.Is(err, os.ErrNotExist) {
			if missing++; missing > mayMiss {
				break
			}
			continue
		}
		if err != nil {
			return err
		}
		missing = 0
		r.files = slices.DeleteFunc(r.files, func(o *os.File) bool {
			again := sameFile(f, o)
			if again {
				o.Close()
			}
			return again
		})
		r.files = slices.Insert(r.files, 0, f)
	}
	if len(r.files) == 0 && !r.options.Follow {
		return os.ErrNotExist
	}
	if r.options.Tail > 0 {
		return r.seekTail()
	}
	return nil
}

func sameFile(a, b *os.File) bool {
	x, err1 := a.Stat()
	y, err2 := b.Stat()
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

// seekTail drops whole files from the front and sets how many lines to skip.
func (r *reader) seekTail() error {
	total := 0
	for i := len(r.files) - 1; i >= 0; i-- {
		n, err := countLines(r.files[i])
		if err != nil {
			return err
		}
		if total += n; total >= r.options.Tail {
			for _, f := range r.files[:i] {
				f.Close()
			}
			r.files = r.files[i:]
			r.skip = total - r.options.Tail
			return nil
		}
	}
	return nil
}

// countLines counts the records that end a line, and goes back to the start.
func countLines(f *os.File) (int, error) {
	lines := 0
	records := bufio.NewReaderSize(f, maxLine+256)
	for {
		record, err := records.ReadSlice('\n')
		if _, _, tag, _, ok := parseRecord(record); ok && tag == 'F' {
			lines++
		}
		if errors.Is(err, io.EOF) {
			_, err = f.Seek(0, io.SeekStart)
			return lines, err
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return 0, err
		}
	}
}

// copy reads file after file, and at the end waits for more if it is to follow.
func (r *reader) copy(ctx context.Context) error {
	for {
		// Asked before reading on: what came before the end is then read for certain.
		done := !r.options.Follow || r.options.Done != nil && r.options.Done()
		moved, err := r.drain(ctx)
		if err != nil {
			return err
		}
		if moved {
			continue
		}
		if err := r.out.Flush(); err != nil || done {
			return err
		}
		if err := pause(ctx, followPoll); err != nil {
			return err
		}
	}
}

// drain reads all open files and tells whether a newer one has been found.
func (r *reader) drain(ctx context.Context) (moved bool, err error) {
	for len(r.files) > 1 {
		if err := r.readFile(ctx, r.files[0]); err != nil {
			return false, err
		}
		r.drop()
	}
	if len(r.files) == 0 {
		f, err := os.Open(r.path)
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		r.files = []*os.File{f}
		return true, nil
	}
	newer, err := r.newer()
	if err != nil {
		return false, err
	}
	// Read after looking: nothing is written to a file once it is rotated.
	if err := r.readFile(ctx, r.files[0]); err != nil {
		return false, err
	}
	if newer != nil {
		r.files = append(r.files, newer)
		r.drop()
		return true, nil
	}
	return false, nil
}

func (r *reader) drop() {
	r.files[0].Close()
	r.files = r.files[1:]
	r.partial = r.partial[:0]
}

// newer opens the file that follows the current one; nil when the current one is the newest.
func (r *reader) newer() (*os.File, error) {
	var before *os.File
	missing := 0
	for i := range maxRotated {
		f, err := os.Open(rotated(r.path, i))
		if errors.Is(err, os.ErrNotExist) {
			if i == 0 {
				return nil, nil // in the middle of a rotation
			}
			if missing++; missing > mayMiss {
				return before, nil // ours has been rotated away: go on with the oldest
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		missing = 0
		if sameFile(f, r.files[0]) {
			f.Close()
			return before, nil
		}
		if before != nil {
			before.Close()
		}
		before = f
	}
	return before, nil
}

// readFile copies records up to the present end of a file.
func (r *reader) readFile(ctx context.Context, f *os.File) error {
	records := bufio.NewReaderSize(f, maxLine+256)
	for ctx.Err() == nil {
		record, err := records.ReadSlice('\n')
		if err != nil {
			r.partial = append(r.partial, record...)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if !errors.Is(err, bufio.ErrBufferFull) {
				return err
			}
			continue
		}
		if len(r.partial) > 0 {
			r.partial = append(r.partial, record...)
			record = r.partial
		}
		err = r.record(record)
		r.partial = r.partial[:0]
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// record writes one record to the reader's caller.
func (r *reader) record(record []byte) error {
	at, _, tag, text, ok := parseRecord(record)
	if !ok {
		return nil
	}
	if r.skip > 0 {
		if tag == 'F' {
			r.skip--
		}
		return nil
	}
	if !r.options.Since.IsZero() {
		when, err := time.Parse(time.RFC3339Nano, string(at))
		if err == nil && when.Before(r.options.Since) {
			return nil
		}
	}
	if r.options.Timestamps && !r.inLine {
		r.out.Write(at)
		r.out.WriteByte(' ')
	}
	r.out.Write(text)
	r.inLine = tag != 'F'
	if r.inLine {
		return nil
	}
	return r.out.WriteByte('\n') // a bufio.Writer keeps its first error
}

// parseRecord takes a record apart; ok is false for what is none.
func parseRecord(record []byte) (at, stream []byte, tag byte, text []byte, ok bool) {
	line, ended := bytes.CutSuffix(record, []byte{'\n'})
	if !ended {
		return nil, nil, 0, nil, false
	}
	at, rest, ok1 := bytes.Cut(line, []byte{' '})
	stream, rest, ok2 := bytes.Cut(rest, []byte{' '})
	if !ok1 || !ok2 || len(rest) < 2 || rest[1] != ' ' {
		return nil, nil, 0, nil, false
	}
	return at, stream, rest[0], rest[2:], true
}
