package workload

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestIndexesText(t *testing.T) {
	for text, want := range map[string]string{
		"":                "",
		"3":               "3",
		"0,1":             "0,1",
		"0-2":             "0-2",
		"0,1,2,4":         "0-2,4",
		"5,1-3":           "1-3,5",
		"1-4,3-6":         "1-6",
		"7-9":             "7",
		"8,9":             "",
		"x,2,4-":          "2",
		"3-1":             "",
		"-1":              "",
		"1,,2":            "1,2",
		"0-2147483647":    "0-7",
		"999999999999999": "",
	} {
		if got := ParseIndexes(text, 8).String(); got != want {
			t.Errorf("%q gives %q, want %q", text, got, want)
		}
	}
}

// TestIndexesIsASet compares with a map.
func TestIndexesIsASet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		numbers := rapid.SliceOf(rapid.IntRange(0, 30))
		a, b := numbers.Draw(t, "a"), numbers.Draw(t, "b")
		x, y := indexesOf(a), indexesOf(b)
		inBoth, inAny := map[int]bool{}, map[int]bool{}
		for _, n := range a {
			inAny[n] = true
			inBoth[n] = slices.Contains(b, n)
		}
		maps.DeleteFunc(inBoth, func(_ int, in bool) bool { return !in })
		for _, n := range b {
			inAny[n] = true
		}
		union := x.Union(y)
		if union.Len() != len(inAny) || x.Common(y) != len(inBoth) {
			t.Fatalf("%s and %s: %s, %d in common", x, y, union, x.Common(y))
		}
		if got := ParseIndexes(union.String(), 31); got.String() != union.String() {
			t.Fatalf("%s is read as %s", union, got)
		}
		var missing []int
		for n := range 31 {
			if union.Has(n) != inAny[n] {
				t.Fatalf("%s has %d: %v", union, n, union.Has(n))
			}
			if !inAny[n] && len(missing) < 5 {
				missing = append(missing, n)
			}
		}
		if got := union.Missing(5, 31); !slices.Equal(got, missing) {
			t.Fatalf("%s lacks %v, want %v", union, got, missing)
		}
	})
}

func indexesOf(list []int) Indexes {
	var x Indexes
	for _, n := range list {
		x = x.With(n)
	}
	return x
}
