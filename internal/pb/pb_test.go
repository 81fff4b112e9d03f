package pb_test

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "github.com/koinon/koinon/internal/block/blockpb"
	_ "github.com/koinon/koinon/internal/cluster/clusterpb"
	_ "github.com/koinon/koinon/internal/kv/kvpb"
	_ "github.com/koinon/koinon/internal/meta/metapb"
	_ "github.com/koinon/koinon/internal/meta/remote/remotepb"
	"github.com/koinon/koinon/internal/pb"
	_ "github.com/koinon/koinon/internal/placement/placementpb"
	_ "github.com/koinon/koinon/internal/proc/procpb"
	_ "github.com/koinon/koinon/internal/replica/replicapb"
	_ "github.com/koinon/koinon/internal/wire/wirepb"
)

// types calls fn for each message there is.
func types(t *testing.T, fn func(t *testing.T, mt protoreflect.MessageType)) {
	n := 0
	protoregistry.GlobalTypes.RangeMessages(func(mt protoreflect.MessageType) bool {
		if name := mt.Descriptor().FullName(); strings.HasPrefix(string(name), "koinon.") {
			n++
			t.Run(string(name), func(t *testing.T) { fn(t, mt) })
		}
		return true
	})
	if n < 200 {
		t.Fatalf("found %d messages only", n)
	}
}

// TestAsProtobuf holds the made code against protobuf's own, for all messages.
func TestAsProtobuf(t *testing.T) {
	types(t, func(t *testing.T, mt protoreflect.MessageType) {
		rnd := rand.New(rand.NewPCG(1, 2))
		for range 20 {
			m := mt.New()
			fill(rnd, m, 3)
			in := m.Interface()
			ours := pb.Marshal(in.(pb.Message))
			if n := pb.Size(in.(pb.Message)); n != len(ours) || n != proto.Size(in) {
				t.Fatalf("%d bytes, the size is %d, protobuf says %d: %v", len(ours), n, proto.Size(in), in)
			}
			if again := pb.Append([]byte("x"), in.(pb.Message)); !bytes.Equal(again[1:], ours) || again[0] != 'x' {
				t.Fatal("the same message has other bytes the second time")
			}
			theirs, err := proto.MarshalOptions{Deterministic: true}.Marshal(in)
			if err != nil || !bytes.Equal(ours, theirs) {
				t.Fatalf("%v\nis %x\nby protobuf %x, %v", in, ours, theirs, err)
			}
			fromOurs, fromTheirs := mt.New().Interface(), mt.New().Interface()
			fill(rnd, fromTheirs.ProtoReflect(), 3) // is overwritten
			if err := proto.Unmarshal(ours, fromOurs); err != nil || !proto.Equal(in, fromOurs) {
				t.Fatalf("%v\nis read by protobuf as\n%v, %v", in, fromOurs, err)
			}
			if err := pb.Unmarshal(theirs, fromTheirs.(pb.Message)); err != nil || !proto.Equal(in, fromTheirs) {
				t.Fatalf("%v\nby protobuf is read as\n%v, %v", in, fromTheirs, err)
			}
			if c := reflect.ValueOf(in).MethodByName("CloneVT").Call(nil)[0].Interface().(proto.Message); !proto.Equal(in, c) {
				t.Fatalf("%v\nhas the clone\n%v", in, c)
			}
		}
	})
}

// fill sets fields at random, to some depth.
func fill(rnd *rand.Rand, m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		switch f := fields.Get(i); {
		case rnd.IntN(3) == 0 || depth == 0 && f.Message() != nil:
		case f.IsList():
			l := m.Mutable(f).List()
			for range rnd.IntN(4) {
				if f.Message() == nil {
					l.Append(scalar(rnd, f))
				} else {
					fill(rnd, l.AppendMutable().Message(), depth-1)
				}
			}
		case f.Message() != nil:
			fill(rnd, m.Mutable(f).Message(), depth-1)
		default:
			m.Set(f, scalar(rnd, f))
		}
	}
	if rnd.IntN(4) == 0 { // a field of a newer version, which must survive
		m.SetUnknown(protoreflect.RawFields{0xfa, 0xff, 0x0f, 2, 'n', 'w'})
	}
}

func scalar(rnd *rand.Rand, f protoreflect.FieldDescriptor) protoreflect.Value {
	n := rnd.Uint64() >> rnd.IntN(64)
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(n%2 == 1)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(n % 9))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind:
		return protoreflect.ValueOfInt64(int64(n))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(n)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(strings.Repeat("ä", int(n%5)))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(bytes.Repeat([]byte{byte(n)}, int(n%5)))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(n) / 3)
	}
	panic("a field of another kind: " + f.Kind().String())
}

// TestDamaged has all messages read what was cut off or altered: an error or another message, nothing else.
func TestDamaged(t *testing.T) {
	types(t, func(t *testing.T, mt protoreflect.MessageType) {
		rnd := rand.New(rand.NewPCG(3, 4))
		for range 50 {
			m := mt.New()
			fill(rnd, m, 3)
			raw := pb.Marshal(m.Interface().(pb.Message))
			if len(raw) == 0 {
				continue
			}
			for range 1 + rnd.IntN(3) {
				raw[rnd.IntN(len(raw))] = byte(rnd.Uint32())
			}
			raw = raw[:rnd.IntN(len(raw)+1)]
			got := mt.New().Interface().(pb.Message)
			if pb.Unmarshal(raw, got) == nil {
				pb.Marshal(got)
			}
		}
	})
}

// TestNoMaps keeps the bytes of equal messages equal: maps have no order.
func TestNoMaps(t *testing.T) {
	types(t, func(t *testing.T, mt protoreflect.MessageType) {
		fields := mt.Descriptor().Fields()
		for i := range fields.Len() {
			if f := fields.Get(i); f.IsMap() {
				t.Errorf("%s is a map: make it a list, sorted by its keys", f.FullName())
			}
		}
	})
}

// TestNil has a message that is not there encode as an empty one.
func TestNil(t *testing.T) {
	types(t, func(t *testing.T, mt protoreflect.MessageType) {
		if b := pb.Marshal(mt.Zero().Interface().(pb.Message)); b == nil || len(b) != 0 {
			t.Fatalf("found %v", b)
		}
	})
}
