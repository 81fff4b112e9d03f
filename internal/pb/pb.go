// Package pb encodes and decodes protobuf messages by the code that protoc-gen-go-vtproto
// makes for each (docs/decisions/0027-made-codecs.md). Package proto of protobuf does
// the same by reflection, and the first use of each message in a process takes it as
// long as a thousand later ones, which short commands feel.
//
// Equal messages have equal bytes, which replicated states need: no message holds a
// map. Text is not tested to be UTF-8, and a oneof that holds nil is left out. Functions may be called at the same time, for
// messages that nobody changes meanwhile.
package pb

import "fmt"

// Message is a pointer to a message of one of the packages whose names end in pb.
type Message interface {
	SizeVT() int
	MarshalToSizedBufferVT([]byte) (int, error)
	UnmarshalVT([]byte) error
	Reset()
}

// Marshal returns the encoding of m, which belongs to the caller; never nil.
func Marshal(m Message) []byte { return Append(nil, m) }

// Append appends the encoding of m to b.
func Append(b []byte, m Message) []byte {
	n := m.SizeVT()
	if cap(b)-len(b) < n || b == nil {
		b = append(make([]byte, 0, len(b)+n), b...)
	}
	to := b[len(b) : len(b)+n]
	if done, err := m.MarshalToSizedBufferVT(to); err != nil || done != n {
		panic(fmt.Sprintf("pb: expected a %T of %d bytes, found %d, %v", m, n, done, err)) // somebody changes it
	}
	return b[:len(b)+n]
}

// Size is how many bytes Marshal makes of m.
func Size(m Message) int { return m.SizeVT() }

// Unmarshal makes m what b encodes, and keeps nothing of b. After an error, which
// says what m should have been, m is anything.
func Unmarshal(b []byte, m Message) error {
	m.Reset()
	if err := m.UnmarshalVT(b); err != nil {
		return fmt.Errorf("%d bytes are no %T: %w", len(b), m, err)
	}
	return nil
}
