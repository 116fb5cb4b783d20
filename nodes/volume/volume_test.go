package volume

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

func testSource(configs map[string]map[string]string) Source {
	return Source{
		Config: func(k desired.Key) *nodes.Config {
			data, found := configs[k.Kind+"/"+k.Name]
			if !found {
				return nil
			}
			c := &nodes.Config{Key: k, Data: map[string][]byte{}}
			for key, value := range data {
				c.Data[key] = []byte(value)
			}
			return c
		},
		Field:    func(r *corev1.ObjectFieldSelector) (string, error) { return "field " + r.FieldPath, nil },
		Resource: func(r *corev1.ResourceFieldSelector) (string, error) { return "resource " + r.Resource, nil },
		Token:    func(s *corev1.ServiceAccountTokenProjection) (string, error) { return "token for " + s.Audience, nil },
	}
}

func configMap(name string, optional bool, items ...corev1.KeyToPath) *corev1.ConfigMapVolumeSource {
	return &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: name}, Items: items, Optional: &optional, DefaultMode: new(int32(0o640))}
}

func TestPayload(t *testing.T) {
	src := testSource(map[string]map[string]string{"ConfigMap/a": {"x": "1", "y": "2"}, "Secret/s": {"k": "v"}})
	for _, c := range []struct {
		name   string
		volume corev1.VolumeSource
		want   map[string]string // path → "mode data"
		err    string
	}{
		{"all keys", corev1.VolumeSource{ConfigMap: configMap("a", false)}, map[string]string{"x": "640 1", "y": "640 2"}, ""},
		{"items", corev1.VolumeSource{ConfigMap: configMap("a", false, corev1.KeyToPath{Key: "x", Path: "deep/er/x", Mode: new(int32(0o400))})}, map[string]string{"deep/er/x": "400 1"}, ""},
		{"missing", corev1.VolumeSource{ConfigMap: configMap("b", false)}, nil, `configmap "b" not found`},
		{"missing, optional", corev1.VolumeSource{ConfigMap: configMap("b", true)}, map[string]string{}, ""},
		{"missing key", corev1.VolumeSource{ConfigMap: configMap("a", false, corev1.KeyToPath{Key: "z", Path: "z"})}, nil, `has no key "z"`},
		{"escape", corev1.VolumeSource{ConfigMap: configMap("a", false, corev1.KeyToPath{Key: "x", Path: "../../etc/x"})}, nil, "leads out of the volume"},
		{"projected, later wins", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "a"}}},
			{Secret: &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}, Items: []corev1.KeyToPath{{Key: "k", Path: "x"}}}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{Path: "n", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}}}},
		}}}, map[string]string{"x": "644 v", "y": "644 2", "n": "644 field metadata.name"}, ""},
		{"token", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "vault", Path: "t"}}}}}, map[string]string{"t": "644 token for vault"}, ""},
		{"trust bundle", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ClusterTrustBundle: &corev1.ClusterTrustBundleProjection{}}}}}, nil, "not supported"},
	} {
		files, err := payload(&nodes.Pod{Namespace: "shop", Template: &nodes.Template{}}, &corev1.Volume{VolumeSource: c.volume}, src)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: err %v, want %q", c.name, err, c.err)
			}
			continue
		}
		got := map[string]string{}
		for path, f := range files {
			got[path] = strings.TrimPrefix(goMode(f.mode).String(), "-") + " " + string(f.data)
		}
		want := map[string]string{}
		for path, text := range c.want {
			mode, data, _ := strings.Cut(text, " ")
			want[path] = map[string]string{"640": "rw-r-----", "400": "r--------", "644": "rw-r--r--"}[mode] + " " + data
		}
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", c.name, err, diff)
		}
	}
}

// TestTokensAreForTheirUserAlone: as in Kubernetes, where it is known who that is.
func TestTokensAreForTheirUserAlone(t *testing.T) {
	as := func(users ...*int64) corev1.PodSpec {
		var s corev1.PodSpec
		for _, u := range users {
			s.Containers = append(s.Containers, corev1.Container{SecurityContext: &corev1.SecurityContext{RunAsUser: u}})
		}
		return s
	}
	grouped := as(nil)
	grouped.SecurityContext = &corev1.PodSecurityContext{FSGroup: new(int64(7))}
	for name, c := range map[string]struct {
		spec corev1.PodSpec
		mode uint32
		user *int64
	}{
		"unknown":      {as(nil), 0o644, nil},
		"one user":     {as(new(int64(5)), new(int64(5))), 0o600, new(int64(5))},
		"two users":    {as(new(int64(5)), new(int64(6))), 0o644, nil},
		"one unknown":  {as(new(int64(5)), nil), 0o644, nil},
		"with a group": {grouped, 0o600, nil},
	} {
		v := &corev1.Volume{VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
			Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "t"}}},
		}}}
		files, err := payload(&nodes.Pod{Template: &nodes.Template{Spec: c.spec}}, v, testSource(nil))
		if got := files["t"]; err != nil || got.mode != c.mode || id(got.user) != id(c.user) {
			t.Errorf("%s: mode %o user %d, %v; want %o %d", name, got.mode, id(got.user), err, c.mode, id(c.user))
		}
	}
}

// listing is what a user of the volume sees: path → content.
func listing(t *testing.T, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if strings.HasPrefix(e.Name(), "..") {
			continue
		}
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			for name, data := range listing(t, path) {
				got[e.Name()+"/"+name] = data
			}
			continue
		}
		data, err := os.ReadFile(path)
		must(t, err)
		got[e.Name()] = string(data)
	}
	return got
}

func TestSwapChangesAllAtOnceAndHeals(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vol")
	first := map[string]file{"a": {data: []byte("1"), mode: 0o644}, "d/b": {data: []byte("2"), mode: 0o400}}
	steps := []struct {
		name   string
		damage func()
		files  map[string]file
		wrote  bool
	}{
		{"first", func() {}, first, true},
		{"again", func() {}, first, false},
		{"overwritten", func() { must(t, os.WriteFile(filepath.Join(dir, "a"), []byte("X"), 0o644)) }, first, true},
		{"mode changed", func() { must(t, os.Chmod(filepath.Join(dir, "a"), 0o777)) }, first, true},
		{"link replaced", func() {
			must(t, os.Remove(filepath.Join(dir, "a")))
			must(t, os.WriteFile(filepath.Join(dir, "a"), []byte("X"), 0o644))
		}, first, false},
		{"stranger added", func() { must(t, os.WriteFile(filepath.Join(dir, "z"), nil, 0o644)) }, first, false},
		{"crashed half-way", func() {
			must(t, os.Mkdir(filepath.Join(dir, "..data-left"), 0o755))
			must(t, os.Symlink("..data-left", filepath.Join(dir, "..data_tmp")))
			must(t, os.Remove(filepath.Join(dir, "..data")))
		}, first, true},
		{"changed", func() {}, map[string]file{"c": {data: []byte("3"), mode: 0o644}}, true},
		{"emptied", func() {}, map[string]file{}, true},
	}
	for _, s := range steps {
		s.damage()
		wrote, err := swap(dir, s.files, nil)
		if err != nil || wrote != s.wrote {
			t.Fatalf("%s: wrote %v, %v; want %v", s.name, wrote, err, s.wrote)
		}
		want := map[string]string{}
		for path, f := range s.files {
			want[path] = string(f.data)
		}
		if diff := cmp.Diff(want, listing(t, dir)); diff != "" {
			t.Fatalf("%s: %s", s.name, diff)
		}
		hidden, err := filepath.Glob(filepath.Join(dir, "..*"))
		if err != nil || len(hidden) != 2 {
			t.Fatalf("%s: left behind: %v %v", s.name, hidden, err)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestHostPathTypes(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o644))
	for _, c := range []struct {
		kind corev1.HostPathType
		path string
		ok   bool
	}{
		{corev1.HostPathUnset, "absent", true},
		{corev1.HostPathDirectory, "absent", true}, // the line before has made it
		{corev1.HostPathUnset, "file", true},
		{corev1.HostPathDirectory, "nowhere", false},
		{corev1.HostPathDirectory, "file", false},
		{corev1.HostPathDirectoryOrCreate, "new/dir", true},
		{corev1.HostPathFile, "file", true},
		{corev1.HostPathFile, "new", false},
		{corev1.HostPathFileOrCreate, "new/file", true},
		{corev1.HostPathSocket, "file", false},
		{corev1.HostPathCharDev, "/dev/null", true},
		{corev1.HostPathBlockDev, "/dev/null", false},
	} {
		path := c.path
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		if err := hostPath(&corev1.HostPathVolumeSource{Path: path, Type: &c.kind}); (err == nil) != c.ok {
			t.Errorf("%s %s: %v", c.kind, c.path, err)
		}
	}
}

func TestMountinfoIsReadWholeOrNotAtAll(t *testing.T) {
	const lines = "21 1 0:5 / /run/v rw - tmpfs t rw\n" +
		"22 21 0:6 / /run/v/a\\040b rw - tmpfs t rw\n" +
		"23 1 0:7 / /run/volumes rw - tmpfs t rw\n"
	got, err := readMountPoints(strings.NewReader(lines), []string{"/run/v", "/data"})
	if diff := cmp.Diff([]string{"/run/v", "/run/v/a b"}, got); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	broken := errors.New("broken")
	if _, err := readMountPoints(io.MultiReader(strings.NewReader(lines), iotest.ErrReader(broken)), nil); !errors.Is(err, broken) {
		t.Errorf("a read that broke off: %v", err)
	}
	if _, err := readMountPoints(strings.NewReader(lines+"24 1"), nil); err == nil {
		t.Error("a line that is cut short is taken for none")
	}
}

// A container that owns the volume swaps the new directory for a link to one
// of the host's: that one keeps its mode.
func TestMakeOneFollowsNoLink(t *testing.T) {
	host, volume := t.TempDir(), t.TempDir()
	must(t, os.Chmod(host, 0o700))
	dir, err := unix.Open(volume, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(dir)
	var like unix.Stat_t
	must(t, unix.Fstat(dir, &like))
	like.Mode |= 0o777
	name, link := filepath.Join(volume, "sub"), filepath.Join(volume, "link")
	must(t, os.Symlink(host, link))
	stop := make(chan struct{})
	var attacker sync.WaitGroup
	attacker.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, name, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
			}
		}
	})
	for range 5000 {
		_ = makeOne(dir, "sub", like) // refused when the link was there in time
		_ = unix.Unlinkat(dir, "sub", unix.AT_REMOVEDIR)
		info, err := os.Stat(host)
		must(t, err)
		if info.Mode().Perm() != 0o700 {
			t.Errorf("the host's directory is now %v", info.Mode())
			break
		}
	}
	close(stop)
	attacker.Wait()
}
