package desired

import (
	"testing"
	"time"
)

func TestProgressDeadline(t *testing.T) {
	for text, want := range map[string]time.Duration{"90": 90 * time.Second, "1": time.Second, "0": 0, "-1": 0, "10m": 0, "": 0, "99999999999": 0} {
		got, err := ProgressDeadline(map[string]string{ProgressDeadlineAnnotation: text})
		if got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	if got, err := ProgressDeadline(nil); got != 0 || err != nil {
		t.Errorf("without the annotation: %v, %v", got, err)
	}
}
