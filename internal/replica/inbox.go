package replica

import (
	"sync"

	"github.com/koinon/koinon/internal/sys"
)

// inbox holds messages between the transport and the driver.
type inbox struct {
	mu    sync.Mutex
	items [lanes][]inboxItem
	spare [lanes][]inboxItem
	bytes int
}

type inboxItem struct {
	from sys.NodeID
	size int
	msg  groupMessage
}

// inboxMax bounds the bytes that wait; what exceeds it is dropped, as the
// protocol allows.
const inboxMax = 64 << 20

// put queues a message, and reports false when it was dropped.
func (b *inbox) put(from sys.NodeID, m groupMessage) bool {
	size := 0
	for i := range m.msg.Entries {
		size += len(m.msg.Entries[i].Data)
	}
	lane := laneOf(size)
	b.mu.Lock()
	defer b.mu.Unlock()
	if lane == LaneBulk && b.bytes+size > inboxMax || len(b.items[LaneUrgent]) > inboxMessages {
		return false
	}
	b.bytes += size
	b.items[lane] = append(b.items[lane], inboxItem{from: from, size: size, msg: m})
	return true
}

// inboxMessages bounds the small messages that wait.
const inboxMessages = 1 << 16

// drain calls fn for all that waits, urgent messages first.
func (b *inbox) drain(fn func(from sys.NodeID, m *groupMessage)) {
	b.mu.Lock()
	items := b.items
	b.items = b.spare
	b.spare = [lanes][]inboxItem{}
	b.bytes = 0
	b.mu.Unlock()
	for lane := range items {
		for i := range items[lane] {
			fn(items[lane][i].from, &items[lane][i].msg)
		}
		clear(items[lane])
		items[lane] = items[lane][:0]
	}
	b.mu.Lock()
	b.spare = items
	b.mu.Unlock()
}
