package config

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/BurntSushi/toml"
)

// unknownKeys words the keys that no field of v took, "" when there is none.
// A table that is unknown is told once, without what is in it.
func unknownKeys(keys []toml.Key, v any) string {
	known := knownKeys(reflect.TypeOf(v).Elem(), "")
	var told, parts []string
	for _, k := range keys {
		key := k.String()
		if hasParent(told, key) {
			continue
		}
		told = append(told, key)
		parts = append(parts, fmt.Sprintf("key %q is not known: did you mean %q?", key, nearest(key, known)))
	}
	return strings.Join(parts, " ")
}

// otherKind says that a file is a client's where a node's is wanted, or the
// other way round, as the keys that only one of them has tell.
func otherKind(md toml.MetaData, v any) string {
	switch v.(type) {
	case *Node:
		if md.IsDefined("nodes") && !md.IsDefined("voters") {
			return "this is the configuration of a client: give a node's, which says its id, dir and voters"
		}
	case *Client:
		if md.IsDefined("voters") && !md.IsDefined("nodes") {
			return "this is the configuration of a node: give a client's, which lists the nodes"
		}
	}
	return ""
}

func hasParent(told []string, key string) bool {
	for _, t := range told {
		if key == t || strings.HasPrefix(key, t+".") {
			return true
		}
	}
	return false
}

// knownKeys lists the dotted keys of a struct in the order of its fields,
// tables before what is in them.
func knownKeys(t reflect.Type, prefix string) []string {
	var keys []string
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		if name == "" || name == "-" {
			continue
		}
		keys = append(keys, prefix+name)
		ft := f.Type
		if ft.Kind() == reflect.Slice {
			ft = ft.Elem()
		}
		if ft.Kind() == reflect.Struct {
			keys = append(keys, knownKeys(ft, prefix+name+".")...)
		}
	}
	return keys
}

// nearest returns the known key with the fewest edits from key. A key that
// stands in the wrong table is nearest to the same name in the right one.
func nearest(key string, known []string) string {
	best, bestCost := "", -1
	for _, k := range known {
		cost := distance(key, k)
		if inTable := strings.LastIndexByte(k, '.'); inTable >= 0 || strings.Contains(key, ".") {
			cost = min(cost, 1+distance(key[strings.LastIndexByte(key, '.')+1:], k[inTable+1:]))
		}
		if bestCost < 0 || cost < bestCost {
			best, bestCost = k, cost
		}
	}
	return best
}

// distance is Levenshtein's: the fewest insertions, deletions and
// replacements of bytes that turn a into b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
