package gitrepo

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	gitsync "github.com/go-git/go-git/v5/utils/sync"
)

// maxDeltaChain bounds the deltas between an object and its base. Git itself
// makes at most 4,095.
const maxDeltaChain = 4095

var errDamagedPack = errors.New("the pack is damaged")

// rawObject is one object as Git stores it. content is shared and read-only.
type rawObject struct {
	kind    plumbing.ObjectType
	content []byte
}

// pack reads single objects of one packfile through ReadAt. Safe for
// concurrent use. The descriptors stay valid after Git has removed the files;
// the runtime closes them once the last reader is gone.
type pack struct {
	index *packIndex
	file  *os.File
	size  int64
	bases *lru[baseKey, rawObject]
}

// baseKey names a delta base by place: its hash is not needed.
type baseKey struct {
	pack   *pack
	offset int64
}

// packEntry is the header of one object in a pack.
type packEntry struct {
	kind plumbing.ObjectType
	// size is the inflated size: of the delta, if it is one.
	size int64
	// body is where the deflated data starts.
	body int64
	// base is the offset of the delta's base.
	base int64
}

func openPack(idxPath string, bases *lru[baseKey, rawObject]) (*pack, error) {
	index, err := openPackIndex(idxPath)
	if err != nil {
		return nil, err
	}
	file, err := os.Open(strings.TrimSuffix(idxPath, ".idx") + ".pack")
	if err != nil {
		return nil, errors.Join(err, index.file.Close())
	}
	info, err := file.Stat()
	if err != nil {
		return nil, errors.Join(err, file.Close(), index.file.Close())
	}
	return &pack{index: index, file: file, size: info.Size(), bases: bases}, nil
}

// object reads the object at an offset, putting its deltas together.
func (p *pack) object(offset int64) (rawObject, error) {
	var deltas [][]byte
	at := offset
	for {
		if base, found := p.bases.get(baseKey{p, at}); found {
			return p.apply(base, deltas, offset)
		}
		entry, err := p.entry(at)
		if err != nil {
			return rawObject{}, err
		}
		content, err := p.inflate(entry, entry.size)
		if err != nil {
			return rawObject{}, err
		}
		if !entry.kind.IsDelta() {
			object := rawObject{entry.kind, content}
			p.bases.put(baseKey{p, at}, object, int64(len(content)))
			return p.apply(object, deltas, offset)
		}
		if deltas = append(deltas, content); len(deltas) > maxDeltaChain {
			return rawObject{}, fmt.Errorf("%w: more than %d deltas at offset %d", errDamagedPack, maxDeltaChain, offset)
		}
		at = entry.base
	}
}

// apply puts the deltas, the innermost last, onto their base.
func (p *pack) apply(base rawObject, deltas [][]byte, offset int64) (rawObject, error) {
	if len(deltas) == 0 {
		return base, nil
	}
	content := base.content
	for i := len(deltas) - 1; i >= 0; i-- {
		size, err := deltaResult(deltas[i])
		if err != nil {
			return rawObject{}, err
		}
		if size > maxObject {
			return rawObject{}, &tooLargeError{size}
		}
		if content, err = packfile.PatchDelta(content, deltas[i]); err != nil {
			return rawObject{}, fmt.Errorf("%w: offset %d: %w", errDamagedPack, offset, err)
		}
	}
	object := rawObject{base.kind, content}
	p.bases.put(baseKey{p, offset}, object, int64(len(content)))
	return object, nil
}

// objectSize tells the size of the object at an offset without making it.
func (p *pack) objectSize(offset int64) (int64, error) {
	entry, err := p.entry(offset)
	if err != nil {
		return 0, err
	}
	if !entry.kind.IsDelta() {
		return entry.size, nil
	}
	const bothSizes = 20 // two variable-length numbers of at most 10 bytes
	start, err := p.inflate(entry, min(entry.size, bothSizes))
	if err != nil {
		return 0, err
	}
	return deltaResult(start)
}

// entry reads the header at an offset.
func (p *pack) entry(offset int64) (packEntry, error) {
	var buffer [64]byte
	n, err := p.file.ReadAt(buffer[:], offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return packEntry{}, err
	}
	head := buffer[:n]
	kind, size, used := entryHead(head)
	if used == 0 {
		return packEntry{}, fmt.Errorf("%w: no object at offset %d", errDamagedPack, offset)
	}
	entry := packEntry{kind: kind, size: size, body: offset + int64(used)}
	switch kind {
	case plumbing.CommitObject, plumbing.TreeObject, plumbing.BlobObject, plumbing.TagObject:
		return entry, nil
	case plumbing.OFSDeltaObject:
		back, n := backOffset(head[used:])
		if n == 0 || back <= 0 || back > offset {
			return packEntry{}, fmt.Errorf("%w: bad delta base at offset %d", errDamagedPack, offset)
		}
		entry.base, entry.body = offset-back, entry.body+int64(n)
		return entry, nil
	case plumbing.REFDeltaObject:
		return p.refDelta(entry, head[used:])
	default:
		return packEntry{}, fmt.Errorf("%w: object of type %d at offset %d", errDamagedPack, kind, offset)
	}
}

// refDelta completes the entry of a delta that names its base by hash. Packs
// on disk are complete, so the base is in the same one.
func (p *pack) refDelta(entry packEntry, rest []byte) (packEntry, error) {
	if len(rest) < hashSize {
		return packEntry{}, fmt.Errorf("%w: bad delta base", errDamagedPack)
	}
	id := plumbing.Hash(rest[:hashSize])
	base, found, err := p.index.find(id)
	if err != nil {
		return packEntry{}, err
	}
	if !found {
		return packEntry{}, fmt.Errorf("%w: delta base %s is missing", errDamagedPack, id)
	}
	entry.base, entry.body = base, entry.body+int64(hashSize)
	return entry, nil
}

// inflate reads the first size bytes of an entry's data.
func (p *pack) inflate(entry packEntry, size int64) ([]byte, error) {
	if size > maxObject {
		return nil, &tooLargeError{size}
	}
	// The zlib reader would otherwise bring a buffer of its own; a small object
	// fits this one.
	source := bufio.NewReaderSize(io.NewSectionReader(p.file, entry.body, p.size-entry.body), int(min(size+64, 32<<10)))
	inflater, err := gitsync.GetZlibReader(source)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDamagedPack, err)
	}
	defer gitsync.PutZlibReader(inflater)
	content := make([]byte, size)
	if _, err := io.ReadFull(inflater.Reader, content); err != nil {
		return nil, fmt.Errorf("%w: %w", errDamagedPack, noEOF(err))
	}
	return content, nil
}

// entryHead decodes type and size: the first byte holds three bits of type and
// four of size, each further byte seven of size, least significant first.
// used is 0 when head is cut short.
func entryHead(head []byte) (kind plumbing.ObjectType, size int64, used int) {
	if len(head) == 0 {
		return 0, 0, 0
	}
	kind = plumbing.ObjectType(head[0] >> 4 & 7)
	size = int64(head[0] & 0x0f)
	if head[0]&0x80 == 0 {
		return kind, size, 1
	}
	more, n := binary.Uvarint(head[1:])
	if n <= 0 || more > math.MaxInt64>>4 {
		return 0, 0, 0
	}
	return kind, size | int64(more)<<4, 1 + n
}

// backOffset decodes how far back a delta's base lies: seven bits a byte, most
// significant first, one added at each continuation. n is 0 when it is cut short.
func backOffset(b []byte) (back int64, n int) {
	for n < len(b) && n < 9 {
		c := b[n]
		n++
		back = back<<7 | int64(c&0x7f)
		if c&0x80 == 0 {
			return back, n
		}
		back++
	}
	return 0, 0
}

// deltaResult reads the size of what a delta makes.
func deltaResult(delta []byte) (int64, error) {
	_, n := binary.Uvarint(delta)
	if n <= 0 {
		return 0, fmt.Errorf("%w: bad delta", errDamagedPack)
	}
	size, n := binary.Uvarint(delta[n:])
	if n <= 0 || size > math.MaxInt64 {
		return 0, fmt.Errorf("%w: bad delta", errDamagedPack)
	}
	return int64(size), nil
}
