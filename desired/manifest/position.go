package manifest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"
)

// text is what one document says, and where. Safe for concurrent use.
type text struct {
	bytes []byte
	// first counts the lines before the first that says something.
	first int

	mu sync.Mutex
	// root and read are guarded by mu; root is nil while nobody asked for a
	// line, or when the text cannot be read as YAML.
	root *yaml.Node
	read bool
}

func newText(b []byte) *text { return &text{bytes: b, first: blankLines(b)} }

// locate finds the line, from 1, of a field in the document, or of the nearest
// thing that encloses it; 0 when the text cannot be read.
func (t *text) locate(field string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.read {
		t.root, t.read = outline(t.bytes), true
	}
	if t.root == nil {
		return 0
	}
	node, line := t.root, t.root.Line
	for _, step := range splitPath(field) {
		key, next := child(node, step)
		if next == nil {
			break
		}
		line, node = key.Line, next
	}
	return line
}

// forget drops what locate keeps to be fast: it is many times the text's size.
func (t *text) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.root, t.read = nil, false
}

func blankLines(b []byte) int {
	n := 0
	for line := range bytes.Lines(b) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' {
			return n
		}
		n++
	}
	return 0
}

// outline reads a document as YAML nodes, which know their lines. JSON with
// tabs, which YAML refuses, is read with its tabs made spaces: the lines stay.
func outline(text []byte) (root *yaml.Node) {
	defer func() {
		if recover() != nil {
			root = nil
		}
	}()
	var doc yaml.Node
	if isJSON(text) {
		text = bytes.ReplaceAll(text, []byte("\t"), []byte(" "))
	}
	if yaml.Unmarshal(text, &doc) != nil || len(doc.Content) == 0 {
		return nil
	}
	return doc.Content[0]
}

// child steps into a node: by index in a sequence, by key in a mapping. It
// returns the node that carries the line and the node that carries the value.
func child(n *yaml.Node, step string) (key, value *yaml.Node) {
	for range maxDepth {
		if n.Kind != yaml.AliasNode {
			break
		}
		n = n.Alias
	}
	switch n.Kind {
	case yaml.SequenceNode:
		i, err := strconv.Atoi(step)
		if err != nil || i < 0 || i >= len(n.Content) {
			return nil, nil
		}
		return n.Content[i], n.Content[i]
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == step {
				return n.Content[i], n.Content[i+1]
			}
		}
	}
	return nil, nil
}

// splitPath takes a field path apart: "spec.ports[0].name" and "data[a.b]".
func splitPath(field string) []string {
	var steps []string
	for field != "" {
		if field[0] == '[' {
			if end := strings.IndexByte(field, ']'); end > 0 {
				steps = append(steps, field[1:end])
				field = strings.TrimPrefix(field[end+1:], ".")
				continue
			}
		}
		end := strings.IndexAny(field, ".[")
		if end <= 0 {
			return append(steps, strings.Trim(field, "."))
		}
		steps = append(steps, field[:end])
		field = strings.TrimPrefix(field[end:], ".")
	}
	return steps
}

// twin is a key that a mapping holds twice.
type twin struct {
	path        string
	line, first int
}

// twins lists the keys that a document holds twice.
func twins(text []byte) []twin {
	var out []twin
	var walk func(n *yaml.Node, path string)
	walk = func(n *yaml.Node, path string) {
		switch n.Kind {
		case yaml.SequenceNode:
			for i, c := range n.Content {
				walk(c, fmt.Sprintf("%s[%d]", path, i))
			}
		case yaml.MappingNode:
			seen := map[string]int{}
			for i := 0; i+1 < len(n.Content); i += 2 {
				key := n.Content[i]
				at := join(path, key.Value)
				if first, ok := seen[key.Value]; ok {
					out = append(out, twin{path: at, line: key.Line, first: first})
				} else {
					seen[key.Value] = key.Line
				}
				walk(n.Content[i+1], at)
			}
		}
	}
	if root := outline(text); root != nil {
		walk(root, "")
	}
	return out
}

// isJSON reports whether a document is written as JSON rather than as YAML.
func isJSON(text []byte) bool {
	text = bytes.TrimSpace(text)
	return len(text) > 0 && text[0] == '{' && json.Valid(text)
}

// swollen reports why a document is too large once its aliases are expanded, or
// too deep. Only documents with an anchor can be larger than their text.
func swollen(text []byte) string {
	var doc yaml.Node
	if yaml.Unmarshal(text, &doc) != nil {
		return "" // the real parser says what is wrong, with its own bounds
	}
	sizes := map[*yaml.Node]int{}
	aliased := 0
	var size func(n *yaml.Node, depth int) int
	size = func(n *yaml.Node, depth int) int {
		if depth > 2*maxDepth {
			return maxNodes + 1
		}
		if n.Kind == yaml.AliasNode {
			s := size(n.Alias, depth+1)
			aliased = min(aliased+s, maxNodes+1)
			return s
		}
		if s, ok := sizes[n]; ok {
			return s
		}
		sizes[n] = maxNodes + 1 // what contains itself has no end
		sum := 1
		for _, c := range n.Content {
			sum = min(sum+size(c, depth+1), maxNodes+1)
		}
		sizes[n] = sum
		return sum
	}
	total := size(&doc, 0)
	if total > maxNodes || aliased > maxAliasNodes {
		return fmt.Sprintf("the aliases of the document expand to more than %d values, or nest deeper than %d", maxAliasNodes, maxDepth)
	}
	return ""
}
