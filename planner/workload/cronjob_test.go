package workload

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	batchv1 "k8s.io/api/batch/v1"
	"pgregory.net/rapid"
)

func at(text string) time.Time {
	t, err := time.Parse("2006-01-02 15:04:05", text)
	if err != nil {
		panic(err)
	}
	return t
}

func TestSchedule(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		schedule string
		in       *time.Location
		after    string
		want     []string
	}{
		"five minutes":                   {"*/5 * * * *", nil, "2026-01-01 00:03:00", []string{"2026-01-01 00:05:00", "2026-01-01 00:10:00"}},
		"names":                          {"0 9 * jan MON", nil, "2026-01-01 00:00:00", []string{"2026-01-05 09:00:00", "2026-01-12 09:00:00"}},
		"day or weekday":                 {"0 0 13 * 5", nil, "2026-02-10 00:00:00", []string{"2026-02-13 00:00:00", "2026-02-20 00:00:00"}},
		"macro":                          {"@monthly", nil, "2026-01-15 00:00:00", []string{"2026-02-01 00:00:00", "2026-03-01 00:00:00"}},
		"every":                          {"@every 90m", nil, "2026-01-01 00:01:10", []string{"2026-01-01 01:31:10", "2026-01-01 03:01:10"}},
		"in its zone":                    {"30 4 * * *", berlin, "2026-01-01 00:00:00", []string{"2026-01-01 03:30:00"}},
		"summer time skips 02:30":        {"30 2 * * *", berlin, "2026-03-28 00:00:00", []string{"2026-03-28 01:30:00", "2026-03-30 00:30:00"}},
		"winter time has 02:30 twice":    {"30 2 * * *", berlin, "2026-10-24 12:00:00", []string{"2026-10-25 00:30:00", "2026-10-25 01:30:00", "2026-10-26 01:30:00"}},
		"hourly over the skipped hour":   {"0 * * * *", berlin, "2026-03-28 23:30:00", []string{"2026-03-29 00:00:00", "2026-03-29 01:00:00", "2026-03-29 02:00:00"}},
		"hourly over the repeated hour":  {"0 * * * *", berlin, "2026-10-24 23:30:00", []string{"2026-10-25 00:00:00", "2026-10-25 01:00:00", "2026-10-25 02:00:00"}},
		"every ignores the change":       {"@every 1h", berlin, "2026-03-29 00:30:00", []string{"2026-03-29 01:30:00", "2026-03-29 02:30:00"}},
		"a day that most years have not": {"0 0 29 2 *", nil, "2026-03-01 00:00:00", []string{"2028-02-29 00:00:00"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s, err := Schedule(test.schedule, test.in)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			next := at(test.after)
			for range test.want {
				next = s.Next(next)
				got = append(got, next.UTC().Format("2006-01-02 15:04:05"))
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	for _, bad := range []string{"", "* * * *", "60 * * * *", "TZ=Europe/Berlin 0 0 * * *", "CRON_TZ=UTC 0 0 * * *", "TZ=0", "@every", "@sometimes", "0 0 0 0 0 0"} {
		if _, err := Schedule(bad, nil); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func cronSpec(schedule string, with ...func(*batchv1.CronJobSpec)) *batchv1.CronJobSpec {
	s := &batchv1.CronJobSpec{Schedule: schedule, ConcurrencyPolicy: batchv1.AllowConcurrent, SuccessfulJobsHistoryLimit: new(int32(3)), FailedJobsHistoryLimit: new(int32(1))}
	for _, f := range with {
		f(s)
	}
	return s
}

func deadline(seconds int64) func(*batchv1.CronJobSpec) {
	return func(s *batchv1.CronJobSpec) { s.StartingDeadlineSeconds = &seconds }
}

func policy(p batchv1.ConcurrencyPolicy) func(*batchv1.CronJobSpec) {
	return func(s *batchv1.CronJobSpec) { s.ConcurrencyPolicy = p }
}

func TestCronJob(t *testing.T) {
	atWork := []CronRun{{Name: "c-1"}}
	suspended := func(s *batchv1.CronJobSpec) { s.Suspend = new(true) }
	tests := map[string]struct {
		spec        *batchv1.CronJobSpec
		since, last string
		now         string
		jobs        []CronRun
		start, next string
		missed      int
		remove      []string
		skipped     bool
	}{
		"not yet":                        {spec: cronSpec("0 * * * *"), since: "2026-01-01 00:10:00", now: "2026-01-01 00:59:59", next: "2026-01-01 01:00:00"},
		"on time":                        {spec: cronSpec("0 * * * *"), since: "2026-01-01 00:10:00", now: "2026-01-01 01:00:00", start: "2026-01-01 01:00:00", next: "2026-01-01 02:00:00"},
		"once a time":                    {spec: cronSpec("0 * * * *"), since: "2026-01-01 00:10:00", last: "2026-01-01 01:00:00", now: "2026-01-01 01:00:00", next: "2026-01-01 02:00:00"},
		"the last of some missed":        {spec: cronSpec("0 * * * *"), since: "2026-01-01 00:10:00", now: "2026-01-01 05:30:00", start: "2026-01-01 05:00:00", next: "2026-01-01 06:00:00"},
		"more than a hundred missed":     {spec: cronSpec("* * * * *"), since: "2026-01-01 00:00:30", now: "2026-01-01 02:00:30", start: "2026-01-01 02:00:00", next: "2026-01-01 02:01:00", missed: 120},
		"within the deadline":            {spec: cronSpec("0 * * * *", deadline(60)), since: "2026-01-01 00:10:00", now: "2026-01-01 01:00:50", start: "2026-01-01 01:00:00", next: "2026-01-01 02:00:00"},
		"past the deadline":              {spec: cronSpec("0 * * * *", deadline(60)), since: "2026-01-01 00:10:00", now: "2026-01-01 01:10:00", next: "2026-01-01 02:00:00"},
		"long ago with a deadline":       {spec: cronSpec("* * * * *", deadline(120)), since: "2025-01-01 00:00:00", now: "2026-01-01 00:00:30", start: "2026-01-01 00:00:00", next: "2026-01-01 00:01:00"},
		"suspended":                      {spec: cronSpec("0 * * * *", suspended), since: "2026-01-01 00:10:00", now: "2026-01-01 01:00:00"},
		"changed schedule misses none":   {spec: cronSpec("0 * * * *"), since: "2026-01-01 05:10:00", last: "2026-01-01 01:00:00", now: "2026-01-01 05:11:00", next: "2026-01-01 06:00:00"},
		"allow":                          {spec: cronSpec("0 * * * *"), since: "2026-01-01 00:10:00", now: "2026-01-01 01:00:00", jobs: atWork, start: "2026-01-01 01:00:00", next: "2026-01-01 02:00:00"},
		"forbid":                         {spec: cronSpec("0 * * * *", policy(batchv1.ForbidConcurrent)), since: "2026-01-01 00:10:00", now: "2026-01-01 01:00:00", jobs: atWork, next: "2026-01-01 02:00:00", skipped: true},
		"forbid makes up afterwards":     {spec: cronSpec("0 * * * *", policy(batchv1.ForbidConcurrent)), since: "2026-01-01 00:10:00", now: "2026-01-01 01:20:00", start: "2026-01-01 01:00:00", next: "2026-01-01 02:00:00"},
		"replace":                        {spec: cronSpec("0 * * * *", policy(batchv1.ReplaceConcurrent)), since: "2026-01-01 00:10:00", now: "2026-01-01 01:00:00", jobs: atWork, start: "2026-01-01 01:00:00", next: "2026-01-01 02:00:00", remove: []string{"c-1"}},
		"an interval counts from before": {spec: cronSpec("@every 1h"), since: "2026-01-01 00:10:00", last: "2026-01-01 01:10:00", now: "2026-01-01 03:30:00", start: "2026-01-01 03:10:00", next: "2026-01-01 04:10:00"},
		"uneven times, before the next":  {spec: cronSpec("0 9,10 * * *"), since: "2026-01-02 08:00:00", now: "2026-01-03 08:30:00", start: "2026-01-02 10:00:00", next: "2026-01-03 09:00:00"},
		"every minute of a day long ago": {spec: cronSpec("* * 1 1 *"), since: "2025-12-31 00:00:00", now: "2026-06-01 00:00:00", start: "2026-01-01 23:59:00", next: "2027-01-01 00:00:00", missed: 1440},
		"working hours only":             {spec: cronSpec("30 6-16/4 * * 1-5"), since: "2026-01-02 10:40:00", now: "2026-01-05 06:31:00", start: "2026-01-05 06:30:00", next: "2026-01-05 10:30:00"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := CronJob{Now: at(test.now), Spec: test.spec, Name: "c", Since: at(test.since), Jobs: test.jobs}
			if test.last != "" {
				c.Last = at(test.last)
			}
			steps, err := c.Next()
			if err != nil {
				t.Fatal(err)
			}
			show := func(t time.Time) string {
				if t.IsZero() {
					return ""
				}
				return t.UTC().Format("2006-01-02 15:04:05")
			}
			var remove []string
			for _, r := range steps.Remove {
				remove = append(remove, r.Name)
			}
			if show(steps.Start) != test.start || show(steps.Next) != test.next || steps.Missed != test.missed || !slices.Equal(remove, test.remove) || (steps.Skipped != "") != test.skipped {
				t.Errorf("%+v", steps)
			}
		})
	}
}

func TestImpossibleSchedule(t *testing.T) {
	c := CronJob{Now: at("2026-01-01 00:00:00"), Spec: cronSpec("0 0 31 2 *"), Name: "c", Since: at("2025-01-01 00:00:00")}
	if steps, err := c.Next(); err == nil {
		t.Errorf("%+v", steps)
	}
}

func TestCronHistory(t *testing.T) {
	ended := func(name string, complete bool) CronRun {
		return CronRun{Name: name, Finish: &Finish{Complete: complete, At: now}}
	}
	c := CronJob{Now: now, Since: now, Name: "c", Spec: cronSpec("@daily"), Jobs: []CronRun{
		ended("a", true), ended("b", false), ended("c", true), ended("d", true), {Name: "e"}, ended("f", false), ended("g", true),
	}}
	steps, err := c.Next()
	if err != nil {
		t.Fatal(err)
	}
	want := []CronRemove{{"a", "successfulJobsHistoryLimit is 3"}, {"b", "failedJobsHistoryLimit is 1"}}
	if diff := cmp.Diff(want, steps.Remove); diff != "" {
		t.Error(diff)
	}
}

// TestCronProperties lets time pass in any steps: no scheduled time becomes
// two Jobs, none lies in the future or before the CronJob, order is kept, and
// what is waited for comes when it is said to.
func TestCronProperties(t *testing.T) {
	var zones []*time.Location
	for _, name := range []string{"UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"} {
		z, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		zones = append(zones, z)
	}
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.SampledFrom([]string{"* * * * *", "*/7 * * * *", "30 2 * * *", "0 */3 * * 1-5", "@every 25m", "@hourly", "15 1 29 * *", "0 9,10 * * *", "*/5 7 * * *"}).Draw(t, "schedule")
		zone := rapid.SampledFrom(zones).Draw(t, "zone")
		start := at("2026-03-27 00:00:00").Add(time.Duration(rapid.Int64Range(0, 220*24*3600).Draw(t, "start")) * time.Second)
		c := CronJob{Now: start, Since: start, Name: "c", Spec: cronSpec(text), Location: zone}
		if rapid.Bool().Draw(t, "has deadline") {
			deadline(rapid.Int64Range(10, 7200).Draw(t, "deadline"))(c.Spec)
		}
		schedule, err := Schedule(text, zone)
		if err != nil {
			t.Fatal(err)
		}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			steps, err := c.Next()
			if err != nil {
				t.Fatal(err)
			}
			if !steps.Next.After(c.Now) {
				t.Fatalf("at %s it is to look again at %s", c.Now, steps.Next)
			}
			if missed := !schedule.Next(latest(c.Since, c.Last)).After(c.Now); missed && c.Spec.StartingDeadlineSeconds == nil && steps.Start.IsZero() {
				t.Fatalf("at %s no run, the last was %s", c.Now, c.Last)
			}
			if !steps.Start.IsZero() {
				if !steps.Start.After(c.Last) || !steps.Start.After(c.Since) || steps.Start.After(c.Now) {
					t.Fatalf("at %s the run of %s, the last was %s", c.Now, steps.Start, c.Last)
				}
				if !schedule.Next(steps.Start).After(c.Now) {
					t.Fatalf("at %s the run of %s, not the newest", c.Now, steps.Start)
				}
				c.Last = steps.Start
				if again, _ := c.Next(); !again.Start.IsZero() {
					t.Fatalf("at %s a second run", c.Now)
				}
			}
			if rapid.Bool().Draw(t, "on time") {
				c.Now = steps.Next
				if due, err := c.Next(); err != nil || !due.Start.Equal(steps.Next) {
					t.Fatalf("at %s no run: %+v %v", c.Now, due, err)
				}
			} else {
				c.Now = c.Now.Add(time.Duration(rapid.Int64Range(0, 3*24*3600).Draw(t, "pause")) * time.Second)
			}
		}
	})
}

// FuzzSchedule: no text makes the parser panic, and a schedule moves on.
func FuzzSchedule(f *testing.F) {
	for _, s := range []string{"* * * * *", "0 0 31 2 *", "@every 1s", "TZ=0", "*/0 * * * *", "1-5/2 * L * ?", "@every 9999999h", "0 0 1 1 8"} {
		f.Add(s, int64(1_700_000_000))
	}
	f.Fuzz(func(t *testing.T, text string, seconds int64) {
		from := time.Unix(seconds%4_000_000_000, 0).UTC()
		s, err := Schedule(text, nil)
		if err != nil {
			return
		}
		if next := s.Next(from); !next.IsZero() && !next.After(from) {
			t.Errorf("%q after %s comes at %s", text, from, next)
		}
		c := CronJob{Now: from.Add(48 * time.Hour), Since: from, Name: "c", Spec: cronSpec(text)}
		if steps, err := c.Next(); err == nil && steps.Start.After(c.Now) {
			t.Errorf("%q: %+v", text, steps)
		}
	})
}
