package desired

import (
	"iter"
	"slices"

	"k8s.io/apimachinery/pkg/runtime"
)

// Object is one Kubernetes object of a revision, defaulted and valid.
type Object struct {
	Key  Key
	From Place
	// Value is the typed object in the version that Tallyman works with
	// (apps/v1, v1, …), e.g. *appsv1.Deployment. Immutable.
	Value runtime.Object
	// Fingerprint is a hash of the object's normal form: equal for equal
	// content, whatever the file looked like. For a Secret it is keyed by no
	// secret, so it is never shown and never leaves the server.
	Fingerprint string
}

// Snapshot is everything that one revision says. Immutable, safe for
// concurrent use.
type Snapshot struct {
	revision Revision
	settings Settings
	problems []Problem
	objects  map[Key]*Object
	sorted   []*Object
	kinds    map[string][]*Object
}

// NewSnapshot makes the snapshot of a revision from objects with distinct
// keys. problems are the warnings and notes that the revision carries; a
// problem of severity error must never get here. NewSnapshot takes ownership
// of both slices.
func NewSnapshot(revision Revision, settings Settings, objects []*Object, problems []Problem) *Snapshot {
	slices.SortFunc(objects, func(a, b *Object) int { return a.Key.Compare(b.Key) })
	s := &Snapshot{
		revision: revision,
		settings: settings,
		problems: problems,
		sorted:   objects,
		objects:  make(map[Key]*Object, len(objects)),
		kinds:    map[string][]*Object{},
	}
	for _, o := range objects {
		s.objects[o.Key] = o
		s.kinds[o.Key.Kind] = append(s.kinds[o.Key.Kind], o)
	}
	return s
}

// Revision is the commit that says all this.
func (s *Snapshot) Revision() Revision { return s.revision }

// WithRevision is the same content under another commit: a commit that changes
// nothing below the followed path needs no second reading.
func (s *Snapshot) WithRevision(r Revision) *Snapshot {
	c := *s
	c.revision = r
	return &c
}

// Settings are those of the revision's Cluster object, or the defaults.
func (s *Snapshot) Settings() Settings { return s.settings }

// Problems are the warnings and notes of the revision, sorted.
func (s *Snapshot) Problems() []Problem { return s.problems }

// Len counts the objects.
func (s *Snapshot) Len() int { return len(s.sorted) }

// Get returns the object with this key, or nil.
func (s *Snapshot) Get(k Key) *Object { return s.objects[k] }

// All yields every object in the order of Key.Compare.
func (s *Snapshot) All() iter.Seq[*Object] { return slices.Values(s.sorted) }

// Kind returns the objects of one kind (any group), in the order of
// Key.Compare. The caller must not change the slice.
func (s *Snapshot) Kind(kind string) []*Object { return s.kinds[kind] }

// Changed returns the keys whose content differs between two snapshots,
// including those that only one of them holds, in the order of Key.Compare.
// Either may be nil, meaning empty. Where a thing is written in the repository
// is not content.
func Changed(old, new *Snapshot) []Key {
	var keys []Key
	if new != nil {
		for _, o := range new.sorted {
			if before := old.get(o.Key); before == nil || before.Fingerprint != o.Fingerprint {
				keys = append(keys, o.Key)
			}
		}
	}
	if old != nil {
		for _, o := range old.sorted {
			if new.get(o.Key) == nil {
				keys = append(keys, o.Key)
			}
		}
	}
	slices.SortFunc(keys, Key.Compare)
	return keys
}

func (s *Snapshot) get(k Key) *Object {
	if s == nil {
		return nil
	}
	return s.objects[k]
}
