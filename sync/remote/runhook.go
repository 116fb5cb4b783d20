package remote

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
)

// HookOptions are the surroundings of a hook that Git runs.
type HookOptions struct {
	// Socket is where the server answers hooks.
	Socket string
	// Stdin has the updates, as Git writes them.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Environ is as of os.Environ.
	Environ []string
}

// RunHook is what the hooks run, as `tally hook <name> --socket S`: it asks the
// server, shows what it says and returns the exit status. pre-receive fails
// unless the server accepts; post-receive never fails.
func RunHook(ctx context.Context, name string, o HookOptions) int {
	request, err := hookInput(o)
	if err != nil {
		_, _ = fmt.Fprintf(o.Stderr, "hook %s: %v\n", name, err)
		return 1
	}
	verdict, err := askServer(ctx, name, o, request)
	if name == postReceive {
		if err != nil && ctx.Err() == nil {
			_, _ = fmt.Fprintf(o.Stderr, "The push stands, but its rollout cannot be watched: %v\n", err)
		}
		return 0
	}
	if err != nil {
		_, _ = fmt.Fprintf(o.Stderr, "The push cannot be checked and is refused: %v\n", err)
		return 1
	}
	if verdict != verdictAccept {
		return 1
	}
	return 0
}

// hookInput reads the one update that the shell hook passes on, and what Git
// says in the environment.
func hookInput(o HookOptions) (hookRequest, error) {
	line, err := bufio.NewReader(o.Stdin).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return hookRequest{}, fmt.Errorf("read updates: %w", err)
	}
	fields := strings.Fields(line)
	if len(fields) != 3 {
		return hookRequest{}, fmt.Errorf("update %q: want old, new and reference", strings.TrimSpace(line))
	}
	environment := map[string]string{}
	for _, entry := range o.Environ {
		key, value, _ := strings.Cut(entry, "=")
		environment[key] = value
	}
	request := hookRequest{Old: fields[0], New: fields[1], Ref: fields[2], ObjectDir: environment["GIT_QUARANTINE_PATH"]}
	count, _ := strconv.Atoi(environment["GIT_PUSH_OPTION_COUNT"]) // absent: none
	for i := range count {
		request.Options = append(request.Options, environment["GIT_PUSH_OPTION_"+strconv.Itoa(i)])
	}
	return request, nil
}

// askServer sends the request and copies the answer to Stdout as it comes.
func askServer(ctx context.Context, name string, o HookOptions, request hookRequest) (verdict string, err error) {
	body, err := json.Marshal(request)
	if err != nil {
		return "", err
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://tally/"+name, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	client := http.Client{Transport: &http.Transport{
		DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", o.Socket)
		},
	}}
	response, err := client.Do(post)
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		return "", fmt.Errorf("no server answers at %s (%w); start it with tally up and push again", o.Socket, dial.Err)
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }() // only read
	if response.StatusCode != http.StatusOK {
		reason, _ := io.ReadAll(io.LimitReader(response.Body, 4<<10))
		return "", fmt.Errorf("the server says %s: %s", response.Status, bytes.TrimSpace(reason))
	}
	if _, err := io.Copy(o.Stdout, response.Body); err != nil {
		return "", fmt.Errorf("the server went away (%w); look at its log, and push again", err)
	}
	return response.Trailer.Get(verdictTrailer), nil
}
