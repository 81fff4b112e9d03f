package mysql

import (
	"errors"
	"math"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// errUnknown says that the leader would have to ask.
var errUnknown = errors.New("mysql: the leader does not know")

// answer answers a query from what the leader knows, nil when that is not all
// that it takes. While a transaction is on its way nobody is answered so: others
// may have seen already what it brings.
func (l *Leader) answer(q *metapb.Query) *metapb.Answer {
	switch q.GetOp().(type) { // of one file or directory
	case *metapb.Query_Lookup, *metapb.Query_GetAttr, *metapb.Query_Open, *metapb.Query_GetChunks, *metapb.Query_ReadDir,
		*metapb.Query_Access, *metapb.Query_StatFs:
	default:
		return nil
	}
	l.cache.mu.RLock()
	defer l.cache.mu.RUnlock()
	if l.began.Load() != l.seq.Load() {
		return nil
	}
	a, err := meta.Read(knownTx{l.cache}, q)
	if err != nil { // all there is here is errUnknown
		return nil
	}
	return a
}

// knownTx is the rows that a leader knows. Everything else is errUnknown.
type knownTx struct{ c *cache }

var _ meta.Tx = knownTx{}

// Inode is of meta.Tx.
func (k knownTx) Inode(ino sys.Ino) (*metapb.Attr, error) {
	if a := k.c.inode(ino); a != nil {
		return a, nil
	}
	return nil, errUnknown
}

// Dentry is of meta.Tx.
func (k knownTx) Dentry(parent sys.Ino, name []byte) (*metapb.Dentry, error) {
	if d, known := k.c.entry(parent, name); known {
		return d, nil
	}
	return nil, errUnknown
}

// ScanDentries is of meta.Tx.
func (k knownTx) ScanDentries(parent sys.Ino, after uint64, fn func([]byte, *metapb.Dentry) bool) error {
	if after == math.MaxUint64 {
		return nil
	}
	page, known := k.c.list(parent, after+1, listMax)
	if !known {
		return errUnknown
	}
	for _, e := range page {
		if !fn(e.val.name, e.val.d) {
			break
		}
	}
	return nil
}

// Chunk is of meta.Tx.
func (k knownTx) Chunk(ino sys.Ino, _ uint32) (*metapb.Chunk, error) {
	if k.c.noChunks(ino) {
		return nil, nil
	}
	return nil, errUnknown
}

// ScanChunks is of meta.Tx.
func (k knownTx) ScanChunks(ino sys.Ino, _ uint32, _ func(uint32, *metapb.Chunk) bool) error {
	if k.c.noChunks(ino) {
		return nil
	}
	return errUnknown
}

// Xattrs is of meta.Tx.
func (k knownTx) Xattrs(sys.Ino) (*metapb.Xattrs, error) { return nil, errUnknown }

// ScanInodes is of meta.Tx.
func (k knownTx) ScanInodes(sys.Ino, func(*metapb.Attr) bool) error { return errUnknown }

// InlineMax is of meta.Inliner.
func (k knownTx) InlineMax() uint32 { return inlineMax }

// Counter is of meta.Tx.
func (k knownTx) Counter(name meta.Counter, _ int64) (int64, error) {
	if n, known := k.c.counter(name); known {
		return n, nil
	}
	return 0, errUnknown
}

// SetInode is of meta.Tx, as the other Set methods: queries write nothing.
func (k knownTx) SetInode(sys.Ino, *metapb.Attr) error { return errUnknown }

// SetDentry is of meta.Tx.
func (k knownTx) SetDentry(sys.Ino, []byte, *metapb.Dentry) error { return errUnknown }

// SetChunk is of meta.Tx.
func (k knownTx) SetChunk(sys.Ino, uint32, *metapb.Chunk) error { return errUnknown }

// SetXattrs is of meta.Tx.
func (k knownTx) SetXattrs(sys.Ino, *metapb.Xattrs) error { return errUnknown }
