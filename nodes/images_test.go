package nodes

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestImageName(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0a", 32)
	for ref, want := range map[string]string{
		"nginx":                         "docker.io/library/nginx:latest",
		"nginx:1.27":                    "docker.io/library/nginx:1.27",
		"team/shop:2":                   "docker.io/team/shop:2",
		"registry:5000/shop":            "registry:5000/shop:latest",
		"quay.io/a/b:v1@" + digest:      "quay.io/a/b@" + digest,
		"docker.io/library/a@" + digest: "docker.io/library/a@" + digest,
		"Not A Reference":               "Not A Reference",
	} {
		if got := ImageName(ref); got != want {
			t.Errorf("%s is %s, want %s", ref, got, want)
		}
	}
	if got, want := DigestName("nginx:1.27", digest), "docker.io/library/nginx@"+digest; got != want {
		t.Errorf("by its digest %s, want %s", got, want)
	}
	if got := DigestName("nginx", "") + DigestName("Not A Reference", digest); got != "" {
		t.Errorf("without a digest or a repository: %s", got)
	}
}

// TestNewImages: the largest are told of, with a bounded number of names.
func TestNewImages(t *testing.T) {
	list := []Image{
		{Names: []string{"b", "", "a", "b"}, Size: 7},
		{Size: 900},
		{Names: []string{strings.Repeat("x", 1000)}, Size: 900},
		{Names: []string{"f", "e", "d", "c", "b", "a"}, Size: -1},
		{Names: []string{"a", "b"}, Size: 7},
	}
	want := &Images{List: []Image{{Names: []string{"a", "b"}, Size: 7}, {Names: []string{"a", "b", "c", "d", "e"}}}}
	if diff := cmp.Diff(want, NewImages(list)); diff != "" {
		t.Error(diff)
	}
	var many []Image
	for i := range 2 * MaxImages {
		many = append(many, Image{Names: []string{fmt.Sprint(i)}, Size: int64(i)})
	}
	got := NewImages(slices.Clone(many)).List
	if len(got) != MaxImages || got[0].Size != 2*MaxImages-1 || got[MaxImages-1].Size != MaxImages {
		t.Errorf("of %d images %d are told of, from %v to %v", len(many), len(got), got[0], got[len(got)-1])
	}
}
