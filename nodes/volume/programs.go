package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// programs runs a program of the node to its end and returns what it printed.
type programs func(ctx context.Context, name string, args ...string) (string, error)

// programTime bounds a program: a file server that does not answer must not
// hold its volume for ever.
const programTime = 2 * time.Minute

// execute is programs on the real node.
func execute(ctx context.Context, name string, args ...string) (string, error) {
	path, err := findProgram(name)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.WaitDelay = 5 * time.Second
	var complaints strings.Builder
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	switch {
	case err == nil:
		return string(out), nil
	case ctx.Err() != nil:
		return "", fmt.Errorf("%s did not end within %s: %w", name, programTime, ctx.Err())
	}
	text := strings.Join(strings.Fields(complaints.String()+" "+string(out)), " ")
	return "", &programError{name: name, text: text, err: err}
}

// programError is a program that ended badly.
type programError struct {
	name, text string
	err        error
}

func (e *programError) Error() string {
	if e.text == "" {
		return e.name + ": " + e.err.Error()
	}
	return e.name + ": " + e.text
}
func (e *programError) Unwrap() error { return e.err }

// exitCode of a program that ran; -1 when it did not.
func exitCode(err error) int {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	return -1
}

// findProgram looks in the directories of system programs too, which a
// service's PATH may lack.
func findProgram(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin/", "/sbin/", "/usr/bin/", "/bin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("the program %s is not on this node: install %s", name, packageName(name))
}

func packageName(program string) string {
	if name := packageOf[program]; name != "" {
		return "the package " + name
	}
	return "it"
}
