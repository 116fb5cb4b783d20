package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"

	"go.etcd.io/bbolt"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/agent"
	"github.com/tallyman-dev/tallyman/nodes/network"
	"github.com/tallyman-dev/tallyman/nodes/trust"
)

// knownNetwork is what a node knows of the cluster's addresses, and its own
// range of them: invalid before a server gave it one. Comparable.
type knownNetwork struct {
	desired.Network
	PodCIDR netip.Prefix
}

// networkWatch notices an assignment for other addresses.
type networkWatch struct {
	*agent.Agent
	wired   knownNetwork
	changed chan<- knownNetwork
}

func (w networkWatch) Assign(a *nodes.Assignment) {
	if next := w.wired.told(a); next != w.wired {
		select {
		case w.changed <- next:
		default:
		}
		return
	}
	w.Agent.Assign(a)
}

// told is what is known after an assignment. One that says nothing of the
// cluster's addresses or of the node's range leaves them.
func (k knownNetwork) told(a *nodes.Assignment) knownNetwork {
	if a.Network.Domain == "" {
		return k
	}
	next := knownNetwork{Network: a.Network, PodCIDR: a.PodCIDR}
	if !next.PodCIDR.IsValid() && next.Pods.Contains(k.PodCIDR.Addr()) {
		next.PodCIDR = k.PodCIDR
	}
	if !next.PodCIDR.IsValid() && a.Session == 0 {
		// A server from before there were several nodes gives no ranges: its only
		// one has the first.
		next.PodCIDR = netip.PrefixFrom(a.Network.Pods.Masked().Addr(), max(a.Network.Pods.Bits(), 24))
	}
	return next
}

// recall finds the range of a node that does not know it by what it used so far.
func (k *knownNetwork) recall(db *bbolt.DB) error {
	if k.PodCIDR.IsValid() {
		return nil
	}
	used, err := network.KnownRange(db, "")
	if err == nil && used.IsValid() && k.Pods.Contains(used.Addr()) {
		k.PodCIDR = used
	}
	return err
}

// readNetwork returns the cluster's addresses as this node last learned them,
// or the defaults: the server says it again if they are others.
func readNetwork(path string, log *slog.Logger) (knownNetwork, error) {
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return knownNetwork{Network: desired.DefaultSettings().Network}, nil
	}
	if err != nil {
		return knownNetwork{}, err
	}
	known := knownNetwork{Network: desired.DefaultSettings().Network}
	if err := json.Unmarshal(content, &known); err != nil {
		log.Warn("what this node knew of the cluster's addresses is damaged; starting with the defaults until the server says them", "file", path, "error", err)
		return knownNetwork{Network: desired.DefaultSettings().Network}, nil
	}
	return known, nil
}

func writeNetwork(path string, known knownNetwork) error {
	content, err := json.Marshal(known)
	if err != nil {
		return err
	}
	return trust.WriteSecret(path, content)
}
