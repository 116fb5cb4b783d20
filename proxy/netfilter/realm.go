package netfilter

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// trustLegacy bounds how long a legacy table is believed on its size alone:
// somebody may have replaced a rule by another of the same size.
const trustLegacy = time.Minute

// Realm is what one owner has in the packet filter. Safe for concurrent use.
type Realm struct {
	tables *Tables
	own    func(chain string) bool

	mu sync.Mutex // serialises changes and guards the fields below
	// have is what the kernel is believed to hold of us; nil means: look.
	have  Ruleset
	jumps []Jump
	mark  mark
	// want is what Apply was last given; nil before.
	want      Ruleset
	wantJumps []Jump
	read      time.Time
	// dialect holds chains that this iptables prints in other words than it
	// was given: the reading that stands for the wanted rules.
	dialect map[chainID]reading
}

type chainID struct{ table, chain string }

type reading struct{ want, got []string }

// Realm makes the realm of all chains whose name own accepts. It changes nothing yet.
func (t *Tables) Realm(own func(chain string) bool) *Realm {
	return &Realm{tables: t, own: own, dialect: map[chainID]reading{}}
}

// Apply makes the realm hold exactly want, reached by exactly jumps. When it
// returns nil, that is in force.
func (r *Realm) Apply(ctx context.Context, want Ruleset, jumps []Jump) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.want, r.wantJumps = want, jumps
	if err := r.believe(ctx); err != nil {
		return err
	}
	err := r.converge(ctx)
	if err == nil || ctx.Err() != nil {
		return err
	}
	// What we believed may have been wrong: look again, once.
	if err := r.believe(ctx); err != nil {
		return err
	}
	return r.converge(ctx)
}

// Check looks whether somebody else changed rules and, if the realm is not as
// Apply left it, repairs it. It tells whether there was something to repair.
// Without a change by anybody it costs a system call.
func (r *Realm) Check(ctx context.Context) (repaired bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.want == nil {
		return false, nil
	}
	old := r.tables.variant == Legacy && time.Since(r.read) > trustLegacy
	if now, err := r.tables.mark(); err == nil && r.have != nil && now == r.mark && !old {
		return false, nil
	}
	r.have = nil
	if err := r.believe(ctx); err != nil {
		return false, err
	}
	if r.settled() {
		return false, nil
	}
	if err := r.converge(ctx); err != nil {
		return true, err
	}
	return true, r.learn(ctx)
}

// Clear removes the realm from the kernel.
func (r *Realm) Clear(ctx context.Context) error {
	if err := r.Apply(ctx, Ruleset{}, nil); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.want = nil
	return nil
}

// believe makes sure that have is what the kernel holds.
func (r *Realm) believe(ctx context.Context) error {
	before, err := r.tables.mark()
	if err != nil {
		return err
	}
	if r.have != nil && before == r.mark {
		return nil
	}
	all, err := r.tables.load(ctx)
	if err != nil {
		return err
	}
	r.have = all.owned(r.own)
	r.jumps = all.jumps(r.own)
	r.mark = before
	r.read = time.Now()
	r.translate()
	return nil
}

// translate replaces known readings by the rules that they stand for.
func (r *Realm) translate() {
	for id, known := range r.dialect {
		if got, ok := r.have[id.table][id.chain]; ok && slices.Equal(got, known.got) {
			r.have[id.table][id.chain] = known.want
		}
	}
}

func (r *Realm) settled() bool {
	text, _ := script(r.have, r.want)
	add, drop := r.jumpChanges()
	return text == "" && len(add) == 0 && len(drop) == 0
}

// jumpChanges compares jumps as multisets: a jump that is there twice loses one.
func (r *Realm) jumpChanges() (add, drop []Jump) {
	missing := slices.Clone(r.wantJumps)
	for _, j := range r.jumps {
		if i := slices.Index(missing, j); i >= 0 {
			missing = slices.Delete(missing, i, i+1)
		} else {
			drop = append(drop, j)
		}
	}
	return missing, drop
}

// converge changes the kernel from have to want. Jumps to chains that go are
// removed first, those to new chains are made last. After an error nothing is
// believed any more.
func (r *Realm) converge(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			r.have = nil
		}
	}()
	before := r.mark
	add, drop := r.jumpChanges()
	for _, j := range drop {
		if err := r.tables.single.DeleteIfExists(j.Table, j.Chain, arguments(j.Rule)...); err != nil {
			return fmt.Errorf("remove jump %q from %s/%s: %w", j.Rule, j.Table, j.Chain, err)
		}
	}
	text, changes := script(r.have, r.want)
	if text != "" {
		if err := r.tables.restore(ctx, text); err != nil {
			return err
		}
	}
	for _, j := range slices.Backward(add) {
		if err := r.tables.single.Insert(j.Table, j.Chain, 1, arguments(j.Rule)...); err != nil {
			return fmt.Errorf("add jump %q to %s/%s: %w", j.Rule, j.Table, j.Chain, err)
		}
	}
	mark, err := r.tables.after(before, changes+len(add)+len(drop))
	if err != nil {
		return err
	}
	r.have, r.jumps, r.mark = r.want, slices.Clone(r.wantJumps), mark
	return nil
}

// learn reads back what was just written and remembers how this iptables
// prints it, so that its words are not taken for a foreign change again.
func (r *Realm) learn(ctx context.Context) error {
	r.have = nil
	if err := r.believe(ctx); err != nil {
		return err
	}
	for table, chains := range r.want {
		for chain, want := range chains {
			got, there := r.have[table][chain]
			if there && len(got) == len(want) && !slices.Equal(got, want) {
				r.dialect[chainID{table, chain}] = reading{want, got}
			}
		}
	}
	r.translate()
	return nil
}

// arguments splits a rule as a shell would split words without quotes; jumps
// hold none.
func arguments(rule string) []string { return strings.Fields(rule) }
