// Package wire is the versioned protocol between the server and the agents,
// and the only place that knows protobuf. To both sides it offers the plain
// values of package nodes.
//
// The agent dials; one long stream a node. The server sends a complete
// assignment first and differences with sequence numbers afterwards; pod
// templates cross once a stream, by hash. See DESIGN.md.
package wire

import (
	"context"
	"io"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/proxy"
)

// Handler is the agent's side of a session. Calls come from one goroutine, in
// the order in which the server sent them, except Logs.
type Handler interface {
	// Hello is asked at the start of every session for a complete Report.
	Hello(ctx context.Context) (nodes.Report, error)
	// Assign hands over the complete assignment, put together from differences.
	Assign(a *nodes.Assignment)
	// Route hands over the complete route table, put together from differences.
	Route(t *proxy.Table)
	// Ledger keeps decisions for the server: all of them when complete, else
	// those that changed.
	Ledger(complete bool, decisions []nodes.Decision)
	// Lease hands over what the newest assignment's fenced pods may run for:
	// duration from sent on, which is when the heartbeat that asked for it was
	// sent, by the client's Clock.
	Lease(sent, duration time.Duration)
	// Logs writes a container's log to w until it ends or ctx does. Called from
	// a goroutine of its own.
	Logs(ctx context.Context, q LogQuery, w io.Writer) error
}

// LogQuery asks for the log of one container.
type LogQuery struct {
	Pod nodes.UID
	// Container may be empty when the pod has only one.
	Container string
	// Follow goes on until the container has ended or the reader leaves.
	Follow bool
	// Previous asks for the run before the current one.
	Previous bool
	// Tail is the number of lines from the end to begin with; negative means all.
	Tail int
	// Since leaves out older lines when not zero.
	Since time.Time
	// Timestamps puts the time before each line.
	Timestamps bool
}
