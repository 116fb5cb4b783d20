package volume

import (
	"errors"
	"fmt"
	"path"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// file is one file of a volume, by its path relative to the volume.
type file struct {
	data []byte
	mode uint32
	// user owns the file; nil is root.
	user *int64
}

// payload is what a volume that is made of files holds now.
func payload(pod *nodes.Pod, v *corev1.Volume, src Source) (map[string]file, error) {
	p := &projection{pod: pod, namespace: pod.Namespace, src: src, files: map[string]file{}}
	var err error
	switch {
	case v.ConfigMap != nil:
		s := v.ConfigMap
		err = p.config("ConfigMap", s.Name, s.Items, s.Optional, mode(s.DefaultMode))
	case v.Secret != nil:
		s := v.Secret
		err = p.config("Secret", s.SecretName, s.Items, s.Optional, mode(s.DefaultMode))
	case v.DownwardAPI != nil:
		err = p.downward(v.DownwardAPI.Items, mode(v.DownwardAPI.DefaultMode))
	case v.Projected != nil:
		err = p.projected(v.Projected)
	}
	return p.files, err
}

func mode(m *int32) uint32 {
	if m == nil {
		return 0o644
	}
	return uint32(*m)
}

// projection gathers files; a later one of the same path wins.
type projection struct {
	pod       *nodes.Pod
	namespace string
	src       Source
	files     map[string]file
}

func (p *projection) projected(s *corev1.ProjectedVolumeSource) error {
	def := mode(s.DefaultMode)
	for _, source := range s.Sources {
		var err error
		switch {
		case source.ConfigMap != nil:
			c := source.ConfigMap
			err = p.config("ConfigMap", c.Name, c.Items, c.Optional, def)
		case source.Secret != nil:
			c := source.Secret
			err = p.config("Secret", c.Name, c.Items, c.Optional, def)
		case source.DownwardAPI != nil:
			err = p.downward(source.DownwardAPI.Items, def)
		case source.ServiceAccountToken != nil:
			err = p.token(source.ServiceAccountToken, def)
		default:
			err = errors.New("this kind of projected source is not supported")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *projection) config(kind, name string, items []corev1.KeyToPath, optional *bool, def uint32) error {
	may := optional != nil && *optional
	config := p.src.Config(desired.Key{Kind: kind, Namespace: p.namespace, Name: name})
	if config == nil {
		if may {
			return nil
		}
		return fmt.Errorf("%s %q not found", strings.ToLower(kind), name)
	}
	if len(items) == 0 {
		for key, data := range config.Data {
			p.files[key] = file{data: data, mode: def}
		}
		return nil
	}
	for _, item := range items {
		data, found := config.Data[item.Key]
		if !found && may {
			continue
		}
		if !found {
			return fmt.Errorf("%s %q has no key %q", strings.ToLower(kind), name, item.Key)
		}
		if err := p.add(item.Path, data, item.Mode, def); err != nil {
			return err
		}
	}
	return nil
}

func (p *projection) downward(items []corev1.DownwardAPIVolumeFile, def uint32) error {
	for _, item := range items {
		var text string
		var err error
		switch {
		case item.FieldRef != nil:
			text, err = p.src.Field(item.FieldRef)
		case item.ResourceFieldRef != nil:
			text, err = p.src.Resource(item.ResourceFieldRef)
		}
		if err != nil {
			return err
		}
		if err := p.add(item.Path, []byte(text), item.Mode, def); err != nil {
			return err
		}
	}
	return nil
}

// token projects one. As in Kubernetes, only its user may read it where all
// containers have the same user, and its group where the pod has an fsGroup.
func (p *projection) token(s *corev1.ServiceAccountTokenProjection, def uint32) error {
	text, err := p.src.Token(s)
	if err != nil {
		return err
	}
	user := onlyUser(&p.pod.Template.Spec)
	if user != nil || fsGroup(p.pod) != nil {
		def = 0o600
	}
	if err := p.add(s.Path, []byte(text), nil, def); err != nil {
		return err
	}
	clean := path.Clean(s.Path)
	f := p.files[clean]
	f.user = user
	p.files[clean] = f
	return nil
}

// onlyUser is whom all containers of a pod run as by its manifest; nil when
// they differ or leave it to the image.
func onlyUser(s *corev1.PodSpec) *int64 {
	var pod, only *int64
	if s.SecurityContext != nil {
		pod = s.SecurityContext.RunAsUser
	}
	for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for i := range list {
			own := pod
			if c := list[i].SecurityContext; c != nil && c.RunAsUser != nil {
				own = c.RunAsUser
			}
			if own == nil || only != nil && *only != *own {
				return nil
			}
			only = own
		}
	}
	return only
}

func (p *projection) add(name string, data []byte, own *int32, def uint32) error {
	clean := path.Clean(name)
	if !localPath(clean) {
		return fmt.Errorf("path %q leads out of the volume", name)
	}
	if own != nil {
		def = uint32(*own)
	}
	p.files[clean] = file{data: data, mode: def}
	return nil
}

// localPath reports whether a clean path stays inside and leaves the names
// that begin with ".." to swap.
func localPath(clean string) bool {
	return clean != "." && !path.IsAbs(clean) && !strings.HasPrefix(clean, "..")
}
