package manifest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"

	batchv1 "k8s.io/api/batch/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// contentDigits are those of the hash that ends the name of a Job with
// generateName: with them it is no longer than 63 characters.
const (
	contentDigits = 10
	longestPrefix = 63 - contentDigits
)

// nameByContent names a Job that has generateName and no name. An API server
// makes up another name at every creation; here a revision is read many times,
// so the name says what the Job is: the same content is the same Job, other
// content another one. It is the content as written, before any default, so
// that a new version of Tallyman finds the same name.
func nameByContent(object runtime.Object, data []byte) {
	j, ok := object.(*batchv1.Job)
	if !ok || j.Name != "" || j.GenerateName == "" {
		return
	}
	var content any
	if json.Unmarshal(data, &content) != nil {
		return
	}
	sorted, err := json.Marshal(content)
	if err != nil {
		return
	}
	sum := sha256.Sum256(sorted)
	j.Name = j.GenerateName[:min(len(j.GenerateName), longestPrefix)] + hex.EncodeToString(sum[:])[:contentDigits]
	j.GenerateName = ""
}
