// Package netfilter keeps the rules of one owner in force in the kernel's
// packet filter, through the machine's own iptables programs.
//
// A Realm is all the chains whose names belong to one owner and the jumps that
// lead into them. Apply changes only what differs from what the kernel has, in
// one transaction a table; what a previous process left is read once, adopted
// or swept. Check notices, for the price of one system call, that somebody
// else changed rules, and repairs the realm. Chains of other owners are never
// touched.
//
// The package knows nothing of services: proxy/iptables and nodes/network say
// what the chains hold. It handles IPv4.
package netfilter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/coreos/go-iptables/iptables"
)

// Variant is one of the two kernel interfaces that iptables programs speak.
type Variant string

const (
	// Auto takes the variant that already holds rules, else NFT.
	Auto Variant = ""
	// NFT is iptables on top of nf_tables.
	NFT Variant = "nft"
	// Legacy is the original ip_tables interface.
	Legacy Variant = "legacy"
)

// ErrMissing is returned when the machine has no iptables programs.
var ErrMissing = errors.New("no iptables program found: install the package iptables")

// Options of Open.
type Options struct {
	Log *slog.Logger
	// Variant to use; Auto looks at what the machine uses.
	Variant Variant
	// Wait is how long to wait for another program's lock; 0 means 5 seconds.
	Wait time.Duration
}

// Tables is the packet filter of the network namespace that the process runs
// in. Safe for concurrent use.
type Tables struct {
	log     *slog.Logger
	variant Variant
	wait    string
	// suffixed is false where only a plain iptables program exists.
	suffixed bool
	single   *iptables.IPTables
}

// Open finds the iptables programs to use.
func Open(ctx context.Context, o Options) (*Tables, error) {
	if o.Log == nil {
		return nil, errors.New("netfilter: no logger")
	}
	if o.Wait <= 0 {
		o.Wait = 5 * time.Second
	}
	seconds := int((o.Wait + time.Second - 1) / time.Second)
	t := &Tables{log: o.Log, wait: fmt.Sprint(seconds), variant: o.Variant}
	if t.variant == Auto {
		t.variant = detect(ctx)
	}
	if err := t.find(); err != nil {
		return nil, err
	}
	single, err := iptables.New(iptables.Path(t.program("")), iptables.Timeout(seconds))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", t.program(""), err)
	}
	t.single = single
	return t, nil
}

// Variant in use.
func (t *Tables) Variant() Variant { return t.variant }

func (t *Tables) find() error {
	if _, err := exec.LookPath("iptables-" + string(t.variant) + "-restore"); err == nil {
		t.suffixed = true
		return nil
	}
	if _, err := exec.LookPath("iptables-restore"); err != nil {
		return ErrMissing
	}
	out, err := exec.Command("iptables", "--version").Output()
	if err != nil {
		return fmt.Errorf("ask iptables for its version: %w", err)
	}
	if is := plainVariant(string(out)); is != t.variant {
		t.log.Debug("plain iptables decides the variant", "wanted", t.variant, "variant", is)
		t.variant = is
	}
	return nil
}

func plainVariant(version string) Variant {
	if strings.Contains(version, "nf_tables") {
		return NFT
	}
	return Legacy
}

// program gives the name of one of the programs; part is "", "save" or "restore".
func (t *Tables) program(part string) string {
	name := "iptables"
	if t.suffixed {
		name += "-" + string(t.variant)
	}
	if part != "" {
		name += "-" + part
	}
	return name
}

// detect tells which variant the machine's rules are kept in. The kernel lists
// the legacy tables that are in use, so that looking creates none.
func detect(ctx context.Context) Variant {
	names, err := os.ReadFile("/proc/self/net/ip_tables_names")
	if err != nil || len(bytes.TrimSpace(names)) == 0 {
		return NFT
	}
	legacy, nft := countRules(ctx, Legacy), countRules(ctx, NFT)
	if legacy > nft {
		return Legacy
	}
	return NFT
}

func countRules(ctx context.Context, v Variant) int {
	out, err := exec.CommandContext(ctx, "iptables-"+string(v)+"-save").Output()
	if err != nil {
		return 0
	}
	return bytes.Count(out, []byte("\n-A "))
}

// load reads every table.
func (t *Tables) load(ctx context.Context) (Ruleset, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, t.program("save"))
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("read rules with %s: %w: %s", t.program("save"), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return parse(string(out)), nil
}

// restore applies a script in the format of iptables-restore, leaving alone
// what it does not name. Each table changes at once or not at all.
func (t *Tables) restore(ctx context.Context, script string) error {
	args := []string{"--noflush"}
	if t.variant == Legacy {
		args = append(args, "--wait", t.wait)
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, t.program("restore"), args...)
	cmd.Stdin = strings.NewReader(script)
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("apply rules with %s: %w: %s", t.program("restore"), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return nil
}
