package desired

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
)

const (
	// maxQuantity bounds the text of a quantity in bytes, maxExponent that of its
	// power of ten: Kubernetes rounds to nine digits behind the point, and 10¹⁸ is
	// the largest that an int64 holds.
	maxQuantity = 32
	maxExponent = 18
)

// CheckQuantity refuses the text of a quantity whose number would take long and
// much memory to compute: Kubernetes works out every power of ten, and 13 bytes
// write one of a gigabyte. What is no quantity at all passes.
func CheckQuantity(text string) error {
	if len(text) > maxQuantity {
		return fmt.Errorf("a quantity of %d bytes: write it with %d at most, as 100m or 5Gi", len(text), maxQuantity)
	}
	text = strings.TrimSpace(text)
	exponent, err := strconv.Atoi(text[strings.LastIndexAny(text, "eE")+1:])
	switch {
	case !strings.ContainsAny(text, "eE"):
	case errors.Is(err, strconv.ErrRange), err == nil && (exponent < -maxExponent || exponent > maxExponent):
		return fmt.Errorf("quantity %q: the exponent must be between %d and %d", text, -maxExponent, maxExponent)
	}
	return nil
}

// ParseQuantity reads a quantity that somebody else wrote.
func ParseQuantity(text string) (resource.Quantity, error) {
	if err := CheckQuantity(text); err != nil {
		return resource.Quantity{}, err
	}
	return resource.ParseQuantity(text)
}
