package probe

import corev1 "k8s.io/api/core/v1"

// counter turns single outcomes into a State.
type counter struct {
	success, failure int
	run              int // consecutive outcomes alike
	last             bool
	state            State
	// succeeded tells that any run has succeeded, now or before adoption.
	succeeded bool
}

func newCounter(p *corev1.Probe, known State) counter {
	return counter{
		success:   max(int(p.SuccessThreshold), 1),
		failure:   orThree(p.FailureThreshold),
		state:     known,
		succeeded: known == Success,
	}
}

func orThree(n int32) int {
	if n <= 0 {
		return 3
	}
	return int(n)
}

// add counts one outcome.
func (c *counter) add(ok bool) {
	if ok == c.last {
		c.run++
	} else {
		c.run = 1
	}
	c.last = ok
	switch {
	case ok && c.run >= c.success:
		c.state = Success
	case !ok && c.run >= c.failure:
		c.state = Failure
	}
	c.succeeded = c.succeeded || ok
}
