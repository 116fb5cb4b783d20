package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	yamlv2 "go.yaml.in/yaml/v2"
	sigsjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/tallyman-dev/tallyman/desired"
)

// parsed is the outcome of one file or one kustomization, before anything is
// compared between objects. Immutable: it is remembered and shared.
type parsed struct {
	file     string
	entries  []*entry
	problems []desired.Problem
	// size of the file in bytes.
	size int
}

// entry is one object as it was read.
type entry struct {
	src *source
	key desired.Key
	// object is nil for what is not part of the snapshot: an unsupported kind,
	// or a document that could not be decoded.
	object *desired.Object
	// broken means that the document says more than could be read: leaving its
	// object out would delete it.
	broken bool
	// custom is set for an object of a kind that the tables do not have.
	custom *customResource
}

// document is one YAML document of a file.
type document struct {
	index int
	line  int
	text  []byte
}

// parseFile takes a file apart.
func (r *rules) parseFile(file string, data []byte) *parsed {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if at, what := foulText(data); what != "" {
		p := refusedFile(file, "syntax", what, "manifests are UTF-8 text")
		p.problems[0].Line = 1 + bytes.Count(data[:at], []byte("\n"))
		return p
	}
	documents := split(data)
	if len(documents) > maxDocuments {
		return refusedFile(file, "too-large", fmt.Sprintf("the file holds more than %d documents", maxDocuments), "")
	}
	out := &parsed{file: file}
	for _, d := range documents {
		src := &source{file: file, document: d.index, line: d.line, text: newText(d.text)}
		out.take(r.parseDocument(src))
		src.text.forget()
	}
	out.problems = bound(file, once(out.problems))
	return out
}

func (p *parsed) take(entries []*entry, problems []desired.Problem) {
	p.entries = append(p.entries, entries...)
	p.problems = append(p.problems, problems...)
}

// foulText finds the first byte that no manifest may hold.
func foulText(data []byte) (int, string) {
	for i, b := range data {
		switch {
		case b == 0:
			return i, "the file holds a NUL byte"
		case b < ' ' && b != '\n' && b != '\r' && b != '\t', b == 0x7f:
			return i, fmt.Sprintf("the file holds the control character %#02x", b)
		}
	}
	if !utf8.Valid(data) {
		for i := 0; i < len(data); {
			r, n := utf8.DecodeRune(data[i:])
			if r == utf8.RuneError && n == 1 {
				return i, "the file is not valid UTF-8"
			}
			i += n
		}
	}
	return 0, ""
}

// split cuts a file at the lines that separate documents. Documents without
// content are dropped and not counted.
func split(data []byte) []document {
	var out []document
	line, start, startLine := 1, 0, 1
	flush := func(end int) {
		text := data[start:end]
		if hasContent(text) {
			out = append(out, document{index: len(out), line: startLine, text: text})
		}
	}
	for at := 0; at < len(data); {
		next := len(data)
		if i := bytes.IndexByte(data[at:], '\n'); i >= 0 {
			next = at + i + 1
		}
		if isSeparator(data[at:next]) {
			flush(at)
			start, startLine = at, line
			if rest := bytes.TrimSpace(data[at+3 : next]); len(rest) == 0 || rest[0] == '#' {
				start, startLine = next, line+1
			}
		}
		at = next
		line++
	}
	flush(len(data))
	return out
}

// isSeparator reports whether a line begins a new document.
func isSeparator(line []byte) bool {
	if !bytes.HasPrefix(line, []byte("---")) {
		return false
	}
	return len(line) == 3 || strings.IndexByte(" \t\r\n", line[3]) >= 0
}

// hasContent reports whether text is more than comments, directives and space.
func hasContent(text []byte) bool {
	for len(text) > 0 {
		line := text
		if i := bytes.IndexByte(text, '\n'); i >= 0 {
			line, text = text[:i], text[i+1:]
		} else {
			text = nil
		}
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && line[0] != '%' && !bytes.Equal(line, []byte("...")) {
			return true
		}
	}
	return false
}

// parseDocument reads one document. A parser that gives up on hostile input is
// a problem of that document.
func (r *rules) parseDocument(src *source) (entries []*entry, problems []desired.Problem) {
	defer func() {
		if recover() != nil {
			entries = nil
			problems = []desired.Problem{src.problem(desired.Error, "syntax", "", "the document cannot be parsed", "")}
		}
	}()
	data, problems, ok := toJSON(src)
	if !ok {
		return nil, problems
	}
	entries, more := r.parseObject(src, data, 0)
	return entries, append(problems, more...)
}

// toJSON turns a document into JSON as kubectl does. Keys that occur twice are
// problems, after which the last one counts.
func toJSON(src *source) (data []byte, problems []desired.Problem, ok bool) {
	if isJSON(src.text.bytes) {
		return fromJSON(src)
	}
	if bytes.IndexByte(src.text.bytes, '&') >= 0 {
		if why := swollen(src.text.bytes); why != "" {
			return nil, []desired.Problem{src.problem(desired.Error, "too-large", "", why, "write the values out, without anchors")}, false
		}
	}
	data, err := yaml.YAMLToJSONStrict(src.text.bytes)
	if err != nil {
		if problems = doubleKeys(src); len(problems) == 0 || !isTypeError(err) {
			return nil, append(problems, syntaxProblem(src, err)), false
		}
		if data, err = yaml.YAMLToJSON(src.text.bytes); err != nil {
			return nil, append(problems, syntaxProblem(src, err)), false
		}
	}
	if deep(data) {
		return nil, append(problems, tooDeep(src)), false
	}
	return data, problems, true
}

// fromJSON looks for what the text of a JSON document must not hold.
func fromJSON(src *source) (data []byte, problems []desired.Problem, ok bool) {
	data = src.text.bytes
	if deep(data) {
		return nil, []desired.Problem{tooDeep(src)}, false
	}
	var value any
	if double, err := sigsjson.UnmarshalStrict(data, &value, sigsjson.DisallowDuplicateFields); err == nil && len(double) > 0 {
		problems = doubleKeys(src)
	}
	return data, problems, true
}

func tooDeep(src *source) desired.Problem {
	return src.problem(desired.Error, "too-large", "", fmt.Sprintf("values nest deeper than %d", maxDepth), "")
}

func isTypeError(err error) bool {
	var t *yamlv2.TypeError
	return errors.As(err, &t)
}

func doubleKeys(src *source) []desired.Problem {
	var problems []desired.Problem
	for _, t := range twins(src.text.bytes) {
		p := src.problem(desired.Error, "duplicate-key", t.path,
			fmt.Sprintf("the key is written twice, first in line %d", src.line+t.first-1), "remove one of them")
		p.Line = src.line + t.line - 1
		problems = append(problems, p)
	}
	return problems
}

// deep reports whether JSON nests deeper than maxDepth.
func deep(data []byte) bool {
	depth, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{', c == '[':
			if depth++; depth > maxDepth {
				return true
			}
		case c == '}', c == ']':
			depth--
		}
	}
	return false
}

var (
	yamlLine   = regexp.MustCompile(`line (\d+): `)
	yamlQuoted = regexp.MustCompile("`[^`]*`|\"[^\"]*\"")
)

// syntaxProblem places an error of the YAML parser. What the parser quotes of
// the document is left out, for it may be secret.
func syntaxProblem(src *source, err error) desired.Problem {
	message := strings.TrimPrefix(err.Error(), "error converting YAML to JSON: ")
	message = strings.TrimPrefix(message, "yaml: ")
	p := desired.Problem{
		Severity: desired.Error, Code: "syntax", File: src.file, Line: src.line, Document: src.document,
		Hint: "the document is not valid YAML; look at this line and the one before it",
	}
	if m := yamlLine.FindStringSubmatch(message); m != nil {
		if n, err := strconv.Atoi(m[1]); err == nil {
			p.Line = src.line + n - 1
		}
		message = strings.Replace(message, m[0], "", 1)
	}
	if bytes.Contains(src.text.bytes, []byte("{{")) {
		p.Hint = "this looks like a template, which is not rendered here; commit what it renders to"
	}
	p.Message = clip(yamlMessage(message))
	return p
}

// yamlMessage takes what is quoted of the document out of a message.
func yamlMessage(message string) string {
	switch {
	case strings.HasPrefix(message, "cannot decode "), strings.HasPrefix(message, "unmarshal errors:"):
		return "a value does not have the type that its tag says"
	case strings.HasPrefix(message, "unknown anchor "):
		return "an alias refers to an anchor that is not there"
	}
	message, _, _ = strings.Cut(message, ": map[")
	return yamlQuoted.ReplaceAllString(message, "…")
}

// header is what every manifest says about itself.
type header struct {
	APIVersion any `json:"apiVersion"`
	Kind       any `json:"kind"`
	Metadata   struct {
		Name      any `json:"name"`
		Namespace any `json:"namespace"`
	} `json:"metadata"`
	Items json.RawMessage `json:"items"`
}

// parseObject reads one object, or the objects of a List.
func (r *rules) parseObject(src *source, data []byte, level int) ([]*entry, []desired.Problem) {
	var h header
	trimmed := bytes.TrimSpace(data)
	if len(trimmed) == 0 || bytes.Equal(trimmed, []byte("null")) {
		return nil, nil
	}
	if trimmed[0] != '{' {
		return nil, []desired.Problem{src.problem(desired.Error, "not-a-manifest", "", "the document is not a Kubernetes object", notManifestHint)}
	}
	if err := json.Unmarshal(data, &h); err != nil {
		return undecodable(src, "metadata", "metadata must be a mapping")
	}
	apiVersion, _ := h.APIVersion.(string)
	kind, _ := h.Kind.(string)
	if apiVersion == "" || kind == "" {
		return nil, []desired.Problem{headless(src, apiVersion, kind)}
	}
	if strings.HasSuffix(kind, "List") && (h.Items != nil || kind == "List") {
		return r.parseList(src, h.Items, apiVersion, strings.TrimSuffix(kind, "List"), level)
	}
	name, _ := h.Metadata.Name.(string)
	namespace, _ := h.Metadata.Namespace.(string)
	return r.decode(src, data, apiVersion, kind, namespace, name)
}

func undecodable(src *source, field, message string) ([]*entry, []desired.Problem) {
	return []*entry{{src: src, broken: true}}, []desired.Problem{src.problem(desired.Error, "invalid", field, message, "")}
}

const notManifestHint = "every YAML and JSON file below the followed path is read as a manifest; move it elsewhere, or into a directory whose name begins with a dot"

func headless(src *source, apiVersion, kind string) desired.Problem {
	switch {
	case apiVersion == "" && kind == "":
		return src.problem(desired.Error, "not-a-manifest", "", "the document has neither apiVersion nor kind", notManifestHint)
	case apiVersion == "":
		return src.problem(desired.Error, "not-a-manifest", "apiVersion", "apiVersion is missing", "for example apiVersion: apps/v1")
	}
	return src.problem(desired.Error, "not-a-manifest", "kind", "kind is missing", "for example kind: Deployment")
}

// parseList takes a List apart. Objects of a list of one kind (DeploymentList)
// may leave out what they are, as kubectl allows it.
func (r *rules) parseList(src *source, items json.RawMessage, apiVersion, kind string, level int) ([]*entry, []desired.Problem) {
	var raw []json.RawMessage
	if level > 3 {
		return nil, []desired.Problem{src.problem(desired.Error, "too-large", "", "Lists nest too deep", "")}
	}
	if items == nil {
		return nil, nil
	}
	if err := json.Unmarshal(items, &raw); err != nil {
		return undecodable(src, "items", "items must be a sequence of objects")
	}
	if len(raw) > maxDocuments {
		return nil, []desired.Problem{src.problem(desired.Error, "too-large", "items", fmt.Sprintf("the List holds more than %d objects", maxDocuments), "")}
	}
	var out parsed
	for i, item := range raw {
		one := *src
		one.prefix = join(src.prefix, fmt.Sprintf("items[%d]", i))
		if kind != "" {
			item = withKind(item, apiVersion, kind)
		}
		out.take(r.parseObject(&one, item, level+1))
	}
	return out.entries, out.problems
}

// withKind says of an object what it is, if it does not say anything itself.
func withKind(item json.RawMessage, apiVersion, kind string) json.RawMessage {
	var fields map[string]json.RawMessage
	if json.Unmarshal(item, &fields) != nil || fields == nil || fields["apiVersion"] != nil || fields["kind"] != nil {
		return item
	}
	for name, value := range map[string]string{"apiVersion": apiVersion, "kind": kind} {
		text, err := json.Marshal(value)
		if err != nil {
			return item
		}
		fields[name] = text
	}
	data, err := json.Marshal(fields)
	if err != nil {
		return item
	}
	return data
}
