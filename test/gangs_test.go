//go:build linux

package test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/koinon/koinon"
)

// gangPlan is a gang that TestGangs submits.
type gangPlan struct {
	name    string
	size    int
	code    int // exit code of rank 0; the others succeed
	retries int
	out     bool
	sleep   time.Duration
	killed  bool // its submitting client was
}

// script is what every process of the gang runs. Its file in the tree tells of
// every start and end.
func (g *gangPlan) script(mount string) string {
	file := fmt.Sprintf("%s/proof/%s.$KOINON_RANK", mount, g.name)
	s := fmt.Sprintf("echo start $KOINON_EPOCH >> %s; sleep %.3f; ", file, g.sleep.Seconds())
	if g.out {
		s += "echo $KOINON_EPOCH > $KOINON_OUT/data.$KOINON_RANK; "
	}
	return s + fmt.Sprintf("echo end $KOINON_EPOCH >> %s; [ $KOINON_RANK != 0 ] || exit %d", file, g.code)
}

// TestGangs runs gangs while nodes, the leader and the submitting clients are
// killed at random: no gang runs in part, no job twice at once, every job ends
// with the right status, outputs are there if and only if it has succeeded, and
// every reservation is given back. `make gangs COUNT=500` does it at length.
func TestGangs(t *testing.T) {
	count := int(setting(t, "KOINON_GANGS", 60))
	seed := uint64(setting(t, "KOINON_GANGS_SEED", 1))
	d := up(t, 3)
	for _, name := range []string{"proof", "outs"} {
		if err := os.Mkdir(filepath.Join(d.mount, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	g := &gangs{dev: d, rng: rand.New(rand.NewPCG(seed, 5))}
	for i := range count {
		g.plans = append(g.plans, &gangPlan{name: fmt.Sprintf("gang%d", i), size: 1 + g.rng.IntN(3), code: []int{0, 0, 0, 3}[g.rng.IntN(4)],
			retries: g.rng.IntN(3), out: g.rng.IntN(2) == 0, sleep: time.Duration(g.rng.IntN(600)) * time.Millisecond})
	}
	stop := make(chan struct{})
	var trouble sync.WaitGroup
	kills := 0
	trouble.Go(func() { kills = g.trouble(stop) })
	g.submitAll(4)
	close(stop)
	trouble.Wait()

	procs := d.procs()
	jobs := g.ended(procs)
	slices.Sort(g.took)
	t.Logf("seed %d: %d gangs, %d jobs, %d kills of nodes, %d of clients: %v; a run took %v in the median, %v at most", seed, count, len(jobs), kills, g.clients, g.states,
		g.took[len(g.took)/2].Round(time.Millisecond), g.took[len(g.took)-1].Round(time.Millisecond))
	if kills == 0 {
		t.Fatal("nothing was killed: this proves nothing")
	}
	g.check(procs, jobs)
}

type gangs struct {
	*dev
	rng    *rand.Rand
	plans  []*gangPlan
	states map[koinon.State]int

	mu      sync.Mutex
	clients int             // killed
	took    []time.Duration // the runs in the foreground, without what they slept
}

// trouble kills nodes and starts them again until stop, and returns how often.
func (g *gangs) trouble(stop <-chan struct{}) int {
	rng := rand.New(rand.NewPCG(g.rng.Uint64(), 6))
	kills := 0
	for {
		select {
		case <-stop:
			return kills
		case <-time.After(time.Duration(200+rng.IntN(1300)) * time.Millisecond):
		}
		victim := 1 + rng.IntN(3)
		if rng.IntN(3) == 0 {
			victim = g.leader()
		}
		g.kill(victim)
		kills++
		time.Sleep(time.Duration(rng.IntN(1500)) * time.Millisecond)
		g.restart(victim)
	}
}

// submitAll submits the gangs, so many at a time, and kills some of the clients.
func (g *gangs) submitAll(workers int) {
	var wg sync.WaitGroup
	next := make(chan *gangPlan)
	for range workers {
		rng := rand.New(rand.NewPCG(g.rng.Uint64(), 7))
		wg.Go(func() {
			for p := range next {
				if p.killed = g.submit(p, rng); p.killed {
					g.mu.Lock()
					g.clients++
					g.mu.Unlock()
				}
			}
		})
	}
	for _, p := range g.plans {
		next <- p
	}
	close(next)
	wg.Wait()
}

// submit runs a gang in the foreground. It says whether it killed the client.
func (g *gangs) submit(p *gangPlan, rng *rand.Rand) (killed bool) {
	args := []string{"run", "--name", p.name, "-n", strconv.Itoa(p.size), "-c", "0.5", "--retries", strconv.Itoa(p.retries)}
	if p.out {
		args = append(args, "--out", "koinon:/outs/"+p.name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, koinonBinary(g.t), append(args, "--", "sh", "-c", p.script(g.mount))...)
	cmd.Env = append(os.Environ(), "KOINON_CONFIG="+filepath.Join(g.dir, "client.toml"))
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		g.t.Error(err)
		return false
	}
	if rng.IntN(4) == 0 {
		killed = true
		timer := time.AfterFunc(time.Duration(rng.IntN(400))*time.Millisecond, func() {
			if err := cmd.Process.Kill(); err != nil && !strings.Contains(err.Error(), "finished") {
				g.t.Error(err)
			}
		})
		defer timer.Stop()
	}
	began := time.Now()
	err := cmd.Wait()
	g.mu.Lock()
	g.took = append(g.took, time.Since(began)-p.sleep)
	g.mu.Unlock()
	if code := cmd.ProcessState.ExitCode(); !killed && code != p.code && !strings.Contains(out.String(), "lost") {
		g.t.Errorf("%s: expected exit code %d, found %v: %s", p.name, p.code, err, out.String())
	}
	return killed
}

// procs opens the process table from Go.
func (d *dev) procs() *koinon.Procs {
	d.t.Helper()
	procs, err := koinon.OpenProcs(d.t.Context(), koinon.Options{Config: filepath.Join(d.dir, "client.toml")})
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		if err := procs.Close(context.Background()); err != nil {
			d.t.Error(err)
		}
	})
	return procs
}

// ended waits until every job has ended.
func (g *gangs) ended(procs *koinon.Procs) map[string]koinon.Job {
	g.t.Helper()
	byName := map[string]koinon.Job{}
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		jobs, _, err := procs.Jobs(g.t.Context(), koinon.ListJobs{Ended: true, Limit: 10_000})
		if err != nil {
			g.t.Fatal(err)
		}
		i := slices.IndexFunc(jobs, func(j koinon.Job) bool { return !j.State.Over() })
		if i >= 0 && time.Now().After(deadline) {
			g.t.Fatalf("job %d has not ended: %+v\n%s", jobs[i].ID, jobs[i], g.koinon("inspect", fmt.Sprint(jobs[i].ID)))
		}
		if i >= 0 {
			continue
		}
		g.states = map[koinon.State]int{}
		for _, j := range jobs {
			if other, twice := byName[j.Name]; twice {
				g.t.Errorf("%s was submitted once, and is job %d and %d", j.Name, other.ID, j.ID)
			}
			byName[j.Name] = j
			g.states[j.State]++
		}
		return byName
	}
}

// check looks at what all of it has left.
func (g *gangs) check(procs *koinon.Procs, jobs map[string]koinon.Job) {
	g.t.Helper()
	for _, p := range g.plans {
		j, there := jobs[p.name]
		if !there {
			if !p.killed {
				g.t.Errorf("%s: there is no such job", p.name)
			}
			continue
		}
		g.checkProof(procs, p, &j)
		want := koinon.State("exited")
		if p.code != 0 {
			want = "failed"
		}
		if j.State != want && j.State != "lost" || j.State == want && (j.ExitCode == nil || *j.ExitCode != p.code) {
			g.t.Errorf("%s (job %d): expected %s with code %d, found %s with %d", p.name, j.ID, want, p.code, j.State, j.Exit())
		}
		_, err := os.Stat(filepath.Join(g.mount, "outs", p.name))
		if there := err == nil; there != (p.out && j.State == "exited") {
			g.t.Errorf("%s (job %d) is %s, and its outputs there: %v (%v)", p.name, j.ID, j.State, there, err)
		}
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		nodes, err := procs.Nodes(g.t.Context())
		if err != nil {
			g.t.Fatal(err)
		}
		leaks := slices.IndexFunc(nodes, func(n koinon.ProcNode) bool { return n.CPUsUsed != 0 || n.Processes != 0 })
		if len(nodes) == 3 && leaks < 0 {
			break
		}
		if time.Now().After(deadline) {
			g.t.Errorf("something is still reserved or runs: %+v", nodes)
			break
		}
	}
	g.fsck()
}

// checkProof reads what the processes have written: which tries of each rank
// began and ended, in the order in which they did.
func (g *gangs) checkProof(procs *koinon.Procs, p *gangPlan, j *koinon.Job) {
	g.t.Helper()
	began := map[int]int{} // ranks, by epoch
	last := 0
	for rank := range p.size {
		raw, err := os.ReadFile(filepath.Join(g.mount, "proof", fmt.Sprintf("%s.%d", p.name, rank)))
		if err != nil && !os.IsNotExist(err) {
			g.t.Error(err)
		}
		started := 0
		for line := range strings.Lines(string(raw)) {
			what, text, _ := strings.Cut(strings.TrimSpace(line), " ")
			epoch, err := strconv.Atoi(text)
			switch {
			case err != nil:
				g.t.Errorf("%s: rank %d has written %q", p.name, rank, line)
			case what == "start" && epoch <= started:
				g.t.Errorf("%s: try %d of rank %d began after try %d: %q", p.name, epoch, rank, started, raw)
			case what == "start":
				started = epoch
				began[epoch]++
				last = max(last, epoch)
			case epoch != started:
				g.t.Errorf("%s: try %d of rank %d still ran while try %d did: %q", p.name, epoch, rank, started, raw)
			}
		}
	}
	details, err := procs.Inspect(g.t.Context(), fmt.Sprint(j.ID))
	if err != nil {
		g.t.Fatal(err)
	}
	lost := slices.ContainsFunc(details.TaskList, func(t koinon.Task) bool { return t.Lost > 0 })
	for epoch, ranks := range began {
		if ranks != p.size && !lost {
			g.t.Errorf("%s (job %d, %s): only %d of %d processes of try %d began", p.name, j.ID, j.State, ranks, p.size, epoch)
		}
	}
	if last == 0 && !lost {
		g.t.Errorf("%s (job %d) has ended as %s and never begun", p.name, j.ID, j.State)
	}
}
