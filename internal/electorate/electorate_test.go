package electorate

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/koinon/koinon/internal/sys"
)

// parse reads nodes like "1VL 2l 3 4lx/b": V voter, L leader, l fit learner, s
// learner that is not fit, u not fit either, x lost, d leaving, and after a slash the zone.
func parse(t *testing.T, text string) []Node {
	t.Helper()
	var nodes []Node
	for _, word := range strings.Fields(text) {
		word, zone, _ := strings.Cut(word, "/")
		n := Node{ID: sys.NodeID(word[0] - '0'), Zone: zone}
		for _, c := range word[1:] {
			switch c {
			case 'V':
				n.Voter, n.Fit = true, true
			case 'L':
				n.Leader = true
			case 'l':
				n.Learner, n.Fit = true, true
			case 's':
				n.Learner = true
			case 'x':
				n.Lost, n.Fit = true, false
			case 'u':
				n.Fit = false
			case 'd':
				n.Leaving = true
			default:
				t.Fatalf("what is %q?", c)
			}
		}
		nodes = append(nodes, n)
	}
	return nodes
}

func TestNext(t *testing.T) {
	for _, tc := range []struct{ name, nodes, want string }{
		{"one alone", "1VL", ""},
		{"a second one learns", "1VL 2", "[1] [2]"},
		{"a second one does not vote", "1VL 2l", ""},
		{"a third one learns", "1VL 2l 3", "[1] [2 3]"},
		{"not before both are fit", "1VL 2l 3s", ""},
		{"three vote", "1VL 2l 3l", "[1 2 3] []"},
		{"a fourth one learns only", "1V 2VL 3V 4l", ""},
		{"five vote", "1V 2VL 3V 4l 5l", "[1 2 3 4 5] []"},
		{"a sixth one learns only", "1V 2VL 3V 4V 5V 6l", ""},
		{"a lost voter is replaced", "1Vx 2VL 3V 4l", "[2 3 4] [1]"},
		{"a lost one without a spare stays", "1Vx 2VL 3V", ""},
		{"who is lost is no spare", "1Vx 2VL 3V 4lx", ""},
		{"who leaves is replaced", "1VLd 2V 3V 4l", "[2 3 4] [1]"},
		{"who leaves, without a spare", "1VLd 2V 3V", "[2 3] [1]"},
		{"the last two stay", "2VL 3V", ""},
		{"two become three", "2VL 3V 4l", "[2 3 4] []"},
		{"four become three, not the leader", "1V 2V 3V 4VL", "[1 2 4] [3]"},
		{"four become three, the lost one", "1Vx 2V 3V 4VL", "[2 3 4] [1]"},
		{"four become three, one that lags or is away", "1V 2Vu 3V 4VL", "[1 3 4] [2]"},
		{"four become three, the lost one before one that lags", "1Vx 2Vu 3V 4VL", "[2 3 4] [1]"},
		{"five become three, by one that leaves and one that cannot vote", "4VL 6Vud 7Vu 8V 9V", "[4 8 9] [6 7]"},
		{"one that lags stays where there is no need", "1Vu 2VL 3V 4l", ""},
		{"five become three", "1V 2V 3V 4VL 5Vd", "[1 2 4] [3 5]"},
		{"the only one cannot leave", "1VLd", ""},
		{"the only one leaves to another", "1VLd 2l", "[2] [1]"},
		{"all leave, and another one is new", "1VLd 2 3Vxd 4Vxd", "[1 3 4] [2]"},
		{"all leave to the new one", "1VLd 2l 3Vxd 4Vxd", "[2] [1 3 4]"},
		{"zones are spread", "1VL/a 2l/a 3l/a 4l/b 5s/c", "[1 2 4] [3 5]"},
		{"a lost one is replaced from its own zone", "1VL/a 2V/b 3Vx/c 4l/a 5s/b 6l/c", "[1 2 6] [3 4 5]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			voters, learners, change := Next(parse(t, tc.nodes))
			got := ""
			if change {
				got = fmt.Sprint(ints(voters), ints(learners))
			}
			if got != tc.want {
				t.Errorf("%s: %q, want %q", tc.nodes, got, tc.want)
			}
		})
	}
}

func ints(ids []sys.NodeID) []int {
	out := make([]int, len(ids))
	for i, id := range ids {
		out[i] = int(id)
	}
	return out
}

// TestNextSettles lets nodes of any kind follow Next's advice: what it asks for
// is allowed, and it comes to an end with the right number of voters.
func TestNextSettles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		count := rapid.IntRange(1, 9).Draw(t, "nodes")
		nodes := make([]Node, count)
		for i := range nodes {
			n := &nodes[i]
			n.ID = sys.NodeID(i + 1)
			n.Zone = rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "zone")
			n.Voter = i == 0 || rapid.Bool().Draw(t, "voter")
			n.Learner = !n.Voter && rapid.Bool().Draw(t, "learner")
			n.Lost = i > 0 && rapid.IntRange(0, 4).Draw(t, "lost") == 0
			n.Leaving = rapid.IntRange(0, 4).Draw(t, "leaving") == 0
			n.Fit = !n.Lost
		}
		nodes[0].Leader = true
		for step := 0; ; step++ {
			voters, learners, change := Next(nodes)
			if !change {
				break
			}
			if step > 4 {
				t.Fatalf("does not settle: %+v", nodes)
			}
			apply(t, nodes, voters, learners)
		}
		able, fit, votes := 0, 0, 0
		for _, n := range nodes {
			if n.Voter {
				votes++
			}
			if !n.Leaving {
				able++
				if n.Fit {
					fit++
				}
			}
		}
		if fit == able && able > 0 && votes != size(able) && votes != 2 {
			t.Fatalf("%d of %d vote: %+v", votes, able, nodes)
		}
	})
}

func apply(t *rapid.T, nodes []Node, voters, learners []sys.NodeID) {
	if len(voters) == 0 || len(voters)+len(learners) != len(nodes) {
		t.Fatalf("voters %v, learners %v of %d nodes", voters, learners, len(nodes))
	}
	before := 0
	for _, n := range nodes {
		if n.Voter {
			before++
		}
	}
	if len(voters)%2 == 0 && len(voters) > before {
		t.Fatalf("grows from %d to %d voters", before, len(voters))
	}
	for i := range nodes {
		n := &nodes[i]
		votes := slices.Contains(voters, n.ID)
		if votes && !n.Voter && (!n.Learner || !n.Fit || n.Leaving) {
			t.Fatalf("%+v is to vote", *n)
		}
		n.Voter, n.Learner = votes, !votes
	}
}
