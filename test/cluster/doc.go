// Package cluster joins real machines to a cluster, breaks them one way after the
// other under traffic, and looks that what must go on goes on. It is tests only,
// built with the tag e2e.
package cluster
