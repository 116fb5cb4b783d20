package stacks

import (
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
)

// missingHostPaths are the folders of the machine that running a stack may make,
// the outermost ones that do not exist yet.
func missingHostPaths(s *Stack) []string {
	var missing []string
	for _, snapshot := range s.Snapshots {
		for _, t := range templates(snapshot) {
			for _, v := range t.spec.Volumes {
				if v.HostPath != nil {
					missing = append(missing, outermostMissing(v.HostPath.Path)...)
				}
			}
		}
		for _, o := range snapshot.Kind("PersistentVolume") {
			if v, ok := o.Value.(*corev1.PersistentVolume); ok && v.Spec.HostPath != nil {
				missing = append(missing, outermostMissing(v.Spec.HostPath.Path)...)
			}
		}
	}
	return missing
}

func outermostMissing(dir string) []string {
	missing := ""
	for ; dir != "/" && dir != "."; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(dir); err == nil {
			break
		}
		missing = dir
	}
	if missing == "" {
		return nil
	}
	return []string{missing}
}
