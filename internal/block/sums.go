package block

import (
	"hash/crc32"

	"github.com/koinon/koinon/internal/sys"
)

// Sums are the CRC32C of each sys.PageSize bytes of a block; the last page may
// be short. The writing client computes them, every copy keeps them, and the
// reading client checks them.
type Sums []uint32

// PageCount returns how many pages size bytes have.
func PageCount(size int) int { return (size + sys.PageSize - 1) / sys.PageSize }

// Checksum returns the CRC32C of data (RFC 3720, appendix B.4), which both amd64
// and arm64 compute in hardware. The first call makes what that needs, which takes
// long for a short command: it must not be a package's variable.
func Checksum(data []byte) uint32 {
	return crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))
}

// SumData returns the sums of a block that holds data.
func SumData(data []byte) Sums { return AppendSums(make(Sums, 0, PageCount(len(data))), data) }

// AppendSums appends the sums of a block that holds data to dst.
func AppendSums(dst Sums, data []byte) Sums {
	for len(data) > sys.PageSize {
		dst = append(dst, Checksum(data[:sys.PageSize]))
		data = data[sys.PageSize:]
	}
	if len(data) > 0 {
		dst = append(dst, Checksum(data))
	}
	return dst
}

// Match reports whether s are the sums of a block that holds data.
func (s Sums) Match(data []byte) bool {
	if len(s) != PageCount(len(data)) {
		return false
	}
	for _, sum := range s {
		n := min(len(data), sys.PageSize)
		if Checksum(data[:n]) != sum {
			return false
		}
		data = data[n:]
	}
	return true
}

// Equal reports whether s and o are the same sums.
func (s Sums) Equal(o Sums) bool {
	if len(s) != len(o) {
		return false
	}
	for i := range s {
		if s[i] != o[i] {
			return false
		}
	}
	return true
}

// Pages returns the pages [first, end) that hold n bytes from off on; an empty
// range is held by none.
func Pages(off, n int) (first, end int) {
	if n == 0 {
		return off / sys.PageSize, off / sys.PageSize
	}
	return off / sys.PageSize, PageCount(off + n)
}

// Proof lets a reader of some bytes of a block check them against the writer's
// sums without the rest of their pages. A reader of whole pages has Before and
// After zero.
type Proof struct {
	// Size is the size of the whole block in bytes.
	Size int
	// Sums are the writer's sums of the pages that hold the range.
	Sums Sums
	// Before is the CRC32C of the bytes of the first page before the range,
	// After of those of the last page after it, as the sender read them.
	Before, After uint32
}

// Check reports whether data are the bytes from off on of the block that p
// speaks of. A wrong bit anywhere in the pages, also in the part that was not
// sent, makes it false: CRCs of parts are joined to that of the page.
func (p *Proof) Check(off int, data []byte) bool {
	if off < 0 || off > p.Size || len(data) > p.Size-off {
		return false
	}
	first, end := Pages(off, len(data))
	if len(p.Sums) != end-first {
		return false
	}
	for page := first; page < end; page++ {
		start, stop := page*sys.PageSize, min((page+1)*sys.PageSize, p.Size)
		from, to := max(start, off), min(stop, off+len(data))
		sum := Checksum(data[from-off : to-off])
		if from > start {
			sum = joinSums(p.Before, sum, to-from)
		}
		if to < stop {
			sum = joinSums(sum, p.After, stop-to)
		}
		if sum != p.Sums[page-first] {
			return false
		}
	}
	return true
}

// joinSums returns the CRC32C of a and b in a row from their CRC32Cs and b's
// length in bytes: crc(ab) = crc(a)*x^(8*len(b)) + crc(b) over GF(2) modulo
// the polynomial (the inversions at both ends cancel out), as crc32_combine of
// zlib.
func joinSums(a, b uint32, lenB int) uint32 {
	shifted := a
	for k := 0; lenB > 0; k, lenB = k+1, lenB>>1 {
		if lenB&1 != 0 {
			shifted = mulMod(shifted, bytePowers[k])
		}
	}
	return shifted ^ b
}

// bytePowers[k] is x^(8*2^k) modulo the polynomial, bits reflected, enough for
// the length of a page.
var bytePowers = func() (p [20]uint32) {
	p[0] = 1 << (31 - 8)
	for k := 1; k < len(p); k++ {
		p[k] = mulMod(p[k-1], p[k-1])
	}
	return p
}()

// mulMod multiplies two polynomials over GF(2), bits reflected (bit 31 is
// x^0), modulo the Castagnoli polynomial.
func mulMod(a, b uint32) uint32 {
	var product uint32
	for i := 31; i >= 0; i-- {
		product ^= b & -(a >> uint(i) & 1)
		b = b>>1 ^ crc32.Castagnoli&-(b&1)
	}
	return product
}
