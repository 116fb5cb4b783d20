package workload

import (
	"fmt"

	batchv1 "k8s.io/api/batch/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// Progress is how far a run has come, in the words of a Job's status.
type Progress struct {
	// Completions wanted; 0 when any one success will do.
	Completions                                   int
	Active, Ready, Terminating, Succeeded, Failed int
}

// Progress counts what is there after Next has been carried out.
func (j *Job) Progress() Progress {
	s := j.plan()
	p := Progress{Completions: max(0, s.completions()), Terminating: s.terminating, Succeeded: s.run.Succeeded, Failed: s.run.Failed}
	for _, a := range s.active {
		p.Active++
		if a.Ready {
			p.Ready++
		}
	}
	return p
}

// Verdict says how the Job is doing: at work until it has completed or failed,
// for its end is its result.
func (j *Job) Verdict() Verdict {
	s, p := j.plan(), j.Progress()
	v := Verdict{Wanted: p.Active, Current: p.Active + p.Terminating, Updated: p.Active, Ready: p.Ready, Available: p.Ready, Wake: s.wake}
	switch f := s.run.Finish; {
	case f != nil && f.At.IsZero():
		v.Health, v.Late = nodes.Progressing, !f.Complete
		v.Reason = join(f.Reason+": "+f.Message, plural(p.Terminating, "pod")+" still to stop")
	case f != nil && f.Complete:
		v.Health, v.Reason, v.Complete, v.Over = nodes.Healthy, s.completedText(f), true, true
	case f != nil:
		v.Health, v.Late, v.Over = nodes.Degraded, true, true
		v.Reason = join(f.Reason+": "+f.Message, s.trouble())
	case s.suspended():
		v.Health, v.Reason = nodes.Suspended, "suspended: "+p.text()
	default:
		v.Health = nodes.Progressing
		v.Reason = join(p.text(), s.steps.Waits, s.trouble())
		v.Deadline = s.deadline()
	}
	return v
}

func (s *jobStep) completedText(f *Finish) string {
	text := "completed, " + plural(s.run.Succeeded, "success")
	if s.run.Succeeded != 1 {
		text = fmt.Sprintf("completed, %d successes", s.run.Succeeded)
	}
	if f.Reason == batchv1.JobReasonSuccessPolicy {
		text += " (" + f.Reason + ": " + f.Message + ")"
	}
	if s.run.Expired {
		text += "; its pods are gone (ttlSecondsAfterFinished)"
	}
	return text
}

// trouble is the newest failed pod's clause, or that of one that does not start.
func (s *jobStep) trouble() string {
	var worst *JobPod
	for i := range s.Pods {
		p := &s.Pods[i]
		if !p.Leaving && p.Why != "" && (worst == nil || p.Incarnation > worst.Incarnation) {
			worst = p
		}
	}
	if worst == nil {
		return ""
	}
	return "pod " + worst.Name + ": " + worst.Why
}

func (p *Progress) text() string {
	text := fmt.Sprintf("%d of %s", p.Succeeded, plural(p.Completions, "completion"))
	if p.Completions == 0 {
		text = "waiting for a success"
	}
	text += ", " + plural(p.Active, "pod") + " at work"
	if p.Failed > 0 {
		text += ", " + plural(p.Failed, "failure")
	}
	return text
}
