package embedded

import (
	"encoding/binary"
	"fmt"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/sys"
)

// The first byte of a key says what row it is. Numbers in keys are big-endian,
// so that the order of keys is the order of numbers.
const (
	rowInode   = 'i' // ino → metapb.Attr
	rowDentry  = 'd' // parent, name → metapb.Dentry
	rowPlace   = 'c' // parent, cookie → metapb.Place
	rowChunk   = 'k' // ino, chunk → metapb.Chunk
	rowXattrs  = 'x' // ino → metapb.Xattrs
	rowCounter = 'n' // counter → 8 bytes
)

const keyMax = 1 + 8 + sys.NameMax

// key builds keys in a buffer of its own; each key is valid until the next.
type key struct{ buf [keyMax]byte }

func (k *key) ino(row byte, ino sys.Ino) []byte {
	k.buf[0] = row
	binary.BigEndian.PutUint64(k.buf[1:], uint64(ino))
	return k.buf[:9]
}

func (k *key) dentry(parent sys.Ino, name []byte) ([]byte, error) {
	if len(name) > sys.NameMax {
		return nil, fmt.Errorf("embedded: name of an entry of %d: expected at most 255 bytes, found %d", parent, len(name))
	}
	return append(k.ino(rowDentry, parent), name...), nil
}

func (k *key) place(parent sys.Ino, cookie uint64) []byte {
	return binary.BigEndian.AppendUint64(k.ino(rowPlace, parent), cookie)
}

func (k *key) chunk(ino sys.Ino, n uint32) []byte {
	return binary.BigEndian.AppendUint32(k.ino(rowChunk, ino), n)
}

func (k *key) counter(name meta.Counter) []byte {
	k.buf[0], k.buf[1] = rowCounter, byte(name)
	return k.buf[:2]
}

// after returns the key that follows all keys which begin with the given one.
func (k *key) after(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		end[i]++
		if end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}
