// Package stacks runs whole applications that others wrote: it derives from
// their manifests what stub images must listen on, so that the manifests can be
// pushed as they are and have to converge on real containers.
//
// It needs a corpus (CORPUS names its folder): manifests/ with the directories
// that stacks.tsv lists. Nothing of the corpus is part of the project.
package stacks

import (
	"cmp"
	"context"
	"encoding/csv"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/desired/manifest"
)

// Capacity is what the node claims, so that nothing is refused for its size.
const Capacity = "cpu=64,memory=256Gi"

// Stack is one directory of the corpus.
type Stack struct {
	// Name is its path below manifests/.
	Name string
	// Dir holds the files, the directory's own and those that its kustomization
	// names elsewhere.
	Dir string
	// Revisions are the files below Dir to push one after the other: several where the
	// directory writes an object twice, the later taking the place of the
	// earlier, as they do for one who applies a directory to Kubernetes.
	Revisions [][]string
	// Snapshots are what the revisions say, none when one of them is refused;
	// Refused says why.
	Snapshots []*desired.Snapshot
	Refused   *desired.Problem
}

// Last is what is in force in the end; nil when the manifests are refused.
func (s *Stack) Last() *desired.Snapshot {
	if len(s.Snapshots) == 0 {
		return nil
	}
	return s.Snapshots[len(s.Snapshots)-1]
}

// Read lists the stacks of a corpus and reads their manifests; only says which
// to take, by a part of the name, empty for all.
func Read(ctx context.Context, corpus, only string) ([]*Stack, error) {
	file, err := os.Open(filepath.Join(corpus, "stacks.tsv"))
	if err != nil {
		return nil, fmt.Errorf("read the corpus: %w", err)
	}
	defer file.Close()
	table := csv.NewReader(file)
	table.Comma = '\t'
	rows, err := table.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("read the corpus: %w", err)
	}
	loader := manifest.NewLoader()
	var all []*Stack
	for _, row := range rows[min(1, len(rows)):] {
		if !strings.Contains(row[0], only) {
			continue
		}
		s := &Stack{Name: row[0], Dir: filepath.Join(corpus, "manifests", row[0])}
		if err := s.load(ctx, loader); err != nil {
			return nil, fmt.Errorf("read %s: %w", s.Name, err)
		}
		all = append(all, s)
	}
	return all, nil
}

func (s *Stack) load(ctx context.Context, loader *manifest.Loader) error {
	base, revisions, err := split(s.Dir)
	if err != nil {
		return err
	}
	s.Dir, s.Revisions = base, revisions
	var snapshots []*desired.Snapshot
	var previous *desired.Snapshot
	for _, files := range revisions {
		snapshot, problems, err := s.read(ctx, loader, files, previous)
		if err != nil {
			return err
		}
		for _, p := range problems {
			if p.Severity == desired.Error {
				s.Refused = &p
				return nil
			}
		}
		snapshots = append(snapshots, snapshot)
		previous = snapshot
	}
	s.Snapshots = snapshots
	return nil
}

func (s *Stack) read(ctx context.Context, loader *manifest.Loader, files []string, previous *desired.Snapshot) (*desired.Snapshot, []desired.Problem, error) {
	tree, err := os.MkdirTemp("", "stack")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(tree)
	if err := s.Copy(tree, files); err != nil {
		return nil, nil, err
	}
	return loader.Load(ctx, os.DirFS(tree), desired.Revision{SHA: "0"}, manifest.LoadOptions{Previous: previous})
}

// Copy puts files of the stack into a folder, as they are.
func (s *Stack) Copy(to string, files []string) error {
	for _, file := range files {
		content, err := os.ReadFile(filepath.Join(s.Dir, file))
		if err != nil {
			return err
		}
		target := filepath.Join(to, file)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(target, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// template is a pod template of some workload.
type template struct {
	owner     desired.Key
	namespace string
	labels    map[string]string
	// replicas is how many pods of it are wanted, one for those of a DaemonSet.
	replicas int32
	spec     *corev1.PodSpec
	// ends is set for the pods of Jobs: they must end to be done.
	ends bool
}

// templates of everything in a snapshot that has pods.
func templates(s *desired.Snapshot) []template {
	var all []template
	for o := range s.All() {
		one := int32(1)
		add := func(t *corev1.PodTemplateSpec, replicas *int32, ends bool) {
			all = append(all, template{o.Key, o.Key.Namespace, t.Labels, *cmp.Or(replicas, &one), &t.Spec, ends})
		}
		switch v := o.Value.(type) {
		case *corev1.Pod:
			add(&corev1.PodTemplateSpec{ObjectMeta: v.ObjectMeta, Spec: v.Spec}, nil, false)
		case *corev1.ReplicationController:
			if v.Spec.Template != nil {
				add(v.Spec.Template, v.Spec.Replicas, false)
			}
		case *appsv1.Deployment:
			add(&v.Spec.Template, v.Spec.Replicas, false)
		case *appsv1.ReplicaSet:
			add(&v.Spec.Template, v.Spec.Replicas, false)
		case *appsv1.StatefulSet:
			add(&v.Spec.Template, v.Spec.Replicas, false)
		case *appsv1.DaemonSet:
			add(&v.Spec.Template, nil, false)
		case *batchv1.Job:
			add(&v.Spec.Template, v.Spec.Parallelism, true)
		case *batchv1.CronJob:
			add(&v.Spec.JobTemplate.Spec.Template, v.Spec.JobTemplate.Spec.Parallelism, true)
		}
	}
	return all
}
