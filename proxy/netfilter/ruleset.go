package netfilter

import (
	"maps"
	"slices"
	"strings"
)

// Ruleset is the content of chains: table → chain → rules as iptables-save
// prints them, without the leading "-A CHAIN".
type Ruleset map[string]map[string][]string

// Jump is a rule in one of the kernel's own chains that leads into a realm.
type Jump struct {
	Table, Chain string
	// Rule as iptables-save prints it, ending in "-j TARGET".
	Rule string
}

// Add appends rules to a chain; without rules it makes sure that the chain exists.
func (r Ruleset) Add(table, chain string, rules ...string) {
	if r[table] == nil {
		r[table] = map[string][]string{}
	}
	r[table][chain] = append(r[table][chain], rules...)
}

// String prints the rules in the form of iptables-restore, sorted by table and chain.
func (r Ruleset) String() string {
	var b strings.Builder
	for _, table := range slices.Sorted(maps.Keys(r)) {
		b.WriteString("*" + table + "\n")
		for _, chain := range slices.Sorted(maps.Keys(r[table])) {
			for _, rule := range r[table][chain] {
				b.WriteString("-A " + chain + " " + rule + "\n")
			}
		}
	}
	return b.String()
}

// owned is the part of r whose chains own accepts.
func (r Ruleset) owned(own func(chain string) bool) Ruleset {
	out := Ruleset{}
	for table, chains := range r {
		for chain, rules := range chains {
			if own(chain) {
				out.Add(table, chain, rules...)
			}
		}
	}
	return out
}

// jumps lists the rules of foreign chains that lead into owned ones.
func (r Ruleset) jumps(own func(chain string) bool) []Jump {
	var found []Jump
	for table, chains := range r {
		for chain, rules := range chains {
			if own(chain) {
				continue
			}
			for _, rule := range rules {
				if own(target(rule)) {
					found = append(found, Jump{table, chain, rule})
				}
			}
		}
	}
	return found
}

// target is what a rule leads to: the last -j or -g, as comments may hold others.
func target(rule string) string {
	fields := strings.Fields(rule)
	for i := len(fields) - 2; i >= 0; i-- {
		if fields[i] == "-j" || fields[i] == "-g" {
			return fields[i+1]
		}
	}
	return ""
}

// parse reads the output of iptables-save.
func parse(text string) Ruleset {
	r := Ruleset{}
	table := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "*"):
			table = line[1:]
		case strings.HasPrefix(line, ":"):
			chain, _, _ := strings.Cut(line[1:], " ")
			r.Add(table, chain)
		case strings.HasPrefix(line, "-A "):
			chain, rule, _ := strings.Cut(line[len("-A "):], " ")
			r.Add(table, chain, rule)
		}
	}
	return r
}

// script turns have into want: only chains that differ, stale chains emptied
// and deleted. changes counts the tables that it changes.
func script(have, want Ruleset) (text string, changes int) {
	var b strings.Builder
	tables := map[string]bool{}
	for table := range have {
		tables[table] = true
	}
	for table := range want {
		tables[table] = true
	}
	// nat before filter: a service that gets its first endpoint is routed
	// before its rejection goes.
	for _, table := range slices.Backward(slices.Sorted(maps.Keys(tables))) {
		if part := tableScript(have[table], want[table]); part != "" {
			b.WriteString("*" + table + "\n" + part + "COMMIT\n")
			changes++
		}
	}
	return b.String(), changes
}

func tableScript(have, want map[string][]string) string {
	var heads, rules, ends strings.Builder
	for _, chain := range slices.Sorted(maps.Keys(want)) {
		old, exists := have[chain]
		if exists && slices.Equal(old, want[chain]) {
			continue
		}
		heads.WriteString(":" + chain + " - [0:0]\n")
		for _, rule := range want[chain] {
			rules.WriteString("-A " + chain + " " + rule + "\n")
		}
	}
	for _, chain := range slices.Sorted(maps.Keys(have)) {
		if _, wanted := want[chain]; !wanted {
			heads.WriteString(":" + chain + " - [0:0]\n")
			ends.WriteString("-X " + chain + "\n")
		}
	}
	return heads.String() + rules.String() + ends.String()
}
