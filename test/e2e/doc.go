// Package e2e does what users do, with the built binary, a real containerd, a real
// registry and Git itself, and looks that what must happen happens. It is tests
// only, built with the tag e2e.
package e2e
