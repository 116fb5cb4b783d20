package remote

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
)

// tokenUser is the name that goes with the token: git wants one.
const tokenUser = "tally"

// CredentialOptions say which hosts get the token.
type CredentialOptions struct {
	// TokenFile holds the token.
	TokenFile string
	// Hosts are those that the token is for, with port: "127.0.0.1:7480". Over
	// plain http only loopback ones get it.
	Hosts []string
}

// CredentialHelper is `tally git-credential <op>`, in git's protocol for
// credential helpers: for get it answers with the token if the host is one of
// ours. It says nothing about other hosts, so that git asks its next helper,
// and stores and erases nothing.
func CredentialHelper(op string, in io.Reader, out io.Writer, o CredentialOptions) error {
	if op != "get" {
		return nil
	}
	asked := map[string]string{}
	lines := bufio.NewScanner(in)
	for lines.Scan() && lines.Text() != "" {
		key, value, _ := strings.Cut(lines.Text(), "=")
		asked[key] = value
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read what git asks: %w", err)
	}
	if !o.concerns(asked) {
		return nil
	}
	content, err := os.ReadFile(o.TokenFile)
	if err != nil {
		return fmt.Errorf("read the token: %w; is tally up running, and may you read it?", err)
	}
	token := strings.TrimSpace(string(content))
	if token == "" || strings.ContainsAny(token, "\r\n\x00") {
		return fmt.Errorf("read the token: %s holds none", o.TokenFile)
	}
	_, err = fmt.Fprintf(out, "username=%s\npassword=%s\n", tokenUser, token)
	return err
}

// concerns reports whether git asks for one of our hosts.
func (o CredentialOptions) concerns(asked map[string]string) bool {
	host := asked["host"]
	if name := asked["username"]; name != "" && name != tokenUser || !slices.Contains(o.Hosts, host) {
		return false
	}
	switch asked["protocol"] {
	case "https":
		return true
	case "http":
		return loopback(host)
	}
	return false
}

func loopback(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
