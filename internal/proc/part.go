package proc

import "github.com/koinon/koinon/internal/proc/procpb"

// Part is a job's row as it would be had the job nothing but some of its tasks, which are given by index, and of each only the process
// of one rank where rank is not negative. A process has ended when its task has, or when no further try can take its place.
func Part(j *procpb.Job, spec *procpb.Spec, tasks []*procpb.Task, rank int) *procpb.Job {
	part := &procpb.Job{Id: j.Id, Version: j.Version, SubmittedNs: j.SubmittedNs, BlockedBy: j.BlockedBy, Tasks: uint32(len(tasks))}
	for _, t := range tasks {
		state, code, started, ended := t.State, t.ExitCode, t.StartedNs, t.EndedNs
		if p := endedForGood(spec, t, rank); p != nil {
			state, code, started, ended = p.State, p.ExitCode, p.StartedNs, p.EndedNs
		}
		*count(part, state)++
		if started != 0 && (part.StartedNs == 0 || started < part.StartedNs) {
			part.StartedNs = started
		}
		part.EndedNs = max(part.EndedNs, ended)
		for i, p := range t.Procs {
			if p.Cut != "" && (rank < 0 || i == rank) {
				part.Cut++
			}
		}
		if Over(state) && part.ExitCode == 0 {
			part.ExitCode, part.ExitIndex = code, t.Index
		}
	}
	if part.State = stateOf(part); !Over(part.State) {
		part.EndedNs = 0
	}
	return part
}

// endedForGood is the process of a rank when it has ended for good; else, and where its task did not end with its processes, nil.
func endedForGood(spec *procpb.Spec, t *procpb.Task, rank int) *procpb.Process {
	if rank < 0 || rank >= len(t.Procs) || !Over(t.Procs[rank].State) {
		return nil
	}
	p := t.Procs[rank]
	switch state, _ := verdict(t); {
	case t.State == procpb.State_RUNNING && !p.Unstarted && !triesLeft(spec, t):
		return p
	case t.State == state: // else it was taken out of the queue between two tries
		return p
	}
	return nil
}

// triesLeft says that a task that does not end well may be tried again.
func triesLeft(spec *procpb.Spec, t *procpb.Task) bool {
	return t.Epoch <= spec.Retries+t.Unstarted && t.Signal == 0
}
