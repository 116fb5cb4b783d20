package keeper

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAppendLines(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)
	const p = "2026-01-02T03:04:05.0000006Z stdout "
	long := strings.Repeat("x", maxLine)
	tests := []struct {
		name, from string
		flush      bool
		want       string
		used       int
	}{
		{"nothing", "", false, "", 0},
		{"one line", "a\n", false, p + "F a\n", 2},
		{"empty line", "\n", false, p + "F \n", 1},
		{"unfinished stays", "a\nb", false, p + "F a\n", 2},
		{"unfinished flushed", "a\nb", true, p + "F a\n" + p + "P b\n", 3},
		{"longest line", long + "\n", false, p + "F " + long + "\n", maxLine + 1},
		{"too long", long + "yz\n", false, p + "P " + long + "\n" + p + "F yz\n", maxLine + 3},
		{"too long and unfinished", long + "y", false, p + "P " + long + "\n", maxLine},
		{"full but not too long", long, false, "", 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, used := appendLines(nil, []byte(test.from), "stdout", at, test.flush, 'P')
			if diff := cmp.Diff(test.want, string(got)); diff != "" || used != test.used {
				t.Errorf("used %d, want %d\n%s", used, test.used, diff)
			}
		})
	}
}
