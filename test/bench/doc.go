// Package bench measures the speed and size of Tallyman end to end: the built
// binary, real git, containerd and iptables, on a machine of its own. Every
// figure of docs/benchmarks.md is made here and written to build/bench.json, and
// its yardstick runs in the same command where one can.
//
// A benchmark fails when something does not work, never because of a time: how
// fast a machine is says nothing about whether the program is right.
package bench
