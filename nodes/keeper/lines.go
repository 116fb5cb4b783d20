package keeper

import (
	"bytes"
	"time"
)

// maxLine is the longest text of one record; longer lines are split.
const maxLine = 16 << 10

// appendLines turns what a process wrote into records of the CRI log format,
//
//	2026-01-02T15:04:05.123456789Z stdout F text
//
// where F ends a line and P is a part of one. It returns how many bytes it
// used: all whole lines and all full parts. With flush the unfinished rest is
// used too and gets the given tag.
func appendLines(to, from []byte, stream string, at time.Time, flush bool, tag byte) (records []byte, used int) {
	var buffer [64]byte
	prefix := append(at.UTC().AppendFormat(buffer[:0], time.RFC3339Nano), ' ')
	prefix = append(append(prefix, stream...), ' ')
	record := func(tag byte, text []byte) {
		to = append(append(to, prefix...), tag, ' ')
		to = append(append(to, text...), '\n')
	}
	for used < len(from) {
		rest := from[used:]
		window := rest[:min(len(rest), maxLine+1)]
		end := bytes.IndexByte(window, '\n')
		switch {
		case end >= 0:
			record('F', window[:end])
			used += end + 1
		case len(window) > maxLine:
			record('P', window[:maxLine])
			used += maxLine
		case flush:
			record(tag, rest)
			used += len(rest)
		default:
			return to, used
		}
	}
	return to, used
}
