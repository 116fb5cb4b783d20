package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

const (
	// maxTokenAge and freshShare say when a token is renewed, as the kubelet has
	// it: when a day old, or when 80 % of its time is over.
	maxTokenAge = 24 * time.Hour
	freshShare  = 0.8
	// tokenPatience is how long the server may take to answer.
	tokenPatience = 10 * time.Second
)

// tokenKey names a token in the pod's memory.
func tokenKey(r nodes.TokenRequest) string { return r.Expiry.String() + " " + r.Audience }

// tokenRequests are all tokens that the pod's volumes hold, and that their CSI
// drivers ask for, each once.
func (m *Machine) tokenRequests() []nodes.TokenRequest {
	return m.pod.TokenRequests(func(v *corev1.Volume) *nodes.Config {
		if m.node.driver == nil {
			return nil
		}
		name := m.node.driver(m.pod, v)
		if name == "" {
			return nil
		}
		return m.node.config(nodes.DriverKey(name))
	})
}

// renewAt is when a token is to be replaced.
func renewAt(t nodes.Token) time.Time {
	at := t.Issued.Add(time.Duration(float64(t.Expires.Sub(t.Issued)) * freshShare))
	if aged := t.Issued.Add(maxTokenAge); aged.Before(at) {
		return aged
	}
	return at
}

// tokens tells when the pod's next token is due, and whether one is missing or
// no longer valid; due is zero for a pod without tokens.
func (m *Machine) tokens(now time.Time) (due time.Time, lacking bool) {
	for _, r := range m.tokenRequests() {
		t, found := m.memory.Tokens[tokenKey(r)]
		if !found || !now.Before(t.Expires) {
			return now, true
		}
		if at := renewAt(t); due.IsZero() || at.Before(due) {
			due = at
		}
	}
	return due, false
}

// renew asks beside the steps for every token that is due.
func (m *Machine) renew(ctx context.Context) {
	var due []nodes.TokenRequest
	for _, r := range m.tokenRequests() {
		if t, found := m.memory.Tokens[tokenKey(r)]; !found || !m.now().Before(renewAt(t)) {
			due = append(due, r)
		}
	}
	m.spawn(ctx, string(opToken), func(ctx context.Context) func() {
		ctx, cancel := context.WithTimeout(ctx, tokenPatience)
		defer cancel()
		fresh := map[string]nodes.Token{}
		var errs []error
		for _, r := range due {
			t, err := m.token(ctx, r)
			if err != nil {
				errs = append(errs, fmt.Errorf("service-account token for audience %q: %w", r.Audience, err))
				continue
			}
			fresh[tokenKey(r)] = t
		}
		return func() { m.renewed(fresh, errors.Join(errs...)) }
	})
}

// renewed takes over tokens; the files follow with the next mount. A token that
// could not be renewed serves as long as it holds.
func (m *Machine) renewed(fresh map[string]nodes.Token, err error) {
	if m.memory.Tokens == nil {
		m.memory.Tokens = map[string]nodes.Token{}
	}
	for key, t := range fresh {
		m.memory.Tokens[key] = t
		m.mounted = false
	}
	if err == nil {
		delete(m.retries, string(opToken))
		return
	}
	if _, lacking := m.tokens(m.now()); lacking {
		m.failed(action{op: opToken}, err)
		return
	}
	m.log.Warn("service-account token not renewed, the old one still holds", "err", err)
	m.backOff(string(opToken), time.Second, time.Minute)
}

// projectedToken is what a volume's file holds.
func projectedToken(tokens map[string]nodes.Token, r nodes.TokenRequest, now time.Time) (string, error) {
	t, found := tokens[tokenKey(r)]
	if !found || !now.Before(t.Expires) {
		return "", errors.New("the service-account token has expired, and the server has not answered")
	}
	return t.Value, nil
}
