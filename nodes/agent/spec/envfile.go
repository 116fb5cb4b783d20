package spec

import (
	"fmt"
	"strings"
)

// envFile finds one variable in a file of lines NAME='value', in the form that
// Kubernetes' fileKeyRef reads: the value stands in single quotes, literally,
// and may go over several lines; lines may be empty or comments. A value that
// begins after a space is empty. Empty when the name does not occur.
func envFile(text, name string) (string, error) {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i := 0; i < len(lines); i++ {
		line := strings.TrimLeft(strings.TrimSuffix(lines[i], "\r"), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		found, rest, ok := strings.Cut(line, "=")
		switch {
		case !ok:
			return "", fmt.Errorf("line %d: missing '='", i+1)
		case found == "":
			return "", fmt.Errorf("line %d: empty variable name", i+1)
		case strings.TrimRight(found, " \t") != found:
			return "", fmt.Errorf("line %d: space before '='", i+1)
		}
		value, last, err := quotedValue(lines, i, rest)
		if err != nil {
			return "", err
		}
		if found == name {
			return value, nil
		}
		i = last
	}
	return "", nil
}

// quotedValue reads a value that begins with rest of line i; last is the line
// that it ends on.
func quotedValue(lines []string, i int, rest string) (value string, last int, err error) {
	if strings.HasPrefix(rest, " ") || strings.HasPrefix(rest, "\t") {
		return "", i, nil
	}
	rest, quoted := strings.CutPrefix(rest, "'")
	if !quoted {
		return "", 0, fmt.Errorf("line %d: the value must stand in single quotes", i+1)
	}
	var b strings.Builder
	for last = i; ; last++ {
		if last > i {
			if last == len(lines) {
				return "", 0, fmt.Errorf("line %d: the single quote is not closed", i+1)
			}
			b.WriteByte('\n')
			rest = strings.TrimSuffix(lines[last], "\r")
		}
		part, after, closed := strings.Cut(rest, "'")
		b.WriteString(part)
		if !closed {
			continue
		}
		if after = strings.TrimLeft(after, " \t"); after != "" && after[0] != '#' {
			return "", 0, fmt.Errorf("line %d: text after the closing quote", last+1)
		}
		return b.String(), last, nil
	}
}
