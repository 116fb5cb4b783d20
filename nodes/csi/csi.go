// Package csi uses CSI drivers through their sockets on this node: it finds
// those that register as at a kubelet, calls their controller and node services,
// and leads volumes through their lives. DESIGN.md says more.
//
// Guarantees: every call may be repeated, after any crash. Data ends only with
// Delete. Nothing that a pod uses is unstaged, and nothing staged is detached.
//
// It does not decide which volumes there are, nor when: package agent does.
package csi
