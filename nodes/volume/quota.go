package volume

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// limit bounds what a directory may hold by a project quota, and returns "";
// where that can't be had, one sentence says why the size is only a promise.
func (p *Persistent) limit(dir string, size int64) string {
	err := p.projectQuota(dir, size)
	if err == nil {
		return ""
	}
	return fmt.Sprintf("the size is a promise that nothing enforces: %s lies on %s without project quotas (%s); mount it with prjquota, or set %s: \"true\" in the StorageClass",
		p.dir, diskOf(dir), err, EnforceParameter)
}

// errNotEnforced is returned where quotas may be counted, but bind nobody.
var errNotEnforced = errors.New("project quotas are not enforced")

// projectQuota gives the directory a project of its own with a hard limit, and
// looks that the file system then shows that limit as its size: what it does
// not show, it does not enforce.
func (p *Persistent) projectQuota(dir string, size int64) error {
	p.locks.Lock("@projects")
	defer p.locks.Unlock("@projects")
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	fd := int(f.Fd())
	if err := quotasEnforced(fd); err != nil {
		return err
	}
	id, err := p.project(fd, dir)
	if err != nil {
		return err
	}
	limit := diskQuota{version: 1, flags: projectFlag, fields: hardLimit | softLimit, id: id}
	limit.hard = uint64(size+511) / 512
	limit.soft = limit.hard
	if err := quotactl(fd, setLimit, id, unsafe.Pointer(&limit)); err != nil {
		return fmt.Errorf("set quota: %w", err)
	}
	var s unix.Statfs_t
	if err := unix.Fstatfs(fd, &s); err != nil {
		return err
	}
	if total := int64(s.Blocks) * s.Bsize; total > size+s.Bsize {
		return errNotEnforced
	}
	return nil
}

// project gives the directory a project that no other volume has; one that it
// has already stays.
func (p *Persistent) project(fd int, dir string) (uint32, error) {
	own, err := readProject(fd)
	if err != nil {
		return 0, err
	}
	if own.project != 0 && own.flags&inheritFlag != 0 {
		return own.project, nil
	}
	taken, err := p.projects()
	if err != nil {
		return 0, err
	}
	hash := fnv.New32a()
	hash.Write([]byte(dir))
	id := hash.Sum32()
	for id < 1<<16 || taken[id] { // small numbers are for those who number by hand
		id++
	}
	own.project, own.flags = id, own.flags|inheritFlag
	if err := ioctl(fd, setAttributes, unsafe.Pointer(&own)); err != nil {
		return 0, fmt.Errorf("set project: %w", err)
	}
	return id, nil
}

// projects are those of all volumes here.
func (p *Persistent) projects() (map[uint32]bool, error) {
	dirs, err := filepath.Glob(filepath.Join(strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(p.dir), "*", dataDir))
	if err != nil {
		return nil, err
	}
	taken := map[uint32]bool{}
	for _, dir := range dirs {
		f, err := os.Open(dir)
		if err != nil {
			return nil, err
		}
		own, err := readProject(int(f.Fd()))
		f.Close()
		if err != nil {
			return nil, err
		}
		taken[own.project] = true
	}
	return taken, nil
}

// attributes are the kernel's struct fsxattr.
type attributes struct {
	flags, extent, extents, project, cow uint32
	_                                    [8]byte
}

// The kernel's FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR and FS_XFLAG_PROJINHERIT.
const (
	getAttributes = 0x801c581f
	setAttributes = 0x401c5820
	inheritFlag   = 0x200
)

func readProject(fd int) (attributes, error) {
	var a attributes
	if err := ioctl(fd, getAttributes, unsafe.Pointer(&a)); err != nil {
		return a, fmt.Errorf("read project: %w", err)
	}
	return a, nil
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// diskQuota is the kernel's struct fs_disk_quota; sizes are in 512 bytes.
type diskQuota struct {
	version, flags int8
	fields         uint16
	id             uint32
	hard, soft     uint64
	_              [2]uint64 // inode limits
	_              [2]uint64 // blocks and inodes in use
	_              [2]int32
	_              [2]uint16
	_              [4]int8
	_, _, _        uint64 // realtime blocks
	_              int32
	_              uint16
	_              int16
	_              [8]byte
}

// quotaState is the kernel's struct fs_quota_stat, of which we read the flags.
type quotaState struct {
	version int8
	flags   uint16
	_       [128]byte
}

// The kernel's Q_XSETQLIM and Q_XGETQSTAT, and their flags for projects.
const (
	setLimit     = 'X'<<8 + 4
	getState     = 'X'<<8 + 5
	projectQuota = 2
	projectFlag  = 1 << 1
	hardLimit    = 1 << 3
	softLimit    = 1 << 2
	enforcedFlag = 1 << 5
)

func quotasEnforced(fd int) error {
	state := quotaState{version: 1}
	if err := quotactl(fd, getState, 0, unsafe.Pointer(&state)); err != nil {
		return err
	}
	if state.flags&enforcedFlag == 0 {
		return errNotEnforced
	}
	return nil
}

func quotactl(fd, command int, id uint32, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, uintptr(fd), uintptr(command<<8|projectQuota), uintptr(id), uintptr(arg), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
