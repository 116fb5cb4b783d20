// Package trusttest gives the machines of tests their certificates without a
// server. It knows package trust only by what it needs of it, so that trust's own
// tests can use it.
package trusttest

import "testing"

// Node is a machine that keeps its key: a *trust.Node.
type Node[Hash any] interface {
	Request(name string) ([]byte, error)
	Keep(chain [][]byte, authority Hash) error
}

// Authority is the cluster's: a *trust.Authority.
type Authority[Hash any] interface {
	Certify(name string, request []byte) ([][]byte, error)
	Hash() Hash
}

// Join makes a machine a node of the authority's cluster.
func Join[Hash any](t testing.TB, n Node[Hash], a Authority[Hash], name string) {
	t.Helper()
	request, err := n.Request(name)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.Certify(name, request)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Keep(chain, a.Hash()); err != nil {
		t.Fatal(err)
	}
}
