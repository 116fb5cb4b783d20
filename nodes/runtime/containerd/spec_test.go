package containerd

import (
	"errors"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/distribution/reference"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

func TestCapabilities(t *testing.T) {
	r := &Runtime{host: host{caps: []string{"CAP_CHOWN", "CAP_KILL", "CAP_SYS_ADMIN"}}}
	for _, test := range []struct {
		name string
		s    runtime.Security
		want string
	}{
		{"default", runtime.Security{}, strings.Join(defaultCaps, " ")},
		{"privileged", runtime.Security{Privileged: true, DropCapabilities: []string{"ALL"}}, "CAP_CHOWN CAP_KILL CAP_SYS_ADMIN"},
		{"add all, drop one", runtime.Security{AddCapabilities: []string{"all"}, DropCapabilities: []string{"KILL"}}, "CAP_CHOWN CAP_SYS_ADMIN"},
		{"drop all, add one", runtime.Security{AddCapabilities: []string{"net_admin"}, DropCapabilities: []string{"ALL"}}, "CAP_NET_ADMIN"},
	} {
		if diff := cmp.Diff(test.want, strings.Join(r.capabilities(test.s), " ")); diff != "" {
			t.Errorf("%s: %s", test.name, diff)
		}
	}
}

// TestOutOfMemoryEndsAContainerAsAWhole: where the kernel can, in version 2.
func TestOutOfMemoryEndsAContainerAsAWhole(t *testing.T) {
	for unified, want := range map[bool]string{true: "1", false: ""} {
		r := &Runtime{host: host{unified: unified}}
		s, err := r.spec(runtime.Container{ID: "c"}, specs.User{}, "/c")
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Linux.Resources.Unified["memory.oom.group"]; got != want {
			t.Errorf("version 2 %v: memory.oom.group is %q", unified, got)
		}
	}
}

// TestHugePagesThatAreNotGrantedAreRefused: the kernel has no limit by itself.
func TestHugePagesThatAreNotGrantedAreRefused(t *testing.T) {
	r := &Runtime{host: host{pages: []int64{64 << 10, 2 << 20, 1 << 30}}}
	s, err := r.spec(runtime.Container{HugePages: map[int64]int64{2 << 20: 4 << 20}}, specs.User{}, "/c")
	if err != nil {
		t.Fatal(err)
	}
	want := []specs.LinuxHugepageLimit{{Pagesize: "64KB"}, {Pagesize: "2MB", Limit: 4 << 20}, {Pagesize: "1GB"}}
	if diff := cmp.Diff(want, s.Linux.Resources.HugepageLimits); diff != "" {
		t.Error(diff)
	}
}

func TestMountsAreOuterBeforeInnerAndReplaceTheSystems(t *testing.T) {
	s := &specs.Spec{Linux: &specs.Linux{}}
	setMounts(s, runtime.Container{Mounts: []runtime.Mount{
		{Source: "/b", Destination: "/data/inner"},
		{Source: "/a", Destination: "/data", Options: []string{"ro", "rslave"}},
		{Source: "/mq", Destination: "/dev/mqueue/"},
	}})
	var got []string
	for _, m := range s.Mounts {
		got = append(got, m.Destination+" "+m.Type)
	}
	want := []string{"/proc proc", "/dev tmpfs", "/sys sysfs", "/data bind", "/dev/pts devpts", "/data/inner bind", "/dev/mqueue/ bind", "/sys/fs/cgroup cgroup"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"ro", "rslave", "rbind"}, s.Mounts[3].Options); diff != "" {
		t.Error(diff)
	}
	if s.Linux.RootfsPropagation != "rslave" {
		t.Errorf("the root's propagation is %q", s.Linux.RootfsPropagation)
	}
}

func TestAccounts(t *testing.T) {
	found, err := parseAccounts(fstest.MapFS{
		"etc/passwd": {Data: []byte("# users\nroot:x:0:0\nweb:x:33:34:::\nbroken:x:many:0\n")},
		"etc/group":  {Data: []byte("web:x:34:\nextra:x:35:web,other\n")},
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := found.user(runtime.Container{User: "web"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(specs.User{UID: 33, GID: 34, AdditionalGids: []uint32{34, 35}}, got); diff != "" {
		t.Error(diff)
	}
	for _, user := range []string{"broken", "web:nobody", "-1", "99999999999"} {
		if got, err := found.user(runtime.Container{User: user}); err == nil {
			t.Errorf("user %q is %+v", user, got)
		}
	}
	if empty, err := parseAccounts(fstest.MapFS{}); err != nil || len(empty.users) != 0 {
		t.Errorf("image without files: %+v, %v", empty, err)
	}
}

func TestCredentials(t *testing.T) {
	named, err := reference.ParseDockerRef("registry.test:5000/team/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	hub, err := reference.ParseDockerRef("nginx")
	if err != nil {
		t.Fatal(err)
	}
	auths := []runtime.Auth{
		{Registry: "registry.test", Username: "wrong port"},
		{Registry: "registry.test:5000/tea", Username: "wrong path"},
		{Registry: "registry.test:5000/team", Username: "team", Password: "p"},
		{Registry: "registry.test:5000", Username: "all"},
		{Registry: "https://index.docker.io/v1/", IdentityToken: "token"},
		{Registry: "*.dkr.*.cloud.test", Username: "cloud"},
	}
	for _, test := range []struct {
		host         string
		image        reference.Named
		user, secret string
	}{
		{"registry.test:5000", named, "team", "p"},
		{"registry-1.docker.io", hub, "", "token"},
		{"other.test", named, "", ""},
		{"123.dkr.west-1.cloud.test", named, "cloud", ""},
		{"a.123.dkr.west-1.cloud.test", named, "", ""},
		{"123.dkr.west-1.cloud.test:5000", named, "", ""},
	} {
		user, secret := credentials(auths, test.host, test.image)
		if user != test.user || secret != test.secret {
			t.Errorf("%s: %q, %q", test.host, user, secret)
		}
	}
}

func TestStartReason(t *testing.T) {
	long := `failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: exec: "/nope": stat /nope: no such file or directory: unknown`
	if got := startReason(errors.New(long)); got != `exec: "/nope": stat /nope: no such file or directory` {
		t.Errorf("got %q", got)
	}
}
