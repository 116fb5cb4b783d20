package place

// Profile is how hard a choice is looked for. All run the same filters and scores.
type Profile int

const (
	// Services get the best node, and are spread by default.
	Services Profile = iota
	// Batch work gets the best of a sample: there is much of it, and it ends.
	Batch
	// System pods are for one node, which is asked.
	System
)

func (p Profile) String() string { return [...]string{"services", "batch", "system"}[p] }

// sampleSize is how many nodes that fit batch work chooses among: what
// Kubernetes always looks at, too.
const sampleSize = 100

// Strategy is where pods go of several nodes that fit as well.
type Strategy int

const (
	// Pack fills the nodes that are in use.
	Pack Strategy = iota
	// Spread prefers the emptiest.
	Spread
)
