package manifest

import (
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/tallyman-dev/tallyman/desired"
)

// Status says what becomes of a kind or a field.
type Status string

const (
	// Works means that it does what Kubernetes documents.
	Works Status = "works"
	// NoEffect means that it is accepted and there is nothing here for it to do.
	NoEffect Status = "no effect"
	// NotEnforced means that it is accepted, but what it asks for does not happen (yet).
	NotEnforced Status = "not enforced"
	// Unsupported means that the revision is rejected, unless the Cluster object
	// says otherwise.
	Unsupported Status = "unsupported"
)

// kindRule decides one kind.
type kindRule struct {
	group, version, kind string
	status               Status
	// reason says why, for every status but Works.
	reason string
	// clusterScoped kinds have no namespace.
	clusterScoped bool
	// make gives an empty object of the API type; nil for kinds of which only
	// the metadata is read.
	make func() runtime.Object
	// validate checks a defaulted object; nil when decoding is all there is.
	validate validator
}

func (k kindRule) apiVersion() string {
	if k.group == "" {
		return k.version
	}
	return k.group + "/" + k.version
}

// fresh makes an empty API object.
func fresh[T any, P interface {
	*T
	runtime.Object
}]() runtime.Object {
	return P(new(T))
}

// lookUp finds the rule of a kind, which may be of another version than the one
// written. When there is none, or the version is unknown, it says so, with a hint.
func (r *rules) lookUp(apiVersion, kind string) (rule kindRule, code, message, hint string) {
	if k, ok := r.kinds[apiVersion+" "+kind]; ok {
		return k, "", "", ""
	}
	if v, ok := r.versions[apiVersion+" "+kind]; ok {
		return r.kinds[v.to+" "+kind], "", "", ""
	}
	same := r.byName[kind]
	group, _, _ := strings.Cut(apiVersion, "/")
	if !strings.Contains(apiVersion, "/") {
		group = ""
	}
	if len(same) > 0 && same[0].group == group && same[0].status == Unsupported {
		return same[0], "", "", "" // in whatever version
	}
	if len(same) > 0 && isBuiltin(group) {
		return kindRule{}, "removed-version", fmt.Sprintf("there is no %s in %s (any more)", kind, apiVersion),
			"write apiVersion: " + same[0].apiVersion()
	}
	if group == desired.ClusterKey.Group {
		return kindRule{}, "unknown-kind", fmt.Sprintf("there is no %s in %s", kind, apiVersion), "the only kind of tallyman.dev/v1alpha1 is Cluster"
	}
	if isBuiltin(group) {
		return kindRule{}, "unknown-kind", fmt.Sprintf("there is no %s in %s", kind, apiVersion), suggest(kind, r.byName)
	}
	return kindRule{}, "missing-definition", fmt.Sprintf("there is no CustomResourceDefinition of %s in %s", kind, group),
		"add the definition to the repository, or move this document out of the followed path: nothing here acts on it"
}

// isBuiltin reports whether a group is one of Kubernetes' own.
func isBuiltin(group string) bool {
	if group == "gateway.networking.k8s.io" || strings.HasSuffix(group, ".x-k8s.io") {
		return false
	}
	switch group {
	case "", "apps", "batch", "autoscaling", "policy", "extensions":
		return true
	}
	return strings.HasSuffix(group, ".k8s.io") && strings.Count(group, ".") <= 3
}

var _ runtime.Object = (*metav1.PartialObjectMetadata)(nil)
