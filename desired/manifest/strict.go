package manifest

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	sigsjson "sigs.k8s.io/json"

	"github.com/tallyman-dev/tallyman/desired"
)

// unmarshal decodes JSON into an API type, strictly. When that fails it says
// about every field what is wrong, and whether the object is usable all the same
// (unknown fields alone leave it so).
func unmarshal(src *source, data []byte, into any) (problems []desired.Problem, usable bool) {
	if problems := hugeNumbers(src, data, into); len(problems) > 0 {
		return problems, false
	}
	strict, err := sigsjson.UnmarshalStrict(data, into, sigsjson.DisallowUnknownFields) // double keys are known by now
	if err == nil && len(strict) == 0 {
		return nil, true
	}
	var value any
	if decodeErr := sigsjson.UnmarshalCaseSensitivePreserveInts(data, &value); decodeErr != nil {
		return []desired.Problem{src.problem(desired.Error, "syntax", "", decodeErr.Error(), "")}, false
	}
	c := checker{src: src}
	c.check(value, reflect.TypeOf(into).Elem(), "")
	if err != nil && !c.mistyped {
		c.report("invalid", "", typeMessage(err), "")
	}
	return c.problems, err == nil
}

// checker compares a decoded document with the Go type that it should have.
type checker struct {
	src      *source
	problems []desired.Problem
	// mistyped is set when a value cannot be decoded.
	mistyped bool
}

func (c *checker) report(code, field, message, hint string) {
	if len(c.problems) < maxFileProblems {
		c.problems = append(c.problems, c.src.problem(desired.Error, code, field, message, hint))
	}
}

func (c *checker) check(value any, t reflect.Type, path string) {
	if value == nil {
		return
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if reflect.PointerTo(t).Implements(unmarshalerType) {
		c.custom(value, t, path)
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		c.checkStruct(value, t, path)
	case reflect.Map:
		c.checkMap(value, t, path)
	case reflect.Slice:
		c.checkSlice(value, t, path)
	default:
		c.custom(value, t, path)
	}
}

var unmarshalerType = reflect.TypeFor[json.Unmarshaler]()

// custom decodes a value of its own, for the error alone.
func (c *checker) custom(value any, t reflect.Type, path string) {
	data, err := json.Marshal(value)
	if err == nil {
		err = sigsjson.UnmarshalCaseSensitivePreserveInts(data, reflect.New(t).Interface())
	}
	if err != nil {
		c.mistyped = true
		hint := ""
		if t.Kind() == reflect.String && shape(value) != "a mapping" && shape(value) != "a sequence" {
			hint = "put it in quotes"
		}
		c.report("invalid", path, wrongType(value, t, err), hint)
	}
}

func (c *checker) checkStruct(value any, t reflect.Type, path string) {
	m, ok := value.(map[string]any)
	if !ok {
		c.mistyped = true
		c.report("invalid", path, "must be a mapping, not "+shape(value), "")
		return
	}
	fields := jsonFields(t)
	for _, key := range sortedKeys(m) {
		at := join(path, key)
		ft, known := fields[key]
		if !known {
			c.report("unknown-field", at, fmt.Sprintf("unknown field %q", key), suggest(key, fields))
			continue
		}
		c.check(m[key], ft, at)
	}
}

func (c *checker) checkMap(value any, t reflect.Type, path string) {
	m, ok := value.(map[string]any)
	if !ok {
		c.mistyped = true
		c.report("invalid", path, "must be a mapping, not "+shape(value), "")
		return
	}
	for _, key := range sortedKeys(m) {
		c.check(m[key], t.Elem(), fmt.Sprintf("%s[%s]", path, key))
	}
}

func (c *checker) checkSlice(value any, t reflect.Type, path string) {
	if t.Elem().Kind() == reflect.Uint8 {
		c.custom(value, t, path)
		return
	}
	list, ok := value.([]any)
	if !ok {
		c.mistyped = true
		c.report("invalid", path, "must be a sequence, not "+shape(value), "")
		return
	}
	for i, item := range list {
		c.check(item, t.Elem(), fmt.Sprintf("%s[%d]", path, i))
	}
}

// jsonFields are the fields of a struct by the names they have in JSON, those
// of embedded structs included.
func jsonFields(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-":
		case name == "" && f.Anonymous:
			for k, v := range jsonFields(f.Type) {
				fields[k] = v
			}
		case name != "":
			fields[name] = f.Type
		}
	}
	return fields
}

// wrongType says what a value should have been, without repeating it: it may be secret.
func wrongType(value any, t reflect.Type, err error) string {
	switch t.Kind() {
	case reflect.String:
		return "must be a string, not " + shape(value)
	case reflect.Bool:
		return "must be true or false, not " + shape(value)
	case reflect.Int32, reflect.Int64, reflect.Int, reflect.Uint8, reflect.Uint16:
		if shape(value) == "a number" {
			return "must be a whole number within range"
		}
		return "must be a number, not " + shape(value)
	case reflect.Slice:
		if shape(value) == "a string" {
			return "must be base64"
		}
		return "must be a base64 string, not " + shape(value)
	}
	return typeMessage(err)
}

func typeMessage(err error) string {
	return strings.TrimPrefix(err.Error(), "json: ")
}

func shape(value any) string {
	switch value.(type) {
	case map[string]any:
		return "a mapping"
	case []any:
		return "a sequence"
	case string:
		return "a string"
	case bool:
		return "a boolean"
	}
	return "a number"
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// suggest names the field that was probably meant.
func suggest[V any](key string, known map[string]V) string {
	best, distance := "", len(key)/3+1
	for _, name := range sortedKeys(known) {
		if d := editDistance(strings.ToLower(key), strings.ToLower(name)); d < distance || d == distance && best == "" {
			best, distance = name, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("did you mean %q?", best)
}

// editDistance is Levenshtein's, with bounded length.
func editDistance(a, b string) int {
	const longest = 64
	if len(a) > longest || len(b) > longest {
		return longest
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		previous := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := previous
			if a[i] != b[j] {
				cost++
			}
			previous = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
