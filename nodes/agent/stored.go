package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/proxy"
)

// stored is what the agent knew when it ended.
type stored struct {
	// assignment is nil when none was ever received. When it is partial, what
	// it does not hold may be assigned all the same.
	assignment *nodes.Assignment
	partial    bool
	memories   map[nodes.UID]*Memory
	ledger     map[string]nodes.Decision
	table      *proxy.Table
}

// assignedKey, in podBucket, holds the part of an assignment that is no pod.
const assignedKey = "@assignment"

// assignedHead is that part.
type assignedHead struct {
	Node    string          `json:"node"`
	Network desired.Network `json:"network"`
	Fenced  []nodes.UID     `json:"fenced,omitempty"`
}

// storedPod is a pod with the key of its template.
type storedPod struct {
	Pod      *nodes.Pod `json:"pod"`
	Template string     `json:"template"`
}

func templateKey(p *nodes.Pod) string {
	return p.Workload.Group + "/" + p.Workload.Kind + "/" + p.Workload.Namespace + "/" + p.Workload.Name + "/" + p.TemplateHash
}

func configKey(k desired.Key) string { return k.Kind + "/" + k.Namespace + "/" + k.Name }

func ledgerKey(d nodes.Decision) string { return d.Kind + "/" + d.Key }

// load reads everything. What is unreadable is left out, and said.
func (s *store) load() (*stored, error) {
	out := &stored{memories: map[nodes.UID]*Memory{}, ledger: map[string]nodes.Decision{}}
	err := s.each(memoryBucket, func(uid string, value []byte) error {
		m := &Memory{}
		if err := json.Unmarshal(value, m); err != nil {
			return err
		}
		out.memories[nodes.UID(uid)] = m
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read agent store: %w", err)
	}
	err = s.each(ledgerBucket, func(key string, value []byte) error {
		var d nodes.Decision
		if err := json.Unmarshal(value, &d); err != nil {
			return err
		}
		out.ledger[key] = d
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read agent store: %w", err)
	}
	err = s.each(routeBucket, func(_ string, value []byte) error {
		t := &proxy.Table{}
		if err := json.Unmarshal(value, t); err != nil {
			return err
		}
		out.table = t
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read agent store: %w", err)
	}
	return out, s.loadAssignment(out)
}

func (s *store) loadAssignment(out *stored) error {
	templates, lost := map[string]*nodes.Template{}, s.lost()
	err := s.each(templateBucket, func(key string, value []byte) error {
		t := &nodes.Template{}
		if err := json.Unmarshal(value, t); err != nil {
			return err
		}
		templates[key] = t
		return nil
	})
	if err != nil {
		return fmt.Errorf("read agent store: %w", err)
	}
	a, complete := &nodes.Assignment{}, false
	err = s.each(podBucket, func(key string, value []byte) error {
		if key == assignedKey {
			var head assignedHead
			err := json.Unmarshal(value, &head)
			complete = err == nil // without it nobody knows which pods must wait for a lease
			a.Node, a.Network, a.Fenced = head.Node, head.Network, head.Fenced
			return err
		}
		var p storedPod
		if err := json.Unmarshal(value, &p); err != nil {
			return err
		}
		if p.Pod.Template = templates[p.Template]; p.Pod.Template == nil {
			return fmt.Errorf("no template %s", p.Template)
		}
		a.Pods = append(a.Pods, p.Pod)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read agent store: %w", err)
	}
	if err := errors.Join(s.loadConfigs(a), s.loadVolumes(a)); err != nil || !complete {
		return err
	}
	slices.SortFunc(a.Pods, func(x, y *nodes.Pod) int { return strings.Compare(string(x.UID), string(y.UID)) })
	out.assignment, out.partial = a, s.lost() > lost
	return nil
}

func (s *store) loadConfigs(a *nodes.Assignment) error {
	err := s.each(configBucket, func(_ string, value []byte) error {
		c := &nodes.Config{}
		if err := json.Unmarshal(value, c); err != nil {
			return err
		}
		a.Configs = append(a.Configs, c)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read agent store: %w", err)
	}
	slices.SortFunc(a.Configs, func(x, y *nodes.Config) int { return x.Key.Compare(y.Key) })
	return nil
}

// saveAssignment writes what differs between two assignments; old may be nil.
func (s *store) saveAssignment(old, a *nodes.Assignment) {
	s.together.Lock()
	defer s.together.Unlock()
	if old == nil || old.Network != a.Network || !slices.Equal(old.Fenced, a.Fenced) {
		s.putJSON(podBucket, assignedKey, assignedHead{a.Node, a.Network, a.Fenced})
	}
	if old == nil {
		old = &nodes.Assignment{}
	}
	before, templates := map[nodes.UID]*nodes.Pod{}, map[string]*nodes.Template{}
	for _, p := range old.Pods {
		before[p.UID] = p
		templates[templateKey(p)] = p.Template
	}
	kept := map[string]bool{}
	for _, p := range a.Pods {
		key := templateKey(p)
		kept[key] = true
		if templates[key] != p.Template {
			templates[key] = p.Template
			s.putJSON(templateBucket, key, p.Template)
		}
		if q := before[p.UID]; q != p {
			s.putJSON(podBucket, string(p.UID), storedPod{p, key})
		}
		delete(before, p.UID)
	}
	for uid := range before {
		s.put(podBucket, string(uid), nil)
	}
	for key := range templates {
		if !kept[key] {
			s.put(templateBucket, key, nil)
		}
	}
	s.saveConfigs(old.Configs, a.Configs)
	s.saveVolumes(old.Volumes, a.Volumes)
}

// keepVolumes keeps what was learned of volumes: that they were made.
func keepVolumes(old, x *nodes.Assignment) *nodes.Assignment {
	if old == nil || len(x.Volumes) == 0 {
		return x
	}
	made := map[volumeKey]bool{}
	for _, v := range old.Volumes {
		made[keyOf(v)] = v.Made
	}
	kept := *x
	kept.Volumes = slices.Clone(x.Volumes)
	for i, v := range kept.Volumes {
		if made[keyOf(v)] && !v.Made {
			known := *v
			known.Made = true
			kept.Volumes[i] = &known
		}
	}
	return &kept
}

func volumeName(v *nodes.Volume) string { return v.Name + "/" + v.UID }

func (s *store) saveVolume(v *nodes.Volume) { s.putJSON(volumeBucket, volumeName(v), v) }

func (s *store) saveVolumes(old, volumes []*nodes.Volume) {
	before := map[string]*nodes.Volume{}
	for _, v := range old {
		before[volumeName(v)] = v
	}
	for _, v := range volumes {
		if !reflect.DeepEqual(before[volumeName(v)], v) {
			s.saveVolume(v)
		}
		delete(before, volumeName(v))
	}
	for name := range before {
		s.put(volumeBucket, name, nil)
	}
}

func (s *store) loadVolumes(a *nodes.Assignment) error {
	err := s.each(volumeBucket, func(_ string, value []byte) error {
		v := &nodes.Volume{}
		if err := json.Unmarshal(value, v); err != nil {
			return err
		}
		a.Volumes = append(a.Volumes, v)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read agent store: %w", err)
	}
	slices.SortFunc(a.Volumes, func(x, y *nodes.Volume) int { return strings.Compare(volumeName(x), volumeName(y)) })
	return nil
}

func (s *store) saveConfigs(old, configs []*nodes.Config) {
	before := map[desired.Key]*nodes.Config{}
	for _, c := range old {
		before[c.Key] = c
	}
	for _, c := range configs {
		if b := before[c.Key]; b == nil || b.Version != c.Version {
			s.putJSON(configBucket, configKey(c.Key), c)
		}
		delete(before, c.Key)
	}
	for key := range before {
		s.put(configBucket, configKey(key), nil)
	}
}
