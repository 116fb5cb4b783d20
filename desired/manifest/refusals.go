package manifest

import (
	"bytes"
	"fmt"
	"path"
	"strings"

	"github.com/tallyman-dev/tallyman/desired"
)

// refusals looks through a kustomization and everything it refers to, before
// kustomize sees it, for what would fetch something or run a program.
type refusals struct {
	view     *view
	problems []desired.Problem
	// weights has each directory that was checked; nothing while it is being checked.
	weights map[string]weight
}

// weight is what building a kustomization costs: how often it visits one, and
// how many documents it reads or generates, repetitions counted.
type weight struct{ visits, documents int }

func (w *weight) add(o weight) {
	w.visits += o.visits
	w.documents += o.documents
}

// excess says which bound a weight is beyond; empty when it is within all.
func (w weight) excess() string {
	switch {
	case w.visits > maxBuildVisits:
		return fmt.Sprintf("building it visits more than %d kustomizations, repetitions counted", maxBuildVisits)
	case w.documents > maxBuildObjects:
		return fmt.Sprintf("it is made of more than %d documents, repetitions counted", maxBuildObjects)
	}
	return ""
}

const remoteHint = "nothing is fetched while a revision is read: commit a copy and refer to that"

// notPaths are the parts of a kustomization whose strings are never read as paths.
var notPaths = [...]string{
	"patch", "target", "literals", "commonAnnotations", "commonLabels", "labels", "images", "imageTags", "namePrefix",
	"nameSuffix", "namespace", "options", "generatorOptions", "vars", "metadata", "replicas", "buildMetadata", "sortOptions",
}

// check looks at the kustomization in dir. Within configuration of plugins
// (strict) every file is searched: there any field may be an address.
func (r *refusals) check(dir string, strict bool) weight {
	key := fmt.Sprint(dir, strict)
	if w, ok := r.weights[key]; ok {
		return w
	}
	r.weights[key] = weight{} // a circle ends here; kustomize reports it
	w := r.look(dir, strict)
	r.weights[key] = w
	return w
}

func (r *refusals) look(dir string, strict bool) weight {
	one := weight{visits: 1}
	file, ok := r.view.kustomizationFile(dir)
	if !ok {
		r.refuse(&source{file: dir}, "kustomize", "", "the directory holds no kustomization file", "")
		return one
	}
	k, err := r.view.kustomization(dir)
	if err != nil {
		r.refuse(&source{file: file}, "kustomize", "", err.Error(), "")
		return one
	}
	src := &source{file: file, line: 1, text: k.text}
	defer k.text.forget()
	if len(k.HelmCharts)+len(k.HelmInflation) > 0 {
		r.refuse(src, "unsupported", "helmCharts", "Helm charts are not rendered yet", "render it with helm template and commit the result")
	}
	r.addresses(src, k.everything, "")
	w := weight{visits: 1, documents: len(k.ConfigMaps) + len(k.Secrets)}
	w.add(r.follow(src, dir, "resources", k.Resources, strict))
	w.add(r.follow(src, dir, "bases", k.Bases, strict))
	w.add(r.follow(src, dir, "components", k.Components, strict))
	w.add(r.follow(src, dir, "generators", k.Generators, true))
	w.add(r.follow(src, dir, "transformers", k.Transformers, true))
	w.add(r.follow(src, dir, "validators", k.Validators, true))
	if why := w.excess(); why != "" {
		r.refuse(src, "too-large", "", why, "split it into several kustomizations that do not refer to each other")
		return one // said once
	}
	return w
}

func (r *refusals) refuse(src *source, code, field, message, hint string) {
	if len(r.problems) < maxFileProblems {
		r.problems = append(r.problems, src.problem(desired.Error, code, field, message, hint))
	}
}

// follow checks entries that are files, directories or, for plugins, inline YAML.
func (r *refusals) follow(src *source, dir, field string, entries []string, strict bool) (w weight) {
	for i, entry := range entries {
		at := fmt.Sprintf("%s[%d]", field, i)
		if strings.Contains(entry, "\n") {
			if strict && hasAddress([]byte(entry)) {
				r.refuse(src, "remote", at, "the configuration holds an address", remoteHint)
			}
			continue
		}
		if isRemote(entry) {
			r.refuse(src, "remote", at, fmt.Sprintf("%q is outside of the repository", entry), remoteHint)
			continue
		}
		target := path.Join(dir, entry)
		switch {
		case r.view.IsDir("/" + target):
			w.add(r.check(target, strict))
		case !r.view.Exists("/" + target):
			r.refuse(src, "kustomize", at, fmt.Sprintf("there is no file or directory %q", entry), "")
		case strict || w.excess() == "":
			data, err := r.view.ReadFile("/" + target)
			if strict && (err != nil || hasAddress(data)) {
				r.refuse(src, "remote", at, fmt.Sprintf("%q holds an address", entry), remoteHint)
			}
			w.documents += len(split(data)) // what can't be read, kustomize reports
		}
	}
	return w
}

// addresses refuses every string of a kustomization that would be fetched.
func (r *refusals) addresses(src *source, value any, at string) {
	switch v := value.(type) {
	case string:
		_, file, keyed := strings.Cut(v, "=")
		if isURL(v) || keyed && isURL(file) {
			r.refuse(src, "remote", at, fmt.Sprintf("%q is outside of the repository", v), remoteHint)
		}
	case []any:
		for i, item := range v {
			r.addresses(src, item, fmt.Sprintf("%s[%d]", at, i))
		}
	case map[string]any:
		for _, key := range sortedKeys(v) {
			if !isNotPath(key) {
				r.addresses(src, v[key], join(at, key))
			}
		}
	}
}

func isNotPath(key string) bool {
	for _, k := range notPaths {
		if k == key {
			return true
		}
	}
	// These are followed on their own.
	switch key {
	case "resources", "bases", "components", "generators", "transformers", "validators":
		return true
	}
	return false
}

// isURL reports whether kustomize would fetch a file.
func isURL(s string) bool {
	s = strings.ToLower(s)
	return strings.HasPrefix(s, "http:") || strings.HasPrefix(s, "https:")
}

// isRemote reports whether kustomize could take an entry for a repository. It
// refuses more than kustomize would follow, never less.
func isRemote(entry string) bool {
	s := strings.ToLower(entry)
	return isURL(s) || strings.Contains(s, "://") || strings.Contains(s, "@") ||
		strings.HasPrefix(s, "git::") || strings.HasPrefix(s, "github.com") || strings.HasPrefix(s, "file:") || strings.HasPrefix(s, "ssh:")
}

func hasAddress(data []byte) bool {
	lower := bytes.ToLower(data)
	return bytes.Contains(lower, []byte("http:")) || bytes.Contains(lower, []byte("https:")) || bytes.Contains(lower, []byte("://"))
}
