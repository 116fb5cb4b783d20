package desired

import (
	"testing"

	"pgregory.net/rapid"
)

func TestQuantitiesThatTakeLongAreRefused(t *testing.T) {
	for text, fine := range map[string]bool{
		"1": true, "100m": true, "5Gi": true, "1E": true, "1Ei": true, "1e3": true, "1E-9": true, "-1.5e+6": true, "1e18": true, "9223372036854775807": true,
		"1e19": false, "1e-19": false, "1e-1000000000": false, "1E+1000000000": false, "1e99999999999999999999": false, " 1e30000000 ": false,
		"0.000000000000000000000000000000001": false, "": false, "e": false, "1e": false, "a lot": false,
	} {
		if _, err := ParseQuantity(text); (err == nil) != fine {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// Whatever the text, reading it ends soon, and so does what is done with it.
func TestAnyQuantityIsReadSoon(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`[ +-]?[0-9.]{0,30}[eEinumkKMGTP]{0,3}[+-]?[0-9]{0,20} ?`).Draw(t, "text")
		q, err := ParseQuantity(text)
		if err == nil && q.Cmp(q) != 0 {
			t.Errorf("%s differs from itself", q.String())
		}
		if size := len(q.String()); err == nil && size > 64 {
			t.Errorf("%q is written with %d bytes", text, size)
		}
	})
}
