package manifest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/desired"
)

// mayTakeLong finds whatever could be, or hide, a quantity that
// desired.CheckQuantity refuses; only then is a document looked at for it.
var mayTakeLong = regexp.MustCompile(`[0-9.][eE][-+]?[0-9]{2}|[0-9.]{19}|\\u00`)

// hugeNumbers are the quantities of a document that are not even to be decoded.
func hugeNumbers(src *source, data []byte, into any) []desired.Problem {
	if !mayTakeLong.Match(data) {
		return nil
	}
	var value any
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	if decoder.Decode(&value) != nil {
		return nil // decoding it says why
	}
	c := &checker{src: src}
	c.checkQuantities(value, reflect.TypeOf(into).Elem(), "")
	return c.problems
}

func (c *checker) checkQuantities(value any, t reflect.Type, path string) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == reflect.TypeFor[resource.Quantity]() {
		c.checkQuantity(fmt.Sprint(value), path)
		return
	}
	switch value := value.(type) {
	case map[string]any:
		for _, key := range sortedKeys(value) {
			c.checkQuantitiesAt(key, value[key], t, path)
		}
	case []any:
		if t.Kind() == reflect.Slice {
			for i, item := range value {
				c.checkQuantities(item, t.Elem(), fmt.Sprintf("%s[%d]", path, i))
			}
		}
	}
}

func (c *checker) checkQuantitiesAt(key string, value any, t reflect.Type, path string) {
	switch t.Kind() {
	case reflect.Struct:
		if ft, known := jsonFields(t)[key]; known {
			c.checkQuantities(value, ft, join(path, key))
		}
	case reflect.Map:
		at := fmt.Sprintf("%s[%s]", path, key)
		// Huge pages have their size in their name.
		if _, size, huge := strings.Cut(key, corev1.ResourceHugePagesPrefix); huge && t.Elem() == reflect.TypeFor[resource.Quantity]() {
			c.checkQuantity(size, at)
		}
		c.checkQuantities(value, t.Elem(), at)
	}
}

func (c *checker) checkQuantity(text, path string) {
	if err := desired.CheckQuantity(text); err != nil {
		c.report("invalid", path, err.Error(), "")
	}
}
