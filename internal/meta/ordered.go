package meta

import (
	"cmp"
	"slices"
)

// ordered is a map that can be walked in key order. Keys mostly come in
// ascending order (inode numbers, cookies, chunk numbers), so that a new key is
// an append; a deleted one stays in the list until half of it is dead.
type ordered[K cmp.Ordered, V any] struct {
	rows map[K]V
	keys []K // ascending; those not in rows are dead
}

func (o *ordered[K, V]) get(k K) (V, bool) {
	v, ok := o.rows[k]
	return v, ok
}

func (o *ordered[K, V]) set(k K, v V) {
	if o.rows == nil {
		o.rows = make(map[K]V)
	}
	n := len(o.rows)
	o.rows[k] = v
	if len(o.rows) == n {
		return
	}
	if len(o.keys) == 0 || k > o.keys[len(o.keys)-1] {
		o.keys = append(o.keys, k)
		return
	}
	if i, dead := slices.BinarySearch(o.keys, k); !dead {
		o.keys = slices.Insert(o.keys, i, k)
	}
}

func (o *ordered[K, V]) delete(k K) {
	delete(o.rows, k)
	if len(o.keys) > 2*len(o.rows)+32 {
		o.keys = slices.DeleteFunc(o.keys, func(k K) bool {
			_, live := o.rows[k]
			return !live
		})
	}
}

// scan calls fn for the keys from k on, k itself included, in order.
func (o *ordered[K, V]) scan(k K, fn func(K, V) bool) {
	i, _ := slices.BinarySearch(o.keys, k)
	for _, k := range o.keys[i:] {
		if v, live := o.rows[k]; live && !fn(k, v) {
			return
		}
	}
}

// next returns the first key from k on.
func (o *ordered[K, V]) next(k K) (first K, ok bool) {
	o.scan(k, func(k K, _ V) bool {
		first, ok = k, true
		return false
	})
	return first, ok
}
