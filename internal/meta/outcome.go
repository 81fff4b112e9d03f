package meta

import (
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// Outcome is what a command did, for the leases of those who cache.
type Outcome struct {
	// Inos are the inodes that the command changed: Recorder.Inos.
	Inos []sys.Ino
	// Attrs are the attributes of Inos as the command left them, without
	// those it deleted. They are missing when it changed more than 16.
	Attrs []*metapb.Attr
	// Order is for whoever hears of the outcome first to pass on to those
	// who see it later. This package leaves it 0.
	Order uint64
}

// outcomeAttrsMax is the most inodes whose attributes an Outcome carries.
const outcomeAttrsMax = 16

// Run is Apply with what the command did.
func Run(tx Tx, cmd *metapb.Command) (*metapb.Result, *Outcome, error) {
	touched := Touched(tx)
	res, err := Apply(touched, cmd)
	if err != nil {
		return nil, nil, err
	}
	out := &Outcome{Inos: touched.Inos()}
	if len(out.Inos) <= outcomeAttrsMax {
		out.Attrs = touched.Attrs()
	}
	return res, out, nil
}
