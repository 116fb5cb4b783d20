package containerd

import (
	"context"
	"crypto/rand"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/typeurl/v2"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// topicSubscribed carries our own event by which we know that a subscription
// is in force: containerd does not say so by itself.
const topicSubscribed = "/tallyman/subscribed"

const (
	// subscribePoll is how often we knock until our subscription answers.
	subscribePoll = 30 * time.Millisecond
	// resubscribe is the pause before the next attempt.
	resubscribe = 100 * time.Millisecond
)

// Events implements runtime.Runtime. Every subscription, the first one
// included, begins with a Reconnected event at a moment when it is certain
// that nothing later can be missed.
func (r *Runtime) Events(ctx context.Context) <-chan runtime.Event {
	out := make(chan runtime.Event, 64)
	go func() {
		defer close(out)
		for ctx.Err() == nil {
			err := r.subscription(ctx, out)
			if ctx.Err() == nil {
				r.log.Debug("no events from containerd", "error", err)
			}
			_ = pause(ctx, resubscribe)
		}
	}()
	return out
}

// subscription hands on events until the connection ends.
func (r *Runtime) subscription(ctx context.Context, out chan<- runtime.Event) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, errs := r.client.EventService().Subscribe(ctx,
		`namespace=="`+r.namespace+`",topic~="^/tasks/(exit|oom)$"`, `topic=="`+topicSubscribed+`"`)
	nonce, live := rand.Text(), false
	knock := time.NewTicker(subscribePoll)
	defer knock.Stop()
	for {
		select {
		case err := <-errs:
			return err
		case <-knock.C:
			if err := r.knock(ctx, nonce); err != nil {
				return err
			}
		case envelope := <-events:
			event, own := translate(envelope)
			switch {
			case own == nonce && !live:
				live = true
				knock.Stop()
				event = &runtime.Event{Reconnected: true}
			case event == nil || !live:
				continue
			}
			select {
			case out <- *event:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

func (r *Runtime) knock(ctx context.Context, nonce string) error {
	return r.client.EventService().Publish(ctx, topicSubscribed, &eventsapi.NamespaceUpdate{Name: nonce})
}

// translate returns what an envelope says, or the nonce of our own event.
func translate(envelope *events.Envelope) (*runtime.Event, string) {
	decoded, err := typeurl.UnmarshalAny(envelope.Event)
	if err != nil {
		return nil, ""
	}
	switch e := decoded.(type) {
	case *eventsapi.TaskExit:
		if e.ID == e.ContainerID { // else a command run inside has ended
			return &runtime.Event{ID: e.ContainerID}, ""
		}
	case *eventsapi.TaskOOM:
		return &runtime.Event{ID: e.ContainerID, OOM: true}, ""
	case *eventsapi.NamespaceUpdate:
		return nil, e.Name
	}
	return nil, ""
}
