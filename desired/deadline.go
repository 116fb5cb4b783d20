package desired

import (
	"fmt"
	"strconv"
	"time"
)

// ProgressDeadlineAnnotation, on a workload whose kind has no field for it, says
// in seconds how long its rollout may go on without progress before it counts
// as failed. Without it, that is ten minutes.
const ProgressDeadlineAnnotation = "tallyman.dev/progress-deadline-seconds"

// ProgressDeadline reads the annotation; 0 when it is not there. An error says
// what is wrong with it.
func ProgressDeadline(annotations map[string]string) (time.Duration, error) {
	text, found := annotations[ProgressDeadlineAnnotation]
	if !found {
		return 0, nil
	}
	seconds, err := strconv.ParseInt(text, 10, 32)
	if err != nil || seconds <= 0 {
		return 0, fmt.Errorf("%q is not a whole number of seconds above 0", text)
	}
	return time.Duration(seconds) * time.Second, nil
}
