package manifest

import "time"

// What a revision may be at most. Each bound is far beyond honest repositories,
// and the problem that reports it names it.
const (
	// maxFileBytes bounds one file.
	maxFileBytes = 10 << 20
	// maxTotalBytes bounds the plain manifests of a revision together.
	maxTotalBytes = 128 << 20
	// maxFiles bounds the number of manifest files of a revision, maxEntries that
	// of everything below the followed path.
	maxFiles   = 50_000
	maxEntries = 1_000_000
	// maxDirDepth bounds how deep directories are followed.
	maxDirDepth = 100
	// maxDocuments bounds the documents of one file.
	maxDocuments = 10_000
	// maxDepth bounds how deep the values of a document nest.
	maxDepth = 100
	// maxNodes bounds the values of a document once its aliases are expanded.
	maxNodes = 1_000_000
	// maxAliasNodes bounds what aliases may add to it.
	maxAliasNodes = 100_000
	// maxPods bounds the pods of a revision, those of one autoscaler apart:
	// Kubernetes' own bound for a cluster.
	maxPods = 150_000
	// maxFileProblems and maxProblems bound what is reported of one file and of
	// one revision; what is beyond is counted.
	maxFileProblems = 200
	maxProblems     = 2_000
	// maxMessage bounds one message, in bytes.
	maxMessage = 1_000
	// maxBuildVisits bounds the kustomizations that building one visits, each
	// counted as often as it is referred to.
	maxBuildVisits = 2_000
	// maxBuildReads bounds the files that one kustomization reads, repetitions
	// counted.
	maxBuildReads = 20_000
	// maxBuildObjects bounds the documents that a kustomization is made of, each
	// counted as often as it is visited, and what it may give. Kustomize compares
	// every object with every other: a prefix and a namespace for 1,000 take
	// about 3 s, for 2,000 about 12 s, for 3,000 more than 30 s.
	maxBuildObjects = 2_000
	// buildPatience is how long a build may take, and how long one waits for
	// another to end.
	buildPatience = 30 * time.Second
	// maxCacheBytes bounds the sources whose outcomes a Loader remembers. An
	// outcome takes about ten times as much memory as its source.
	maxCacheBytes = 48 << 20
)
