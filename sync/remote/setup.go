package remote

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The hooks are small shell scripts that start tally only when the push
// concerns the followed branch: our binary takes a hundred times longer to
// start than a shell.
var (
	//go:embed hooks/pre-receive.sh
	preReceiveScript string
	//go:embed hooks/post-receive.sh
	postReceiveScript string
)

// configFile holds our settings; the repository's own config includes it.
const configFile = "tallyman.config"

// maxPush bounds what one push may bring, in bytes.
const maxPush = 512 << 20

func findGit() (string, error) {
	git, err := exec.LookPath("git")
	if err != nil {
		return "", fmt.Errorf("embedded remote: the git program is needed: %w; install git, or name another repository with --repo", err)
	}
	return git, nil
}

func (r *Remote) setUp() error {
	for _, step := range []func() error{r.makeRepository, r.sweepLocks, r.configure, r.writeHooks} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// makeRepository makes the bare repository unless it is there.
func (r *Remote) makeRepository() error {
	dir := r.options.Dir
	if _, err := os.Stat(filepath.Join(dir, "HEAD")); err == nil {
		return r.giveToGroup(dir)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	// Made beside and moved: what is called repo.git is complete.
	unfinished := dir + ".new"
	if err := os.RemoveAll(unfinished); err != nil {
		return err
	}
	err := r.runGit("init", "--quiet", "--bare", "--template=", "--shared=group", "--initial-branch="+r.options.Branch, unfinished)
	if err != nil {
		return err
	}
	if err := r.giveToGroup(unfinished); err != nil {
		return err
	}
	if err := os.Rename(unfinished, dir); err != nil {
		return err
	}
	r.options.Log.Info("made the embedded remote", "dir", dir, "branch", r.options.Branch)
	return nil
}

// giveToGroup shuts others out and, if the group exists, lets it do what the
// owner may. Directories pass the group on. It does nothing when the
// repository is the group's already.
func (r *Remote) giveToGroup(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	gid, found := lookupGroup(r.options.Group)
	if !found || os.Geteuid() != 0 {
		r.options.Log.Debug("no group may push by path", "group", r.options.Group)
		return os.Chmod(dir, info.Mode()&^0o007)
	}
	if info.Sys().(*syscall.Stat_t).Gid == uint32(gid) && info.Mode().Perm() == 0o770 {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if err := os.Lchown(path, -1, gid); err != nil {
			return err
		}
		owner := info.Mode().Perm() & 0o700
		if entry.IsDir() {
			return os.Chmod(path, 0o770|fs.ModeSetgid)
		}
		return os.Chmod(path, owner|owner>>3)
	})
}

// staleLock is the age from which a lock of Git is nobody's: Git holds one for
// milliseconds.
const staleLock = time.Minute

// sweepLocks removes locks that a Git left behind which was killed, or lost
// its power: each would refuse every push for ever.
func (r *Remote) sweepLocks() error {
	for _, name := range []string{r.ref() + ".lock", "HEAD.lock", "packed-refs.lock", "config.lock"} {
		path := filepath.Join(r.options.Dir, name)
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && time.Since(info.ModTime()) < staleLock {
			continue
		}
		if err == nil {
			err = os.Remove(path)
		}
		if err != nil {
			return fmt.Errorf("sweep lock: %w", err)
		}
		r.options.Log.Info("removed a lock that a killed git left behind", "file", path)
	}
	return nil
}

func lookupGroup(name string) (gid int, found bool) {
	group, err := user.LookupGroup(name)
	if err != nil {
		return 0, false
	}
	gid, err = strconv.Atoi(group.Gid)
	return gid, err == nil
}

// configure writes our settings. core.hooksPath is among them, because a
// machine-wide one would switch our hooks off.
func (r *Remote) configure() error {
	var b bytes.Buffer
	fmt.Fprintln(&b, "# Written by tally at every start; changes are lost.")
	for _, setting := range [][2]string{
		{"core.sharedRepository", "group"},
		{"core.logAllRefUpdates", "true"},
		{"core.hooksPath", filepath.Join(r.options.Dir, "hooks")},
		{"http.receivepack", "true"},
		{"http.uploadpack", "true"},
		{"receive.advertisePushOptions", "true"},
		{"receive.maxInputSize", strconv.Itoa(maxPush)},
		// Ours to say, in better words; and other branches are free.
		{"receive.denyNonFastForwards", "false"},
		{"receive.denyDeletes", "false"},
		{"receive.denyDeleteCurrent", "ignore"},
	} {
		section, key, _ := strings.Cut(setting[0], ".")
		fmt.Fprintf(&b, "[%s]\n\t%s = %s\n", section, key, quoteConfig(setting[1]))
	}
	if err := replaceFile(filepath.Join(r.options.Dir, configFile), b.Bytes(), 0o640); err != nil {
		return err
	}
	if err := r.runGit("-C", r.options.Dir, "config", "--replace-all", "include.path", configFile, "^"+configFile+"$"); err != nil {
		return err
	}
	return r.runGit("-C", r.options.Dir, "symbolic-ref", "HEAD", r.ref())
}

// quoteConfig quotes a value for Git's configuration.
func quoteConfig(value string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(value) + `"`
}

// writeHooks writes the hooks anew: the socket or the binary may have moved.
func (r *Remote) writeHooks() error {
	dir := filepath.Join(r.options.Dir, "hooks")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	fill := strings.NewReplacer("@REF@", quoteShell(r.ref()), "@EXECUTABLE@", quoteShell(r.options.Executable), "@SOCKET@", quoteShell(r.options.Socket))
	for name, script := range map[string]string{preReceive: preReceiveScript, postReceive: postReceiveScript} {
		if err := replaceFile(filepath.Join(dir, name), []byte(fill.Replace(script)), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// quoteShell quotes a word for a POSIX shell.
func quoteShell(word string) string { return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'" }

// replaceFile puts a file in place whole, unless it is there already. A push
// by path may be running that moment.
func replaceFile(path string, content []byte, mode fs.FileMode) error {
	present, err := os.ReadFile(path)
	if err == nil && bytes.Equal(present, content) {
		return os.Chmod(path, mode)
	}
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".")
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	err = errors.Join(err, file.Chmod(mode), file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(file.Name()))
	}
	return nil
}

func (r *Remote) runGit(arguments ...string) error {
	command := exec.Command(r.git, arguments...)
	command.Env = gitEnvironment()
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("git %s: %w: %s", strings.Join(arguments, " "), err, bytes.TrimSpace(output))
	}
	return nil
}

// gitEnvironment is ours without what would lead Git to another repository.
func gitEnvironment() []string {
	var environment []string
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "GIT_") {
			environment = append(environment, entry)
		}
	}
	return environment
}
