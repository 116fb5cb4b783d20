package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// verdict is what Kubernetes says of one document.
type verdict struct {
	path                   string
	document               int
	apiVersion, kind, name string
	category, verdict      string
	reason                 string
}

// source is the group of the document's repository, the first part of its path.
func (v verdict) source() string {
	s, _, _ := strings.Cut(v.path, "/")
	return s
}

// accepted reports whether Kubernetes takes the document.
func (v verdict) accepted() bool { return v.verdict == "valid" || v.verdict == "valid-unchecked" }

func readVerdicts(file string) ([]verdict, error) {
	rows, err := readTable(file, 8)
	if err != nil {
		return nil, err
	}
	out := make([]verdict, 0, len(rows))
	for _, r := range rows {
		n, err := strconv.Atoi(r[1])
		if err != nil {
			return nil, fmt.Errorf("%s: document of %s: %w", file, r[0], err)
		}
		out = append(out, verdict{path: r[0], document: n, apiVersion: r[2], kind: r[3], name: r[4], category: r[5], verdict: r[6], reason: r[7]})
	}
	return out, nil
}

// readTable reads a file of lines with columns separated by tabs. A first line
// that begins with "path" is a heading.
func readTable(file string, columns int) ([][]string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var rows [][]string
	for line := range strings.Lines(string(data)) {
		row := strings.SplitN(strings.TrimRight(line, "\r\n"), "\t", columns)
		if row[0] == "path" || len(row) < 3 {
			continue
		}
		for len(row) < columns {
			row = append(row, "")
		}
		rows = append(rows, row)
	}
	return rows, nil
}
