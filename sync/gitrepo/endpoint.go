package gitrepo

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing/transport"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"
	gitssh "github.com/go-git/go-git/v5/plumbing/transport/ssh"
	"golang.org/x/crypto/ssh"
)

// Credentials open a remote repository. Secrets come from files, read at each
// use, so that a renewed one takes effect without a restart; the zero value
// means none, or what the URL itself says.
type Credentials struct {
	// Username for https; default "git". For ssh the URL says it.
	Username string
	// PasswordFile holds the password or token for https. It is never sent over
	// plain http, except on loopback.
	PasswordFile string
	// CAFile holds certificates (PEM) to trust besides the system's.
	CAFile string
	// SSHKeyFile holds the private key for ssh, readable by its owner alone;
	// default: the agent at SSH_AUTH_SOCK, else the usual files in ~/.ssh.
	SSHKeyFile string
	// SSHPassphraseFile holds the key's passphrase, if it has one.
	SSHPassphraseFile string
	// KnownHostsFile lists the host keys to trust; default
	// ~/.ssh/known_hosts and /etc/ssh/ssh_known_hosts. An unknown host is refused.
	KnownHostsFile string
}

// endpoint is a remote repository with the means to get in.
type endpoint struct {
	url         string
	parsed      *transport.Endpoint
	credentials Credentials
}

// scpLike is "user@host:path", and "host:path" for anything longer than a
// drive letter.
var scpLike = regexp.MustCompile(`^(?:[^@/\s]+@)?[^/:\s]{2,}:[^/\\]`)

// localPath tells a repository on this machine from a remote one.
func localPath(repo string) (dir string, local bool) {
	if u, err := url.Parse(repo); err == nil && u.Scheme == "file" {
		return u.Path, true
	}
	if strings.Contains(repo, "://") {
		return "", false
	}
	if _, err := os.Stat(repo); err == nil || strings.HasPrefix(repo, "/") || strings.HasPrefix(repo, ".") {
		return repo, true
	}
	if scpLike.MatchString(repo) || strings.Contains(repo, "@") {
		return "", false
	}
	return repo, true
}

// Redact takes the credentials out of a repository's address.
func Redact(repo string) string {
	u, err := url.Parse(repo)
	if err != nil || u.User == nil {
		return repo
	}
	if _, secret := u.User.Password(); secret {
		u.User = url.UserPassword(u.User.Username(), "xxxxx")
	} else if u.Scheme != "ssh" {
		u.User = url.User("xxxxx")
	}
	return u.String()
}

func newEndpoint(repo string, credentials Credentials) (*endpoint, error) {
	parsed, err := transport.NewEndpoint(repo)
	if err != nil {
		return nil, errors.New("the address is not understood; use https://…, ssh://…, user@host:path or a path")
	}
	e := &endpoint{url: repo, parsed: parsed, credentials: credentials}
	switch parsed.Protocol {
	case "https", "file":
	case "http":
		if (credentials.PasswordFile != "" || parsed.Password != "") && !loopback(parsed.Host) {
			return nil, errors.New("credentials would cross the network in the clear over http; use https")
		}
	case "ssh":
	default:
		return nil, fmt.Errorf("the scheme %q is not supported; use https, ssh, file or a path", parsed.Protocol)
	}
	// Whatever is wrong with the credentials shows at start, not at night.
	if _, err := e.auth(); err != nil {
		return nil, err
	}
	_, err = e.caBundle()
	return e, err
}

func loopback(host string) bool {
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// auth reads the credentials anew; nil for a remote that asks for none.
func (e *endpoint) auth() (transport.AuthMethod, error) {
	switch e.parsed.Protocol {
	case "http", "https":
		return e.httpAuth()
	case "ssh":
		return e.sshAuth()
	default:
		return nil, nil
	}
}

func (e *endpoint) httpAuth() (transport.AuthMethod, error) {
	c := e.credentials
	if c.PasswordFile == "" {
		if e.parsed.User == "" {
			return nil, nil
		}
		return &githttp.BasicAuth{Username: e.parsed.User, Password: e.parsed.Password}, nil
	}
	password, err := readSecret(c.PasswordFile)
	if err != nil {
		return nil, fmt.Errorf("password file: %w", err)
	}
	name := c.Username
	if name == "" {
		name = e.parsed.User
	}
	if name == "" {
		name = "git" // with a token GitHub, GitLab and Gitea take any name
	}
	return &githttp.BasicAuth{Username: name, Password: password}, nil
}

func readSecret(file string) (string, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	secret := strings.TrimRight(string(content), "\r\n")
	if secret == "" {
		return "", fmt.Errorf("%s is empty", file)
	}
	return secret, nil
}

func (e *endpoint) caBundle() ([]byte, error) {
	if e.credentials.CAFile == "" {
		return nil, nil
	}
	bundle, err := os.ReadFile(e.credentials.CAFile)
	if err != nil {
		return nil, fmt.Errorf("certificate file: %w", err)
	}
	return bundle, nil
}

// sshTimeout bounds connecting; what comes after is bounded by the fetch.
const sshTimeout = 20 * time.Second

// sshAuth is a method with a bounded connect: a go-git method alone waits as
// long as TCP does.
type sshAuth struct{ gitssh.AuthMethod }

// ClientConfig implements gitssh.AuthMethod.
func (a sshAuth) ClientConfig() (*ssh.ClientConfig, error) {
	config, err := a.AuthMethod.ClientConfig()
	if err == nil {
		config.Timeout = sshTimeout
	}
	return config, err
}

func (e *endpoint) sshAuth() (transport.AuthMethod, error) {
	hosts, err := e.knownHosts()
	if err != nil {
		return nil, err
	}
	name := e.parsed.User
	if name == "" {
		name = "git"
	}
	key := e.keyFile()
	if key == "" {
		agent, err := gitssh.NewSSHAgentAuth(name)
		if err != nil {
			return nil, errors.New("no ssh key: name a key file, or start an ssh agent and set SSH_AUTH_SOCK")
		}
		agent.HostKeyCallbackHelper = *hosts
		return sshAuth{agent}, nil
	}
	public, err := e.publicKeys(name, key)
	if err != nil {
		return nil, err
	}
	public.HostKeyCallbackHelper = *hosts
	return sshAuth{public}, nil
}

func (e *endpoint) publicKeys(name, file string) (*gitssh.PublicKeys, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("ssh key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("ssh key %s can be read by others than its owner; chmod 600 it", file)
	}
	passphrase := ""
	if e.credentials.SSHPassphraseFile != "" {
		if passphrase, err = readSecret(e.credentials.SSHPassphraseFile); err != nil {
			return nil, fmt.Errorf("ssh passphrase file: %w", err)
		}
	}
	keys, err := gitssh.NewPublicKeysFromFile(name, file, passphrase)
	if err != nil {
		return nil, fmt.Errorf("ssh key %s: %w", file, err)
	}
	return keys, nil
}

// keyFile is the configured key, or without an agent the first usual one that
// exists; empty for the agent.
func (e *endpoint) keyFile() string {
	if e.credentials.SSHKeyFile != "" || os.Getenv("SSH_AUTH_SOCK") != "" {
		return e.credentials.SSHKeyFile
	}
	for _, name := range []string{"id_ed25519", "id_ecdsa", "id_rsa"} {
		file := filepath.Join(homeDir(), ".ssh", name)
		if _, err := os.Stat(file); err == nil {
			return file
		}
	}
	return ""
}

// homeDir works for a service without HOME too.
func homeDir() string {
	if home, err := os.UserHomeDir(); err == nil {
		return home
	}
	if current, err := user.Current(); err == nil {
		return current.HomeDir
	}
	return "/root"
}

// knownHosts accepts the host keys listed for this host, and tells the server
// to show one of those.
func (e *endpoint) knownHosts() (*gitssh.HostKeyCallbackHelper, error) {
	files := []string{filepath.Join(homeDir(), ".ssh", "known_hosts"), "/etc/ssh/ssh_known_hosts"}
	if e.credentials.KnownHostsFile != "" {
		files = []string{e.credentials.KnownHostsFile}
	}
	known, err := gitssh.NewKnownHostsDb(files...)
	if err != nil {
		return nil, fmt.Errorf("no known ssh hosts in %s: %w; run: ssh-keyscan %s >> %s, and compare the fingerprints",
			strings.Join(files, ", "), err, e.parsed.Host, files[0])
	}
	port := e.parsed.Port
	if port <= 0 {
		port = gitssh.DefaultPort
	}
	address := net.JoinHostPort(e.parsed.Host, strconv.Itoa(port))
	return &gitssh.HostKeyCallbackHelper{
		HostKeyCallback:   known.HostKeyCallback(),
		HostKeyAlgorithms: known.HostKeyAlgorithms(address),
	}, nil
}
