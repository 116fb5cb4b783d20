// Package desired is the vocabulary of intent: what one Git revision says
// should run, as immutable values.
//
// A Snapshot is complete or does not exist: a revision with a problem of
// severity error never becomes one. Objects are Kubernetes' own API types,
// already defaulted and validated (package desired/manifest does that).
// Nothing here reads a clock, a file or the network, and nobody may change an
// Object, its Value or a Snapshot after it was made: they are shared between
// revisions, the planner's states and every page that shows them.
package desired

import (
	"cmp"
	"fmt"
	"strings"
	"time"
)

// Key names one object of a cluster. The API version is not part of it: an
// object keeps its identity when its manifest moves to another version.
type Key struct {
	// Group is the API group, empty for the core group.
	Group string `json:"group,omitempty"`
	// Kind is the Kubernetes kind, e.g. "Deployment".
	Kind string `json:"kind"`
	// Namespace is empty for cluster-scoped kinds and never empty otherwise.
	Namespace string `json:"namespace,omitempty"`
	// Name is the object's metadata.name.
	Name string `json:"name"`
}

// String gives "Deployment default/web", or "Namespace web" for cluster-scoped
// kinds. It is meant for people; use the fields to identify an object.
func (k Key) String() string {
	if k.Namespace == "" {
		return k.Kind + " " + k.Name
	}
	return k.Kind + " " + k.Namespace + "/" + k.Name
}

// IsZero reports whether k names nothing.
func (k Key) IsZero() bool { return k == Key{} }

// Compare orders keys by namespace, kind, name and group: the order in which
// plans and pages list objects. Cluster-scoped objects come first.
func (k Key) Compare(o Key) int {
	return cmp.Or(
		strings.Compare(k.Namespace, o.Namespace),
		strings.Compare(k.Kind, o.Kind),
		strings.Compare(k.Name, o.Name),
		strings.Compare(k.Group, o.Group),
	)
}

// Place says where in a revision something was written.
type Place struct {
	// File is the path from the repository's root, with slashes.
	File string `json:"file,omitempty"`
	// Line counts from 1; 0 means that the place has no line (an object that a
	// kustomization generated, say).
	Line int `json:"line,omitempty"`
	// Document counts the YAML documents of the file from 0.
	Document int `json:"document"`
}

// String gives "web.yaml:12", or the file alone without a line.
func (p Place) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// Revision is one commit of the desired-state repository.
type Revision struct {
	// SHA is the full hexadecimal commit id.
	SHA string `json:"sha"`
	// Tree is the id of the commit's whole tree, since a manifest below the
	// followed path may refer to files beside it: two revisions with the same
	// Tree say the same.
	Tree    string    `json:"tree,omitempty"`
	Author  string    `json:"author,omitempty"`
	Email   string    `json:"email,omitempty"`
	Message string    `json:"message,omitempty"`
	Time    time.Time `json:"time"`
	// Signed says whether the commit carries a signature at all.
	Signed bool `json:"signed"`
	// Signer is the verified signer; empty when nobody verified one.
	Signer string `json:"signer,omitempty"`
}

// Short gives the first seven characters of the commit id.
func (r Revision) Short() string { return r.SHA[:min(7, len(r.SHA))] }

// Subject is the first line of the commit message.
func (r Revision) Subject() string {
	subject, _, _ := strings.Cut(strings.TrimSpace(r.Message), "\n")
	return strings.TrimSpace(subject)
}

// Trailers returns the values of every trailer line "name: value" in the last
// paragraph of the commit message, in order. The name is compared without case.
func (r Revision) Trailers(name string) []string {
	message := strings.TrimSpace(strings.ReplaceAll(r.Message, "\r\n", "\n"))
	if i := strings.LastIndex(message, "\n\n"); i >= 0 {
		message = message[i+2:]
	}
	var values []string
	for line := range strings.Lines(message) {
		key, value, found := strings.Cut(line, ":")
		if found && strings.EqualFold(strings.TrimSpace(key), name) {
			values = append(values, strings.TrimSpace(value))
		}
	}
	return values
}
