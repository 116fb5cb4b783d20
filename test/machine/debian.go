package machine

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest/image"
)

// packageDir keeps Debian's packages between runs.
func packageDir() (string, error) {
	dir, err := filepath.Abs("../../build/packages")
	if err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o755)
}

// RedisPackages are Debian's packages that hold redis and the libraries that it
// loads.
var RedisPackages = []string{
	"redis-server", "redis-tools", "libatomic1", "libc6", "libcap2", "libgcc-s1", "libgcrypt20", "libgpg-error0", "libjemalloc2",
	"liblz4-1", "liblzf1", "liblzma5", "libssl3", "libstdc++6", "libsystemd0", "libzstd1",
}

// FetchPackages downloads the Debian packages that were not fetched before. Call
// it where the outer machine's network is (see Outside).
func FetchPackages(names ...string) error {
	dir, err := packageDir()
	if err != nil {
		return err
	}
	missing := map[string]bool{}
	for _, name := range names {
		if found, _ := filepath.Glob(filepath.Join(dir, name+"_*.deb")); len(found) == 0 {
			missing[name] = true
		}
	}
	if len(missing) == 0 {
		return nil
	}
	args := []string{"-o", "APT::Sandbox::User=root", "download"}
	for name := range missing {
		args = append(args, name)
	}
	download := exec.Command("apt-get", args...)
	download.Dir = dir
	if out, err := download.CombinedOutput(); err != nil {
		return fmt.Errorf("download Debian packages for the tests with real programs: %s: %w: %s", download, err, out)
	}
	return nil
}

// PushDebian makes an image with a layer for each package, pushes it to the
// machine's registry and returns its reference.
func (m *Machine) PushDebian(name string, packages []string) string {
	m.t.Helper()
	img, err := debianImage(packages)
	if err != nil {
		m.t.Fatal(err)
	}
	ref := RegistryAddress + "/" + name
	if err := image.Push(context.Background(), ref, img, "", ""); err != nil {
		m.t.Fatal(err)
	}
	return ref
}

func debianImage(packages []string) (v1.Image, error) {
	dir, err := packageDir()
	if err != nil {
		return nil, err
	}
	img := v1.Image(empty.Image)
	for _, p := range packages {
		found, err := filepath.Glob(filepath.Join(dir, p+"_*.deb"))
		if err != nil || len(found) == 0 {
			return nil, fmt.Errorf("no package %s in %s: %w", p, dir, err)
		}
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			out, err := exec.Command("dpkg-deb", "--fsys-tarfile", found[len(found)-1]).Output()
			return io.NopCloser(bytes.NewReader(out)), err
		})
		if err != nil {
			return nil, err
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			return nil, err
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	return mutate.ConfigFile(img, config)
}
