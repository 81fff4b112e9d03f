package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"slices"
)

// Sizes of the ELF64 format (elf(5)), in bytes.
const (
	headerBytes  = 64
	programBytes = 56
	sectionBytes = 64
)

// alignment is of segments in files, in bytes: the largest page of any machine.
const alignment = 64 << 10

var le = binary.LittleEndian

// image is a program as the linker has made it.
type image struct {
	raw  []byte
	file *elf.File
}

// parse reads a program that can be joined: a static one whose addresses are its own.
func parse(name string, raw []byte) (image, error) {
	f, err := elf.NewFile(bytes.NewReader(raw))
	if err != nil {
		return image{}, fmt.Errorf("%s: %w", name, err)
	}
	if f.Class != elf.ELFCLASS64 || f.Data != elf.ELFDATA2LSB || f.Type != elf.ET_EXEC || len(f.Progs) == 0 {
		return image{}, fmt.Errorf("%s: expected a static program of 64 bits, found %v %v %v", name, f.Class, f.Data, f.Type)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC || p.Type == elf.PT_TLS {
			return image{}, fmt.Errorf("%s: it has a segment %v: build it with CGO_ENABLED=0", name, p.Type)
		}
	}
	return image{raw, f}, nil
}

// loads are the segments that the kernel maps, in the order of their addresses.
func (i image) loads() (ps []elf.ProgHeader) {
	for _, p := range i.file.Progs {
		if p.Type == elf.PT_LOAD {
			ps = append(ps, p.ProgHeader)
		}
	}
	slices.SortFunc(ps, func(a, b elf.ProgHeader) int { return int(int64(a.Vaddr) - int64(b.Vaddr)) })
	return ps
}

// room is how many bytes of the file's beginning nothing but headers uses.
func (i image) room() uint64 {
	least := uint64(len(i.raw))
	for _, s := range i.file.Sections {
		if s.Type != elf.SHT_NULL && s.Type != elf.SHT_NOBITS {
			least = min(least, s.Offset)
		}
	}
	return least
}

// join makes a file with both programs: the client's as it is, and behind it the
// node's, whose addresses must not meet the client's (the linker's -T). In place of the
// client's section table, behind the program headers of both, is the choice that the
// file begins with. The section table is the node's, so that tools find its symbols.
func join(client, node image) ([]byte, error) {
	if client.file.Machine != node.file.Machine {
		return nil, fmt.Errorf("the client's program is for %v, the node's for %v", client.file.Machine, node.file.Machine)
	}
	lower, upper := client.loads(), node.loads()
	if len(lower) == 0 || len(upper) == 0 || lower[0].Off != 0 || lower[0].Flags&elf.PF_X == 0 {
		return nil, fmt.Errorf("expected the first segments to hold the headers and the text")
	}
	if end := lower[len(lower)-1]; end.Vaddr+end.Memsz > upper[0].Vaddr {
		return nil, fmt.Errorf("the client's program ends at %#x, behind the beginning of the node's, %#x: link that with -T", end.Vaddr+end.Memsz, upper[0].Vaddr)
	}
	shift := uint64(len(client.raw)+alignment-1) / alignment * alignment
	progs := slices.Clone(lower)
	for _, p := range upper {
		p.Off += shift
		progs = append(progs, p)
	}
	for _, p := range client.file.Progs {
		if p.Type != elf.PT_LOAD && p.Type != elf.PT_PHDR && p.Type != elf.PT_NOTE {
			progs = append(progs, p.ProgHeader) // what the stack may do
		}
	}
	begin := uint64(headerBytes+programBytes*len(progs)+15) &^ 15
	choice, err := choose(client.file.Machine, client.file.Entry, node.file.Entry)
	if err != nil {
		return nil, err
	}
	if end := begin + uint64(len(choice)); end > client.room() {
		return nil, fmt.Errorf("the headers of the client's program have %d bytes: %d are needed", client.room(), end)
	}
	out := make([]byte, shift, shift+uint64(len(node.raw)))
	copy(out, client.raw)
	clear(out[headerBytes:client.room()])
	for i, p := range progs {
		putProgram(out[headerBytes+programBytes*i:], p)
	}
	copy(out[begin:], choice)
	out = append(out, node.raw...)
	sections := shift + le.Uint64(node.raw[0x28:])
	for at := sections; at < sections+sectionBytes*uint64(len(node.file.Sections)); at += sectionBytes {
		if elf.SectionType(le.Uint32(out[at+0x04:])) != elf.SHT_NULL {
			le.PutUint64(out[at+0x18:], le.Uint64(out[at+0x18:])+shift) // sh_offset
		}
	}
	le.PutUint64(out[0x18:], lower[0].Vaddr+begin) // e_entry
	le.PutUint64(out[0x20:], headerBytes)          // e_phoff
	le.PutUint64(out[0x28:], sections)             // e_shoff
	le.PutUint16(out[0x38:], uint16(len(progs)))   // e_phnum
	copy(out[0x3c:0x40], node.raw[0x3c:0x40])      // e_shnum, e_shstrndx
	return out, nil
}

func putProgram(b []byte, p elf.ProgHeader) {
	le.PutUint32(b, uint32(p.Type))
	le.PutUint32(b[4:], uint32(p.Flags))
	for i, v := range []uint64{p.Off, p.Vaddr, p.Paddr, p.Filesz, p.Memsz, p.Align} {
		le.PutUint64(b[8+8*i:], v)
	}
}
