package gitrepo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/go-git/go-git/v5/plumbing"
)

// packIndex looks objects up in a version 2 .idx file without loading it: only
// the fan-out table (1 KiB) is in memory, whatever the length of the history.
// Safe for concurrent use.
type packIndex struct {
	file   *os.File
	fanout [256]uint32
}

const (
	indexHeader = 8 + 256*4
	hashSize    = len(plumbing.Hash{})
	// largeOffset marks a 32 bit offset that points into the table of 64 bit ones.
	largeOffset = 1 << 31
)

func openPackIndex(path string) (*packIndex, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	index := &packIndex{file: file}
	if err := index.readHeader(); err != nil {
		return nil, errors.Join(fmt.Errorf("read pack index %s: %w", path, err), file.Close())
	}
	return index, nil
}

func (x *packIndex) readHeader() error {
	var header [indexHeader]byte
	if _, err := x.file.ReadAt(header[:], 0); err != nil {
		return err
	}
	if !bytes.Equal(header[:8], []byte{0xff, 't', 'O', 'c', 0, 0, 0, 2}) {
		return errors.New("not a version 2 pack index")
	}
	for i := range x.fanout {
		x.fanout[i] = binary.BigEndian.Uint32(header[8+4*i:])
		if i > 0 && x.fanout[i] < x.fanout[i-1] {
			return errors.New("the fan-out table is not ascending")
		}
	}
	return nil
}

// find returns the object's offset in the pack.
func (x *packIndex) find(id plumbing.Hash) (offset int64, found bool, err error) {
	low, high := uint32(0), x.fanout[id[0]]
	if id[0] > 0 {
		low = x.fanout[id[0]-1]
	}
	var name plumbing.Hash
	for low < high {
		middle := low + (high-low)/2
		if _, err := x.file.ReadAt(name[:], indexHeader+int64(middle)*int64(hashSize)); err != nil {
			return 0, false, noEOF(err)
		}
		switch bytes.Compare(id[:], name[:]) {
		case 0:
			offset, err := x.offset(middle)
			return offset, err == nil, err
		case -1:
			high = middle
		default:
			low = middle + 1
		}
	}
	return 0, false, nil
}

// offset reads the entry at a position: after the names come 4 bytes of CRC
// each, then 4 bytes of offset each, then the 64 bit offsets.
func (x *packIndex) offset(position uint32) (int64, error) {
	count := int64(x.fanout[255])
	small := indexHeader + count*int64(hashSize+4)
	var word [8]byte
	if _, err := x.file.ReadAt(word[:4], small+int64(position)*4); err != nil {
		return 0, noEOF(err)
	}
	value := binary.BigEndian.Uint32(word[:4])
	if value < largeOffset {
		return int64(value), nil
	}
	if _, err := x.file.ReadAt(word[:], small+count*4+int64(value-largeOffset)*8); err != nil {
		return 0, noEOF(err)
	}
	return int64(binary.BigEndian.Uint64(word[:])), nil
}

// names lists every object of the pack.
func (x *packIndex) names() ([]plumbing.Hash, error) {
	table := make([]byte, int64(x.fanout[255])*int64(hashSize))
	if _, err := x.file.ReadAt(table, indexHeader); err != nil {
		return nil, noEOF(err)
	}
	ids := make([]plumbing.Hash, 0, x.fanout[255])
	for name := range slices.Chunk(table, hashSize) {
		ids = append(ids, plumbing.Hash(name))
	}
	return ids, nil
}

// noEOF says "cut short" instead of "nothing more": in the middle of a file an
// end is damage.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
