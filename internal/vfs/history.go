package vfs

import (
	"container/list"

	"github.com/koinon/koinon/internal/sys"
)

// historyMax is how many closed files an FS remembers.
const historyMax = 16 << 10

// A memory is what an FS knows of a file that it has closed. Versions tell
// whether it still holds: a version names one content.
type memory struct {
	ino    sys.Ino
	seen   uint64 // the version whose bytes passed through this mount; 0 for none
	synced uint64 // the version whose blocks are all on stable storage; 0 for none
}

// history remembers the files that were closed last. FS.mu guards it.
type history struct {
	order list.List // of memory, the latest first
	index map[sys.Ino]*list.Element
}

func (h *history) init() { h.index = make(map[sys.Ino]*list.Element) }

func (h *history) get(ino sys.Ino) memory {
	if e := h.index[ino]; e != nil {
		return e.Value.(memory)
	}
	return memory{ino: ino}
}

func (h *history) put(m memory) {
	if e := h.index[m.ino]; e != nil {
		e.Value = m
		h.order.MoveToFront(e)
		return
	}
	h.index[m.ino] = h.order.PushFront(m)
	if h.order.Len() > historyMax {
		last := h.order.Back()
		delete(h.index, last.Value.(memory).ino)
		h.order.Remove(last)
	}
}
