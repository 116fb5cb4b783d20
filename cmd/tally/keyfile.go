package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/tallyman-dev/tallyman/nodes/trust"
)

// minPassphrase is the least that protects the key, in bytes.
const minPassphrase = 8

// keyOptions are the flags of tally key.
type keyOptions struct {
	instance
	passphraseFile string
}

func (o *keyOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.dataDir, "data-dir", "/var/lib/tallyman", "where state is kept")
	f.StringVar(&o.passphraseFile, "passphrase-file", "", "file with the passphrase; default: it is asked for")
}

func newKey(s streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Keep the cluster key safe: the one thing that Git cannot give back",
		Args:  usage(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var out, in keyOptions
	export := &cobra.Command{
		Use:   "export FILE|-",
		Short: "Write the cluster key to a file, encrypted with a passphrase",
		Long: "Write the cluster key to a file, or to standard output for -, encrypted with a passphrase in the format of age\n" +
			"(age-encryption.org): age --decrypt reads it too. With it and the repository, a new server is the same cluster.",
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error { return runKeyExport(s, out, args[0]) },
	}
	out.addFlags(export)
	restore := &cobra.Command{
		Use:   "import FILE|-",
		Short: "Give a new server the cluster key that was exported",
		Long:  "Give a new server the cluster key that was exported, before it is started for the first time.",
		Args:  usage(cobra.ExactArgs(1)),
		RunE:  func(_ *cobra.Command, args []string) error { return runKeyImport(s, in, args[0]) },
	}
	in.addFlags(restore)
	cmd.AddCommand(export, restore)
	return cmd
}

func runKeyExport(s streams, o keyOptions, name string) error {
	key, err := readKey(keyFile(o.dataDir), "the cluster key")
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: there is no cluster key: run this on the machine of tally server or tally up, with its --data-dir", keyFile(o.dataDir))
	}
	if err != nil {
		return err
	}
	passphrase, err := o.passphrase(s, true)
	if err != nil {
		return err
	}
	sealed, err := encryptKey(key, passphrase)
	if err != nil {
		return err
	}
	if name == "-" {
		_, err = s.out.Write(sealed)
		return err
	}
	if _, err := os.Lstat(name); err == nil {
		return fmt.Errorf("%s exists: name another file, or remove it", name)
	}
	if err := trust.WriteSecret(name, sealed); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	fmt.Fprintf(s.err, "The cluster key is in %s, encrypted. Keep it apart from this machine, and the passphrase apart from it.\n", name)
	return nil
}

func runKeyImport(s streams, o keyOptions, name string) error {
	sealed, err := readInput(s, name)
	if err != nil {
		return err
	}
	if name == "-" && o.passphraseFile == "" {
		return usageError{errors.New("the key comes from standard input: give the passphrase with --passphrase-file")}
	}
	passphrase, err := o.passphrase(s, false)
	if err != nil {
		return err
	}
	key, err := decryptKey(sealed, passphrase)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := os.MkdirAll(o.dataDir, 0o750); err != nil {
		return err
	}
	lock, err := o.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	path := keyFile(o.dataDir)
	switch have, err := readKey(path, "the cluster key"); {
	case err == nil && bytes.Equal(have, key):
		fmt.Fprintf(s.err, "%s is this key already.\n", path)
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s is the key of another cluster, which is lost without it: move it away first", path)
	}
	if err := writeKey(path, "the cluster key", key); err != nil {
		return err
	}
	fmt.Fprintf(s.err, "The cluster key is in %s: start tally server, or tally up, with the same repository as before.\n", path)
	return nil
}

func readInput(s streams, name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(s.in)
	}
	return os.ReadFile(name)
}

// passphrase reads it from the file, or asks for it without showing it, twice
// for a new one.
func (o *keyOptions) passphrase(s streams, isNew bool) (string, error) {
	if o.passphraseFile != "" {
		content, err := os.ReadFile(o.passphraseFile)
		if err != nil {
			return "", fmt.Errorf("--passphrase-file: %w", err)
		}
		line, _, _ := strings.Cut(string(content), "\n")
		return strings.TrimSuffix(line, "\r"), checkPassphrase(line, isNew)
	}
	first, err := ask(s, "Passphrase: ")
	if err != nil || !isNew {
		return first, err
	}
	if err := checkPassphrase(first, true); err != nil {
		return "", err
	}
	second, err := ask(s, "Again: ")
	if err == nil && first != second {
		err = errors.New("the two passphrases differ")
	}
	return first, err
}

func checkPassphrase(text string, isNew bool) error {
	if isNew && len(text) < minPassphrase {
		return fmt.Errorf("the passphrase must have %d letters at least", minPassphrase)
	}
	return nil
}

// ask reads a line, from a terminal without echo.
func ask(s streams, prompt string) (string, error) {
	fmt.Fprint(s.err, prompt)
	if file, ok := s.in.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		text, err := term.ReadPassword(int(file.Fd()))
		fmt.Fprintln(s.err)
		return string(text), err
	}
	return "", usageError{errors.New("there is no terminal to ask for the passphrase: give it with --passphrase-file")}
}

// encryptKey seals a key in age's text form.
func encryptKey(key []byte, passphrase string) ([]byte, error) {
	recipient, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return nil, fmt.Errorf("encrypt the key: %w", err)
	}
	var out bytes.Buffer
	text := armor.NewWriter(&out)
	sealed, err := age.Encrypt(text, recipient)
	if err != nil {
		return nil, fmt.Errorf("encrypt the key: %w", err)
	}
	if _, err = sealed.Write(formatKey(key)); err == nil {
		err = errors.Join(sealed.Close(), text.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("encrypt the key: %w", err)
	}
	return out.Bytes(), nil
}

// decryptKey opens what encryptKey sealed.
func decryptKey(sealed []byte, passphrase string) ([]byte, error) {
	identity, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return nil, fmt.Errorf("decrypt the key: %w", err)
	}
	in := bufio.NewReader(bytes.NewReader(sealed))
	var source io.Reader = in
	if begin, _ := in.Peek(len(armor.Header)); string(begin) == armor.Header {
		source = armor.NewReader(in)
	}
	opened, err := age.Decrypt(source, identity)
	if errors.As(err, new(*age.NoIdentityMatchError)) {
		return nil, errors.New("the passphrase is not the one that the key was exported with")
	}
	if err != nil {
		return nil, fmt.Errorf("it is no key that tally key export wrote, or it is damaged: %w", err)
	}
	content, err := io.ReadAll(io.LimitReader(opened, 1<<16))
	if err != nil {
		return nil, fmt.Errorf("it is damaged: %w", err)
	}
	key, err := parseKey(content)
	if err != nil {
		return nil, errors.New("it was encrypted with this passphrase, but holds no cluster key")
	}
	return key, nil
}
