package volume

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/tallyman-dev/tallyman/nodes"
)

// The programs behind volumes in files, and the Debian package that each comes with.
var packageOf = map[string]string{
	"mkfs.ext4": "e2fsprogs", "resize2fs": "e2fsprogs", "e2fsck": "e2fsprogs", "debugfs": "e2fsprogs",
	"losetup": "mount", "mount": "mount", "blkid": "util-linux", "mount.nfs": "nfs-common", "mkfs.xfs": "xfsprogs",
	"cp": "coreutils",
}

// makeImage makes the file, sparse, with an empty ext4 in it unless it is to be
// a block device.
func (p *Persistent) makeImage(ctx context.Context, v *nodes.Volume, image string) error {
	fresh := image + unfinished
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := growFile(fresh, v.Spec.Capacity.Storage().Value()); err != nil {
		return err
	}
	if !isBlock(v) {
		if err := p.format(ctx, fresh); err != nil {
			return err
		}
	}
	if err := syncFile(fresh); err != nil {
		return err
	}
	return renameSynced(fresh, image)
}

// format makes an empty file system that every user may write to, like makeData.
func (p *Persistent) format(ctx context.Context, image string) error {
	if _, err := p.run(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", image); err != nil {
		return err
	}
	_, err := p.run(ctx, "debugfs", "-w", "-R", "set_inode_field <2> mode 040777", image)
	return err
}

func growFile(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// growImage makes the file larger, and what is mounted from it.
func (p *Persistent) growImage(ctx context.Context, v *nodes.Volume, image string, size int64) error {
	if err := growFile(image, size); err != nil {
		return err
	}
	if err := syncFile(image); err != nil {
		return err
	}
	device, err := p.attached(ctx, image)
	if err != nil || device == "" {
		return err // attach sees to it
	}
	return p.fill(ctx, v, device)
}

// fill makes the device as large as its file, and the mounted file system as
// large as the device.
func (p *Persistent) fill(ctx context.Context, v *nodes.Volume, device string) error {
	if _, err := p.run(ctx, "losetup", "--set-capacity", device); err != nil {
		return err
	}
	if isBlock(v) {
		return nil
	}
	_, err := p.run(ctx, "resize2fs", device)
	return err
}

// filled is how large the file system in an image is, in bytes.
func filled(image string) (int64, error) {
	f, err := os.Open(image)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	super := make([]byte, 1024)
	if _, err := f.ReadAt(super, 1024); err != nil {
		return 0, err
	}
	// s_magic, s_blocks_count_lo, s_log_block_size, s_feature_incompat and s_blocks_count_hi of ext4's superblock.
	number := func(at int) uint64 { return uint64(binary.LittleEndian.Uint32(super[at:])) }
	if binary.LittleEndian.Uint16(super[0x38:]) != 0xef53 {
		return 0, fmt.Errorf("%s holds no ext4 file system", image)
	}
	blocks := number(0x4)
	const bits64 = 0x80
	if number(0x60)&bits64 != 0 {
		blocks |= number(0x150) << 32
	}
	return int64(blocks << (10 + number(0x18))), nil
}

func (p *Persistent) stageImage(ctx context.Context, v *nodes.Volume, image string) (Volume, error) {
	device, err := p.attached(ctx, image)
	if err == nil && device == "" {
		device, err = p.attach(ctx, v, image)
	}
	if err != nil {
		return Volume{}, trouble(ReasonMount, "attach volume %s: %w", v.Name, err)
	}
	if isBlock(v) {
		return Volume{Device: device}, nil
	}
	point := p.point(v)
	mounted, err := mountedOn(point)
	if err != nil {
		return Volume{}, trouble(ReasonMount, "mount volume %s: %w", v.Name, err)
	}
	if !mounted {
		err = p.run.mountOnce(ctx, point, v.Spec.MountOptions, "ext4", device)
	}
	if err != nil {
		return Volume{}, trouble(ReasonMount, "mount volume %s: %w", v.Name, err)
	}
	return Volume{Path: point, grouped: true}, nil
}

// attach makes a loop device of the file, after a look at the file system in it:
// the machine may have gone down with it mounted.
func (p *Persistent) attach(ctx context.Context, v *nodes.Volume, image string) (string, error) {
	if !isBlock(v) {
		if err := p.fit(ctx, image); err != nil {
			return "", err
		}
	}
	out, err := p.run(ctx, "losetup", "--find", "--show", image)
	return strings.TrimSpace(out), err
}

// fit makes the file system in a file that nobody has open sound, and as large
// as the file.
func (p *Persistent) fit(ctx context.Context, image string) error {
	info, err := os.Stat(image)
	if err != nil {
		return err
	}
	size, err := filled(image)
	if err != nil {
		return err
	}
	if size+slack >= info.Size() {
		return p.check(ctx, image)
	}
	if err := p.check(ctx, "-f", image); err != nil {
		return err
	}
	_, err = p.run(ctx, "resize2fs", image)
	return err
}

// slack is what a file system may leave of its device: less than a block.
const slack = 64 << 10

// check repairs what can be repaired without asking: e2fsck -p answers 1 when it
// has, and 4 or more when a human must look.
func (p *Persistent) check(ctx context.Context, args ...string) error {
	_, err := p.run(ctx, "e2fsck", append([]string{"-p"}, args...)...)
	if code := exitCode(err); err == nil || code == 1 || code == 2 {
		return nil
	}
	return fmt.Errorf("the file system in it is damaged: look at it with e2fsck %s: %w", args[len(args)-1], err)
}

// attached is the loop device that a file has; "" when it has none. There must
// never be two: each would have a file system of its own in memory.
func (p *Persistent) attached(ctx context.Context, image string) (string, error) {
	out, err := p.run(ctx, "losetup", "--noheadings", "--output", "NAME", "--associated", image)
	if err != nil {
		return "", err
	}
	device, _, _ := strings.Cut(strings.TrimSpace(out), "\n")
	return device, nil
}

// detach gives the loop device back as soon as nobody has it open.
func (p *Persistent) detach(ctx context.Context, image string) error {
	device, err := p.attached(ctx, image)
	if err == nil && device != "" {
		_, err = p.run(ctx, "losetup", "--detach", device)
	}
	if err != nil {
		return trouble(ReasonMount, "detach %s: %w", filepath.Base(filepath.Dir(image)), err)
	}
	return nil
}
