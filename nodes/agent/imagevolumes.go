package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes/agent/spec"
)

// imagePrefix begins the name under which the image of a volume is pulled; no
// container is called so.
const imagePrefix = "@image/"

// imageVolumes are what is to be pulled for a pod's image volumes, in the form of
// the containers that images are pulled for.
func imageVolumes(s *corev1.PodSpec) []corev1.Container {
	var list []corev1.Container
	for i := range s.Volumes {
		v := &s.Volumes[i]
		if v.Image != nil && v.Image.Reference != "" {
			list = append(list, corev1.Container{Name: imagePrefix + v.Name, Image: v.Image.Reference, ImagePullPolicy: v.Image.PullPolicy})
		}
	}
	return list
}

// puller is whom an image is pulled for: a container, or an image volume.
func puller(s *corev1.PodSpec, name string) *corev1.Container {
	if !strings.HasPrefix(name, imagePrefix) {
		return spec.Find(s, name)
	}
	list := imageVolumes(s)
	if i := slices.IndexFunc(list, func(c corev1.Container) bool { return c.Name == name }); i >= 0 {
		return &list[i]
	}
	return nil
}

// volumeImages pulls what image volumes are made of; it reports whether all is here.
func (d *decider) volumeImages() bool {
	here := true
	for _, c := range imageVolumes(d.spec) {
		if d.images[c.Name] {
			continue
		}
		here = false
		if !d.busy["pull"+c.Name] {
			d.try(opPull, c.Name)
		}
	}
	return here
}

// known is the image that a container, or a volume, of this pod was made from.
func (m *Machine) known(name string) string {
	if strings.HasPrefix(name, imagePrefix) {
		return m.memory.Images[name]
	}
	return m.memory.run(name).Image
}

// keepImage has an image volume show the same content as long as the pod lives.
func (m *Machine) keepImage(name, id string) {
	if !strings.HasPrefix(name, imagePrefix) {
		return
	}
	if m.memory.Images == nil {
		m.memory.Images = map[string]string{}
	}
	m.memory.Images[name] = id
}

// imageTrouble is why an image volume is not there yet.
func (m *Machine) imageTrouble() (trouble, bool) {
	for _, c := range imageVolumes(&m.pod.Template.Spec) {
		if t, found := m.trouble[c.Name]; found {
			return t, true
		}
	}
	return trouble{}, false
}

// mountImage is volume.Source's Image: it mounts what was pulled for a volume.
func (m *Machine) mountImage() func(ctx context.Context, volume, dir string) error {
	pulled, owner := map[string]string{}, string(m.pod.UID)
	for name, image := range m.images {
		pulled[name] = image.ID
	}
	return func(ctx context.Context, volume, dir string) error {
		id := pulled[imagePrefix+volume]
		if id == "" {
			return errors.New("its image was not pulled")
		}
		return m.runtime.MountImage(ctx, owner, id, dir)
	}
}

// releaseImages gives back what the pod's image volumes kept of the runtime.
func (m *Machine) releaseImages(ctx context.Context) error {
	if len(imageVolumes(&m.pod.Template.Spec)) == 0 {
		return nil
	}
	if err := m.runtime.ReleaseImages(ctx, string(m.pod.UID)); err != nil {
		return fmt.Errorf("release image volumes: %w", err)
	}
	return nil
}
