package nodes

import (
	"fmt"
	"time"
)

// Member is which machine a node's name belongs to.
type Member struct {
	Name string `json:"name"`
	// Identity is the SHA-256 of the machine's public key, in hexadecimal; empty
	// for one that never showed a certificate.
	Identity string `json:"identity,omitempty"`
	// From is the address that it joined from, and Joined when.
	From   string    `json:"from,omitempty"`
	Joined time.Time `json:"joined,omitzero"`
	// Assumed is set when nobody decided on it: it was the first of that name
	// after the record was lost. What a ledger says counts more.
	Assumed bool `json:"assumed,omitempty"`
	// Succeeds is set when another machine had the name before this one joined.
	Succeeds bool `json:"succeeds,omitempty"`
	// Removed is set once Git has taken the node out of the cluster: a machine gets
	// the name with a token, and with no certificate.
	Removed bool `json:"removed,omitempty"`
}

// Admission asks that a node's name belong to a machine.
type Admission struct {
	Member
	// Token is the id of the join token that was shown; empty when the machine
	// shows a certificate that it has.
	Token string
	// Uses bounds how many nodes may join with the token, 0 does not. Expires ends
	// the token.
	Uses    int
	Expires time.Time
	// Replace takes the name from the machine that has it.
	Replace bool
}

// TakenError is returned when another machine has the name.
type TakenError struct{ Member }

func (e *TakenError) Error() string {
	from := ""
	if e.From != "" {
		from = " from " + e.From
	}
	if !e.Joined.IsZero() {
		from += " since " + e.Joined.UTC().Format(time.RFC3339)
	}
	return fmt.Sprintf("node %s is already joined%s: give this machine another --node-name, or let it take over with a token made by "+
		"tally token create --node %s --replace", e.Name, from, e.Name)
}

// RemovedError is returned to a machine whose node was taken out of the cluster.
type RemovedError struct{ Name string }

func (e *RemovedError) Error() string {
	return fmt.Sprintf("node %s was removed from the cluster: to join as a new node, run tally reset on the machine, remove <data-dir>/agent/tls, "+
		"and give it a token made by tally token create", e.Name)
}
