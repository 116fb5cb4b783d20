package containerd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// accounts are the users and groups of an image, from its /etc/passwd and /etc/group.
type accounts struct {
	users  []account
	groups []group
}

type account struct {
	name     string
	uid, gid uint32
}

type group struct {
	name    string
	gid     uint32
	members []string
}

// accountsLimit bounds what is read of a file that the image's maker chose.
const accountsLimit = 1 << 20

// accountsOf reads an image's accounts once.
func (s *images) accountsOf(ctx context.Context, img *image) (*accounts, error) {
	s.mu.Lock()
	known := s.accounts[img.chain]
	s.mu.Unlock()
	if known != nil {
		return known, nil
	}
	// One read for all who ask at the same time: they would share its snapshot,
	// and the first to end would take it from the others.
	read, err, _ := s.reading.Do(img.chain, func() (any, error) {
		ctx := context.WithoutCancel(ctx)
		found, err := s.readAccounts(ctx, img)
		if notFound(err) { // somebody cleaned up behind our back
			if err := s.ensureUnpacked(ctx, img); err != nil {
				return nil, err
			}
			found, err = s.readAccounts(ctx, img)
		}
		return found, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the users of image %s: %w", img.Names[0], err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accounts[img.chain] = read.(*accounts)
	return s.accounts[img.chain], nil
}

func (s *images) readAccounts(ctx context.Context, img *image) (*accounts, error) {
	ctx, done, err := s.client.WithLease(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = done(context.WithoutCancel(ctx)) }()
	snapshotter := s.client.SnapshotService(s.snapshotter)
	key := "tallyman-accounts-" + img.chain
	mounts, err := snapshotter.View(ctx, key, img.chain)
	if alreadyExists(err) {
		mounts, err = snapshotter.Mounts(ctx, key)
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = snapshotter.Remove(context.WithoutCancel(ctx), key) }()
	var found accounts
	err = mount.WithReadonlyTempMount(ctx, mounts, func(dir string) error {
		root, err := os.OpenRoot(dir)
		if err != nil {
			return err
		}
		defer root.Close()
		found, err = parseAccounts(root.FS())
		return err
	})
	return &found, err
}

func parseAccounts(root fs.FS) (accounts, error) {
	var found accounts
	err := eachLine(root, "etc/passwd", func(f []string) {
		uid, err1 := strconv.ParseUint(field(f, 2), 10, 32)
		gid, err2 := strconv.ParseUint(field(f, 3), 10, 32)
		if err1 == nil && err2 == nil {
			found.users = append(found.users, account{f[0], uint32(uid), uint32(gid)})
		}
	})
	if err != nil {
		return found, err
	}
	return found, eachLine(root, "etc/group", func(f []string) {
		gid, err := strconv.ParseUint(field(f, 2), 10, 32)
		if err != nil {
			return
		}
		members := strings.FieldsFunc(field(f, 3), func(r rune) bool { return r == ',' })
		found.groups = append(found.groups, group{f[0], uint32(gid), members})
	})
}

func field(fields []string, i int) string {
	if i < len(fields) {
		return fields[i]
	}
	return ""
}

// eachLine calls f with the fields of each line; a missing file has none.
func eachLine(root fs.FS, path string, f func(fields []string)) error {
	file, err := root.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(io.LimitReader(file, accountsLimit))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line != "" && !strings.HasPrefix(line, "#") {
			f(strings.Split(line, ":"))
		}
	}
	return lines.Err()
}

// user resolves the user that a container asks for.
func (a *accounts) user(c runtime.Container) (specs.User, error) {
	name, groupName, hasGroup := strings.Cut(defaultTo(c.User, "0"), ":")
	found, err := a.lookUp(name)
	if err != nil {
		return specs.User{}, err
	}
	user := specs.User{UID: found.uid, GID: found.gid}
	if hasGroup {
		if user.GID, err = a.groupID(groupName); err != nil {
			return specs.User{}, err
		}
	}
	if c.Group != nil {
		user.GID = uint32(*c.Group)
	}
	user.AdditionalGids = append(user.AdditionalGids, user.GID)
	for _, g := range a.groups {
		if !c.StrictGroups && found.name != "" && slices.Contains(g.members, found.name) {
			user.AdditionalGids = append(user.AdditionalGids, g.gid)
		}
	}
	for _, gid := range c.Groups {
		user.AdditionalGids = append(user.AdditionalGids, uint32(gid))
	}
	slices.Sort(user.AdditionalGids)
	user.AdditionalGids = slices.Compact(user.AdditionalGids)
	return user, nil
}

// lookUp finds a user by name or number; a number need not be in /etc/passwd.
func (a *accounts) lookUp(name string) (account, error) {
	uid, err := strconv.ParseUint(name, 10, 31)
	numeric := err == nil
	for _, u := range a.users {
		if u.name == name || numeric && u.uid == uint32(uid) {
			return u, nil
		}
	}
	if !numeric {
		return account{}, fmt.Errorf("the image has no user %q in its /etc/passwd", name)
	}
	return account{uid: uint32(uid)}, nil
}

func (a *accounts) groupID(name string) (uint32, error) {
	for _, g := range a.groups {
		if g.name == name {
			return g.gid, nil
		}
	}
	gid, err := strconv.ParseUint(name, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("the image has no group %q in its /etc/group", name)
	}
	return uint32(gid), nil
}
