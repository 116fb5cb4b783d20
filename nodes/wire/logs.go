package wire

import (
	"crypto/rand"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tallyman-dev/tallyman/nodes/wire/pb"
)

// logWaiters are the logs that were asked for and have not begun.
type logWaiters struct {
	mu      sync.Mutex
	waiting map[string]logWaiter
}

// logWaiter waits for a log of one node.
type logWaiter struct {
	node   string
	answer chan *logReader
}

func newLogWaiters() *logWaiters { return &logWaiters{waiting: map[string]logWaiter{}} }

func (w *logWaiters) add(node string) (id string, answer chan *logReader) {
	id, answer = rand.Text(), make(chan *logReader, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting[id] = logWaiter{node, answer}
	return id, answer
}

// remove ends the wait; an answer that nobody took is closed.
func (w *logWaiters) remove(id string, answer <-chan *logReader) {
	w.mu.Lock()
	delete(w.waiting, id)
	w.mu.Unlock()
	select {
	case reader := <-answer:
		reader.Close()
	default:
	}
}

// answer hands reader to whoever waits for id, if it is the caller's to answer.
func (w *logWaiters) answer(id string, from Caller, reader *logReader) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	waiter, found := w.waiting[id]
	if !found || from.Node != "" && from.Node != waiter.node {
		return false
	}
	delete(w.waiting, id)
	waiter.answer <- reader
	return true
}

// logReader is the reader's end of a log; closing it ends the agent's stream.
type logReader struct {
	*io.PipeReader
	left chan struct{}
	once sync.Once
}

func (r *logReader) Close() error {
	r.once.Do(func() { close(r.left) })
	return r.PipeReader.Close()
}

// Log implements pb.TallymanServer.
func (s *service) Log(stream pb.Tallyman_LogServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	out, in := io.Pipe()
	reader := &logReader{PipeReader: out, left: make(chan struct{})}
	if !s.server.logs.answer(first.GetId(), callerOf(stream.Context()), reader) {
		return status.Error(codes.NotFound, "nobody waits for this log")
	}
	done := make(chan error, 1)
	// Ends at the latest when this method returns: that ends stream.
	go func() { done <- copyLog(stream, in) }()
	select {
	case err := <-done:
		if err != nil {
			return err
		}
		return stream.SendAndClose(&pb.LogEnd{})
	case <-reader.left:
		return status.Error(codes.Canceled, "the reader has left")
	}
}

// copyLog writes a log to w and closes it with how the log ended.
func copyLog(stream pb.Tallyman_LogServer, w *io.PipeWriter) error {
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return w.Close()
		}
		if err != nil {
			w.CloseWithError(errors.Join(io.ErrUnexpectedEOF, err))
			return err
		}
		if chunk.GetError() != "" {
			return w.CloseWithError(errors.New(chunk.GetError()))
		}
		if len(chunk.GetData()) == 0 {
			continue
		}
		if _, err := w.Write(chunk.GetData()); err != nil {
			return err
		}
	}
}
