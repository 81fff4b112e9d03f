package commit

import "slices"

// Commit is a committed transaction and the participants that have to make the change.
type Commit struct {
	Tx      Tx
	Parties []Party // ascending; not to be written to
}

// Table is what the replicas of the coordinator's group agree about: the state to which the records of their log add up.
// It is plain data, for the driver to store with the rest of the replicated state. The zero value is the table of an
// empty log. It is not safe for concurrent use.
type Table struct {
	Epoch   uint64   // of the newest coordinator; zero before the first
	Commits []Commit // not yet forgotten, by ascending Tx

	bugs Bug
}

// Apply carries out the next record of the log, and reports whether it took effect. After an open the new
// coordinator's epoch is t.Epoch. A commit takes no effect when a later epoch has been opened before it: from then on
// the transaction counts as aborted. The same record may come twice.
func (t *Table) Apply(r Record) bool {
	at, found := slices.BinarySearchFunc(t.Commits, r.Tx, func(c Commit, tx Tx) int { return c.Tx.Compare(tx) })
	switch r.Kind {
	case RecordOpen:
		if !t.bugs.has(BugReuseEpoch) || t.Epoch == 0 {
			t.Epoch++
		}
		return true
	case RecordCommit:
		switch {
		case r.Tx.Epoch > t.Epoch:
			broken("commit of %v expected in an epoch up to %d", r.Tx, t.Epoch)
		case found:
			if !slices.Equal(t.Commits[at].Parties, r.Parties) {
				broken("commit of %v expected with parties %v, found %v", r.Tx, t.Commits[at].Parties, r.Parties)
			}
			return true
		case r.Tx.Epoch < t.Epoch && !t.bugs.has(BugNoFence):
			return false
		}
		t.Commits = slices.Insert(t.Commits, at, Commit{r.Tx, r.Parties})
		return true
	case RecordForget:
		if found {
			t.Commits = slices.Delete(t.Commits, at, at+1)
		}
		return found
	}
	broken("a record of a known kind expected, found %v", r.Kind)
	return false
}
