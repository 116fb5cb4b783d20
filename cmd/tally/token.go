package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tallyman-dev/tallyman/nodes/trust"
)

// tokensPath is where the local server makes join tokens.
const tokensPath = "/tokens"

// tokenRequest and tokenAnswer travel over the local socket.
type tokenRequest struct {
	TTL     time.Duration `json:"ttl"`
	Uses    int           `json:"uses"`
	Node    string        `json:"node,omitempty"`
	Replace bool          `json:"replace,omitempty"`
}

type tokenAnswer struct {
	Token string `json:"token"`
	// Listen is where the server takes in agents, as its flag says.
	Listen string `json:"listen"`
}

// createToken makes a join token: who may open the local socket may push, and
// so run anything on any node.
func (s *server) createToken(w http.ResponseWriter, r *http.Request) {
	if s.o.listen == "" {
		http.Error(w, "this server takes in no other machines: start it with --listen :"+serverPort, http.StatusConflict)
		return
	}
	var q tokenRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&q); err != nil {
		http.Error(w, "read the request: "+err.Error(), http.StatusBadRequest)
		return
	}
	token, err := s.authority.NewToken(trust.Token{Expires: time.Now().Add(q.TTL), Uses: q.Uses, Node: q.Node, Replace: q.Replace})
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.log.Info("join token made", "holds", q.TTL, "uses", q.Uses, "node", q.Node, "replace", q.Replace)
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(tokenAnswer{Token: token, Listen: s.o.listen}); err != nil {
		s.log.Debug("join token not told", "reason", err)
	}
}

func newToken(s streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Let machines join the cluster",
		Args:  usage(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newTokenCreate(s))
	return cmd
}

func newTokenCreate(s streams) *cobra.Command {
	var i instance
	var q tokenRequest
	var server string
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Print the line that lets a machine join, to paste there",
		Long: "Print one line to paste on the new machine, as root. The token in it pins the cluster and is good until its time is\n" +
			"over, for as many machines as --uses says. It asks the server on this machine.",
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return runTokenCreate(cmd.Context(), s, i, q, server) },
	}
	f := cmd.Flags()
	f.StringVar(&i.runDir, "run-dir", "/run/tallyman", "run directory of the local server")
	f.DurationVar(&q.TTL, "ttl", time.Hour, "how long the token holds")
	f.IntVar(&q.Uses, "uses", 0, "how many machines may join with it; 0: any number, within a day")
	f.StringVar(&q.Node, "node", "", "the only node that may join with it")
	f.BoolVar(&q.Replace, "replace", false, "let the new machine take the name of --node over from the one that has it")
	f.StringVar(&server, "server", "", "address of the server as the new machine reaches it; default: this machine's")
	return cmd
}

func runTokenCreate(ctx context.Context, s streams, i instance, q tokenRequest, server string) error {
	if server != "" {
		if _, err := serverAddresses(strings.Split(server, ",")); err != nil {
			return err
		}
	}
	answer, err := askToken(ctx, i.socket(), q)
	if err != nil {
		return err
	}
	if server == "" {
		if server, err = reachedAt(answer.Listen); err != nil {
			return err
		}
	}
	name := ""
	if q.Node != "" {
		name = " --node-name " + q.Node
	}
	_, err = fmt.Fprintf(s.out, "tally agent --server %s%s --token %s\n", server, name, answer.Token)
	return err
}

// askToken asks the server behind a socket for a join token.
func askToken(ctx context.Context, socket string, q tokenRequest) (*tokenAnswer, error) {
	body, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://localhost"+tokensPath, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err
		}
		return nil, fmt.Errorf("no server answers at %s: %w; run this on the machine of tally server or tally up, with its --run-dir", socket, err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(io.LimitReader(response.Body, 1<<16))
	if err != nil {
		return nil, fmt.Errorf("read the server's answer: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, errors.New(strings.TrimSpace(string(content)))
	}
	answer := &tokenAnswer{}
	if err := json.Unmarshal(content, answer); err != nil {
		return nil, fmt.Errorf("read the server's answer: %w", err)
	}
	return answer, nil
}

// reachedAt is the address of this machine's server for others.
func reachedAt(listen string) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("the server listens at %q: %w", listen, err)
	}
	if addr, err := netip.ParseAddr(host); host == "" || err == nil && addr.IsUnspecified() {
		addr, err := outwardAddr()
		if err != nil || !addr.IsValid() {
			return "", errors.New("this machine has no address that others would reach it at: give it with --server https://HOST:" + port)
		}
		host = addr.String()
	}
	return "https://" + net.JoinHostPort(host, port), nil
}
