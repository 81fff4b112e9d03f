package wire

import (
	"encoding/binary"
	"fmt"
)

// frameKind says what a frame is. The numbers are part of the protocol.
type frameKind uint8

const (
	kindRequest frameKind = 1
	kindReply   frameKind = 2
	kindError   frameKind = 3
	kindOneWay  frameKind = 4
	kindData    frameKind = 5 // a further segment of a message
	kindCancel  frameKind = 6
	kindPing    frameKind = 7
	kindPong    frameKind = 8
	kindGoAway  frameKind = 9  // the server is closing: send no more requests
	kindPass    frameKind = 10 // for the next connection
)

// The flags of a frame.
const (
	flagMore        = 1 << 0 // further segments follow
	flagAbort       = 1 << 1 // the message is given up
	flagNotExecuted = 1 << 2 // the request of this error was not executed
)

const (
	// frameSize is the size of the fixed part of a frame, in bytes.
	frameSize = 32
	// segmentSize is the most payload one frame carries. It bounds how long
	// a small message waits for a large one.
	segmentSize = 256 << 10
	// smallMessage is the most header and payload that are copied into the
	// writer's buffer; the payload of a larger message is not copied.
	smallMessage = 32 << 10
)

// frame is the fixed part of a frame, docs/formats/wire.md.
type frame struct {
	kind       frameKind
	flags      uint8
	method     Method
	headerLen  uint32
	payloadLen uint32 // in this frame
	total      uint32 // payload of the whole message
	id         uint64
	timeoutUs  uint32 // of a request: time left until its deadline; 0 for none
}

// append writes the fixed part at the end of b.
func (f *frame) append(b []byte) []byte {
	b = append(b, byte(f.kind), f.flags)
	b = binary.LittleEndian.AppendUint16(b, uint16(f.method))
	b = binary.LittleEndian.AppendUint32(b, f.headerLen)
	b = binary.LittleEndian.AppendUint32(b, f.payloadLen)
	b = binary.LittleEndian.AppendUint32(b, f.total)
	b = binary.LittleEndian.AppendUint64(b, f.id)
	b = binary.LittleEndian.AppendUint32(b, f.timeoutUs)
	return append(b, 0, 0, 0, 0)
}

// parseFrame reads and checks the fixed part of a frame.
func parseFrame(b *[frameSize]byte) (frame, error) {
	f := frame{
		kind:       frameKind(b[0]),
		flags:      b[1],
		method:     Method(binary.LittleEndian.Uint16(b[2:])),
		headerLen:  binary.LittleEndian.Uint32(b[4:]),
		payloadLen: binary.LittleEndian.Uint32(b[8:]),
		total:      binary.LittleEndian.Uint32(b[12:]),
		id:         binary.LittleEndian.Uint64(b[16:]),
		timeoutUs:  binary.LittleEndian.Uint32(b[24:]),
	}
	if r := binary.LittleEndian.Uint32(b[28:]); r != 0 {
		return f, malformed("reserved bytes are %#x, expected 0", r)
	}
	return f, f.check()
}

// check returns an error unless the frame could have been sent by us.
func (f *frame) check() error {
	switch f.kind {
	case kindRequest, kindReply, kindError, kindOneWay:
		return f.checkFirst()
	case kindData:
		return f.checkData()
	case kindCancel, kindPing, kindPong, kindGoAway:
		if f.flags != 0 || f.method != 0 || f.headerLen != 0 || f.payloadLen != 0 || f.total != 0 || f.timeoutUs != 0 {
			return malformed("a control frame of kind %d carries data", f.kind)
		}
		if (f.id == 0) != (f.kind == kindGoAway) {
			return malformed("a control frame of kind %d has ID %d", f.kind, f.id)
		}
		return nil
	}
	if f.kind == kindPass {
		if f.flags != 0 || f.method != 0 || f.headerLen != 0 || f.payloadLen != f.total || f.total > passMax || f.timeoutUs != 0 || f.id != 0 {
			return malformed("a pass in a frame with flags %#x, method %d, a header of %d and a payload of %d of %d bytes", f.flags, f.method, f.headerLen, f.payloadLen, f.total)
		}
		return nil
	}
	return malformed("unknown kind %d", f.kind)
}

// checkFirst checks the frame that begins a message.
func (f *frame) checkFirst() error {
	allowed := uint8(flagMore)
	if f.kind == kindError {
		allowed |= flagNotExecuted
	}
	more := f.flags&flagMore != 0
	switch {
	case f.flags&^allowed != 0:
		return malformed("kind %d has flags %#x", f.kind, f.flags)
	case f.id == 0:
		return malformed("kind %d has no ID", f.kind)
	case f.headerLen > MaxHeader:
		return malformed("header of %d bytes, the limit is %d", f.headerLen, MaxHeader)
	case f.total > MaxPayload:
		return malformed("payload of %d bytes, the limit is %d", f.total, MaxPayload)
	case f.payloadLen > segmentSize:
		return malformed("segment of %d bytes, the limit is %d", f.payloadLen, segmentSize)
	case more && (f.payloadLen == 0 || f.payloadLen >= f.total), !more && f.payloadLen != f.total:
		return malformed("first segment of %d bytes in a payload of %d", f.payloadLen, f.total)
	case f.timeoutUs != 0 && f.kind != kindRequest:
		return malformed("kind %d has a deadline", f.kind)
	case f.method != 0 && (f.kind == kindReply || f.kind == kindError):
		return malformed("a reply names method %d", f.method)
	}
	return nil
}

// checkData checks a frame that continues a message.
func (f *frame) checkData() error {
	abort := f.flags == flagAbort
	switch {
	case f.flags != 0 && f.flags != flagMore && !abort:
		return malformed("data has flags %#x", f.flags)
	case f.id == 0 || f.method != 0 || f.headerLen != 0 || f.timeoutUs != 0:
		return malformed("data carries more than data")
	case f.total > MaxPayload || f.payloadLen > segmentSize || f.payloadLen > f.total:
		return malformed("segment of %d bytes in a payload of %d", f.payloadLen, f.total)
	case abort != (f.payloadLen == 0):
		return malformed("segment of %d bytes with flags %#x", f.payloadLen, f.flags)
	}
	return nil
}

// size is what the message that f begins counts against the budget, in bytes.
func (f *frame) size() int { return frameSize + int(f.headerLen) + int(f.total) }

// malformedError is the error of bytes that we would never have sent. The
// connection that they came from is closed.
type malformedError string

func (m malformedError) Error() string { return "malformed frame: " + string(m) }

func malformed(format string, args ...any) error {
	return malformedError(fmt.Sprintf(format, args...))
}
