package manifest

import (
	"path"
	"strings"

	"sigs.k8s.io/kustomize/api/resource"
	"sigs.k8s.io/yaml"
)

// originAnnotation is where kustomize says where an object comes from.
const originAnnotation = "config.kubernetes.io/origin"

// origins finds the document that an object of a kustomization was written in.
type origins struct {
	view *view
	// root is the directory that is built, file its kustomization file.
	root, file string
	// documents by file, with what they say of themselves.
	documents map[string][]origin
}

// origin is one document of a file.
type origin struct {
	src        *source
	kind, name string
}

func newOrigins(v *view, root, file string) *origins {
	return &origins{view: v, root: root, file: file, documents: map[string][]origin{}}
}

// of gives the source of an object: the document that holds it, or the
// kustomization that generated it.
func (o *origins) of(r *resource.Resource) *source {
	from, err := r.GetOrigin()
	if err != nil || from == nil {
		return &source{file: o.file}
	}
	if from.Path == "" {
		if from.ConfiguredIn == "" {
			return &source{file: o.file}
		}
		return &source{file: path.Join(o.root, from.ConfiguredIn)}
	}
	file := path.Join(o.root, from.Path)
	if src := match(o.read(file), r.GetKind(), r.GetName()); src != nil {
		return src
	}
	return &source{file: file}
}

// match finds the document of an object, which may have been given a prefix or
// suffix since: the one of its kind with the longest name that is part of its own.
func match(documents []origin, kind, name string) *source {
	var best *source
	length := 0
	for _, d := range documents {
		if d.kind == kind && len(d.name) > length && strings.Contains(name, d.name) {
			best, length = d.src, len(d.name)
		}
	}
	return best
}

func (o *origins) read(file string) []origin {
	if documents, ok := o.documents[file]; ok {
		return documents
	}
	var documents []origin
	if data, err := o.view.ReadFile("/" + file); err == nil {
		for _, d := range split(data) {
			var h struct {
				Kind     string `json:"kind"`
				Metadata struct {
					Name string `json:"name"`
				} `json:"metadata"`
			}
			if yaml.Unmarshal(d.text, &h) == nil {
				src := &source{file: file, document: d.index, line: d.line, text: newText(d.text)}
				documents = append(documents, origin{src: src, kind: h.Kind, name: h.Metadata.Name})
			}
		}
	}
	o.documents[file] = documents
	return documents
}

// forget drops what was kept to find lines quickly.
func (o *origins) forget() {
	for _, documents := range o.documents {
		for _, d := range documents {
			d.src.text.forget()
		}
	}
}

// stripOrigin removes the annotation that view asked for.
func stripOrigin(r *resource.Resource) error {
	annotations := r.GetAnnotations()
	if _, ok := annotations[originAnnotation]; !ok {
		return nil
	}
	delete(annotations, originAnnotation)
	return r.SetAnnotations(annotations)
}
