package wire

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/koinon/koinon/internal/sys"
)

// The versions of the protocol that this build speaks. Two builds use the
// highest that both speak.
const (
	versionNewest uint16 = 1
	versionOldest uint16 = 1
)

// prefaceSize is the size of a preface, in bytes.
const prefaceSize = 24

const prefaceMagic = "KOIN"

// prefaceWantsPass is a flag of a client's preface.
const prefaceWantsPass = 1 << 0

// preface is what each side says once after the TLS handshake, the server
// first.
type preface struct {
	newest, oldest uint16
	class          Class  // from the client
	wantsPass      bool   // from the client
	maxRequests    uint32 // from the server
	maxBytes       uint32 // from the server
}

func (p *preface) encode() []byte {
	b := make([]byte, 0, prefaceSize)
	b = append(b, prefaceMagic...)
	b = binary.LittleEndian.AppendUint16(b, p.newest)
	b = binary.LittleEndian.AppendUint16(b, p.oldest)
	var flags byte
	if p.wantsPass {
		flags |= prefaceWantsPass
	}
	b = append(b, byte(p.class), flags, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, p.maxRequests)
	b = binary.LittleEndian.AppendUint32(b, p.maxBytes)
	return append(b, 0, 0, 0, 0)
}

// readPreface reads the other side's preface and checks that there is a
// version that both speak. Reserved bytes are for later versions and ignored.
func readPreface(r io.Reader) (preface, error) {
	var b [prefaceSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return preface{}, err
	}
	if string(b[:4]) != prefaceMagic {
		return preface{}, sys.E(sys.NotSupported, fmt.Sprintf("the peer does not speak Koinon's protocol: it began with %q", b[:4]))
	}
	p := preface{
		newest:      binary.LittleEndian.Uint16(b[4:]),
		oldest:      binary.LittleEndian.Uint16(b[6:]),
		class:       Class(b[8]),
		wantsPass:   b[9]&prefaceWantsPass != 0,
		maxRequests: binary.LittleEndian.Uint32(b[12:]),
		maxBytes:    binary.LittleEndian.Uint32(b[16:]),
	}
	return p, p.check(versionOldest, versionNewest)
}

// check returns an error when the peer and we have no version in common.
func (p *preface) check(oldest, newest uint16) error {
	switch {
	case p.oldest > p.newest:
		return sys.E(sys.NotSupported, fmt.Sprintf("the peer says that it speaks versions %d to %d of the protocol", p.oldest, p.newest))
	case p.oldest > newest:
		return sys.E(sys.NotSupported, fmt.Sprintf("the peer speaks versions %d to %d of the protocol, this build %d to %d: upgrade this side",
			p.oldest, p.newest, oldest, newest))
	case p.newest < oldest:
		return sys.E(sys.NotSupported, fmt.Sprintf("the peer speaks versions %d to %d of the protocol, this build %d to %d: upgrade the peer",
			p.oldest, p.newest, oldest, newest))
	}
	return nil
}
