package mysql

import (
	"cmp"
	"slices"
)

const (
	pageFirst = 32   // rows that a scan asks for first: most want few
	pageMax   = 2048 // rows that it asks for at most
)

// keyed is a row of a scan with what it is ordered by.
type keyed[V any] struct {
	key uint64
	val V
}

// scan goes through rows in order: those that page finds and that are not
// hidden, with those of over among them.
type scan[V any] struct {
	page   func(from uint64, limit int) ([]keyed[V], error)
	over   []keyed[V]          // in any order
	hidden func(keyed[V]) bool // nil hides nothing
}

func (s *scan[V]) run(from uint64, fn func(keyed[V]) bool) error {
	slices.SortFunc(s.over, func(a, b keyed[V]) int { return cmp.Compare(a.key, b.key) })
	for len(s.over) > 0 && s.over[0].key < from {
		s.over = s.over[1:]
	}
	for limit := pageFirst; ; limit = min(limit*8, pageMax) {
		rows, err := s.page(from, limit)
		if err != nil {
			return err
		}
		for _, row := range rows {
			for len(s.over) > 0 && s.over[0].key < row.key {
				if !fn(s.over[0]) {
					return nil
				}
				s.over = s.over[1:]
			}
			if (s.hidden == nil || !s.hidden(row)) && !fn(row) {
				return nil
			}
		}
		if len(rows) < limit || rows[len(rows)-1].key+1 == 0 {
			break
		}
		from = rows[len(rows)-1].key + 1
	}
	for _, row := range s.over {
		if !fn(row) {
			return nil
		}
	}
	return nil
}
