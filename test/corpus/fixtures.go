package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/tallyman-dev/tallyman/desired"
)

// fixture is one of Kubernetes' objects with every field set.
type fixture struct {
	name string
	// read means that the object is of a kind that is part of snapshots here.
	read bool
	// lost are the fields that are not in its normal form.
	lost []string
	// same means that the object is the same from JSON and YAML.
	same bool
}

// fixtures compares the round trip of k8s.io/api's test data: every field that is
// set must be in the object, and JSON and YAML must say the same. Other test data
// of Kubernetes is read for faults alone.
func (t *trial) fixtures(ctx context.Context) ([]fixture, error) {
	var out []fixture
	err := filepath.WalkDir(filepath.Join(t.dir, "manifests", "F-oracle"), func(p string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case d.IsDir() || !slices.Contains([]string{".json", ".yaml", ".yml"}, filepath.Ext(p)):
			return nil
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if strings.Contains(filepath.ToSlash(p), "/testdata/HEAD/") {
			if filepath.Ext(p) == ".json" {
				f, err := t.roundTrip(ctx, p, data)
				out = append(out, f)
				return err
			}
			return nil
		}
		t.readAll(ctx, p, data)
		return nil
	})
	return out, err
}

// readAll reads every document of a file of which nothing is known.
func (t *trial) readAll(ctx context.Context, name string, data []byte) {
	texts, err := split(data)
	if err != nil {
		texts = [][]byte{data}
	}
	for _, text := range texts {
		var value any
		if yaml.Unmarshal(text, &value) == nil && value == nil {
			continue
		}
		t.read(ctx, name, text, false)
	}
}

func (t *trial) roundTrip(ctx context.Context, file string, data []byte) (fixture, error) {
	f := fixture{name: strings.TrimSuffix(filepath.Base(file), ".json")}
	fromJSON := t.only(ctx, file, data)
	yamlFile := strings.TrimSuffix(file, ".json") + ".yaml"
	text, err := os.ReadFile(yamlFile)
	if err != nil {
		return f, err
	}
	fromYAML := t.only(ctx, yamlFile, text)
	if fromJSON == nil || fromYAML == nil {
		return f, nil
	}
	if _, partial := fromJSON.Value.(*metav1.PartialObjectMetadata); partial {
		return f, nil // of a kind without effect, whose content nobody reads
	}
	f.read = true
	if f.same = fromJSON.Fingerprint == fromYAML.Fingerprint; !f.same {
		t.fault("%s: JSON and YAML differ", f.name)
	}
	if f.lost, err = lost(data, fromJSON); err != nil {
		return f, err
	}
	for _, field := range f.lost {
		t.fault("%s: %s is lost", f.name, field)
	}
	return f, nil
}

// only is the object of a document, valid or not; nil for a kind that is not
// part of snapshots.
func (t *trial) only(ctx context.Context, file string, text []byte) *desired.Object {
	snapshot, _ := t.read(ctx, file, text, true)
	if snapshot == nil || snapshot.Len() != 1 {
		return nil
	}
	for o := range snapshot.All() {
		return o
	}
	return nil
}

// lost lists the fields of a text that an object does not hold. Of another
// version than the object's it says nothing: there a field may have moved.
func lost(text []byte, o *desired.Object) ([]string, error) {
	var wrote, holds map[string]any
	if err := json.Unmarshal(text, &wrote); err != nil {
		return nil, err
	}
	data, err := json.Marshal(o.Value)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &holds); err != nil {
		return nil, err
	}
	if wrote["apiVersion"] != holds["apiVersion"] {
		return nil, nil
	}
	delete(wrote, "status")
	if o.Key.Kind == "Secret" {
		delete(wrote, "stringData") // it is moved to data
	}
	if meta, ok := wrote["metadata"].(map[string]any); ok {
		for _, written := range []string{"managedFields", "resourceVersion", "selfLink", "uid", "generation", "creationTimestamp"} {
			delete(meta, written)
		}
		if o.Key.Namespace == "" {
			delete(meta, "namespace")
		}
	}
	return missing(wrote, holds, ""), nil
}

func missing(want, got any, at string) []string {
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			return []string{at}
		}
		var out []string
		for key, value := range w {
			out = append(out, missing(value, g[key], at+"."+key)...)
		}
		slices.Sort(out)
		return out
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) < len(w) {
			return []string{at}
		}
		var out []string
		for i, value := range w {
			out = append(out, missing(value, g[i], fmt.Sprintf("%s[%d]", at, i))...)
		}
		return out
	}
	if !reflect.DeepEqual(want, got) {
		return []string{at}
	}
	return nil
}
