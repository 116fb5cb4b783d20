// Package image makes small OCI images from files and Go programs, for tests,
// benchmarks and the demo, and pushes them to a registry or hands them to
// containerd. The same input gives the same image, byte for byte.
package image

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Program is the import path of the program that containers in tests run.
const Program = "github.com/tallyman-dev/tallyman/nodes/runtime/runtimetest/program"

// BuildBinary compiles a Go program statically into dir and returns the file.
// It must be called somewhere below the module that holds the package.
func BuildBinary(ctx context.Context, pkg, dir string) (string, error) {
	out := filepath.Join(dir, path.Base(pkg))
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", pkg, err, bytes.TrimSpace(text))
	}
	return out, nil
}

// Spec says what an image holds.
type Spec struct {
	// Base is the image to add to; nil for an empty one.
	Base v1.Image
	// Binaries maps paths in the image to files of this machine; they become executable.
	Binaries map[string]string
	// Files maps paths in the image to content.
	Files map[string]string
	// Links maps paths in the image to what these symbolic links point to.
	Links map[string]string
	// The rest is the image's configuration.
	Entrypoint, Cmd, Env []string
	User, WorkingDir     string
	// Arch is this machine's by default.
	Arch string
}

// Build makes an image with one layer for the binaries and one for the files
// and links.
func Build(s Spec) (v1.Image, error) {
	binaries := map[string][]byte{}
	for to, from := range s.Binaries {
		content, err := os.ReadFile(from)
		if err != nil {
			return nil, fmt.Errorf("build image: %w", err)
		}
		binaries[to] = content
	}
	files := map[string][]byte{}
	for to, content := range s.Files {
		files[to] = []byte(content)
	}
	img := s.Base
	if img == nil {
		img = empty.Image
	}
	for _, layer := range []struct {
		files map[string][]byte
		mode  int64
		links map[string]string
	}{{binaries, 0o755, nil}, {files, 0o644, s.Links}} {
		if len(layer.files)+len(layer.links) == 0 {
			continue
		}
		var err error
		if img, err = appendLayer(img, layer.files, layer.mode, layer.links); err != nil {
			return nil, fmt.Errorf("build image: %w", err)
		}
	}
	return configure(img, s)
}

func configure(img v1.Image, s Spec) (v1.Image, error) {
	config, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("build image: %w", err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", s.Arch
	if s.Arch == "" {
		config.Architecture = runtime.GOARCH
	}
	config.Config = v1.Config{Entrypoint: s.Entrypoint, Cmd: s.Cmd, Env: s.Env, User: s.User, WorkingDir: s.WorkingDir}
	return mutate.ConfigFile(img, config)
}

func appendLayer(img v1.Image, files map[string][]byte, mode int64, links map[string]string) (v1.Image, error) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	made := map[string]bool{}
	for _, file := range slices.Sorted(maps.Keys(files)) {
		if err := writeParents(w, file, made); err != nil {
			return nil, err
		}
		clean := strings.TrimPrefix(path.Clean(file), "/")
		if err := w.WriteHeader(&tar.Header{Name: clean, Mode: mode, Size: int64(len(files[file]))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(files[file]); err != nil {
			return nil, err
		}
	}
	for _, link := range slices.Sorted(maps.Keys(links)) {
		if err := writeParents(w, link, made); err != nil {
			return nil, err
		}
		clean := strings.TrimPrefix(path.Clean(link), "/")
		if err := w.WriteHeader(&tar.Header{Name: clean, Linkname: links[link], Typeflag: tar.TypeSymlink, Mode: 0o777}); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(archive.Bytes())), nil
	})
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(img, layer)
}

func writeParents(w *tar.Writer, file string, made map[string]bool) error {
	parts := strings.Split(strings.Trim(path.Dir(path.Clean(file)), "/"), "/")
	for i := range parts {
		parent := strings.Join(parts[:i+1], "/")
		if parent == "" || parent == "." || made[parent] {
			continue
		}
		made[parent] = true
		if err := w.WriteHeader(&tar.Header{Name: parent + "/", Mode: 0o755, Typeflag: tar.TypeDir}); err != nil {
			return err
		}
	}
	return nil
}

// Push uploads an image; a registry on loopback is spoken to in plain HTTP.
// User may be empty.
func Push(ctx context.Context, ref string, img v1.Image, user, password string) error {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return fmt.Errorf("push %s: %w", ref, err)
	}
	auth := authn.Anonymous
	if user != "" {
		auth = &authn.Basic{Username: user, Password: password}
	}
	if err := remote.Write(parsed, img, remote.WithContext(ctx), remote.WithAuth(auth)); err != nil {
		return fmt.Errorf("push %s: %w", ref, err)
	}
	return nil
}

// Archive writes an image as a tar archive, as `docker save` does; containerd imports it.
func Archive(ref string, img v1.Image, w io.Writer) error {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return fmt.Errorf("archive %s: %w", ref, err)
	}
	return tarball.Write(parsed, img, w)
}
