package manifest

import (
	"crypto/sha256"
	"encoding/json"
	"reflect"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/tallyman-dev/tallyman/desired"
)

// filler fills objects with what bytes say, the same for the same bytes. When
// they run out everything stays empty.
type filler struct{ data []byte }

func (f *filler) next() int {
	if len(f.data) == 0 {
		return 0
	}
	b := f.data[0]
	f.data = f.data[1:]
	return int(b)
}

// words are values that mean something somewhere.
var words = [...]string{
	"", "a", "web", "Never", "Always", "OnFailure", "RollingUpdate", "OnDelete", "Recreate", "cpu", "memory", "storage", "pods", "80", "25%", "* * * * *",
	"TZ=UTC 0 0 * * *", "Europe/Berlin", "http", "TCP", "/a", "../..", "10.96.0.7", "::1", "Utilization", "AverageValue", "Value", "Resource", "Pods", "Object",
	"External", "Indexed", "NonIndexed", "FailJob", "In", "Exists", "kubernetes.io/hostname", "ReadWriteOnce", "ReadWriteOncePod", "Block", "Container",
	"Deployment", "apps/v1", "ClusterIP", "ExternalName", "None", "Retain", "Delete", "Immediate", "0-3,5", "Host", "$(A)", "kubernetes.io/tls", "Forbid",
}

var quantities = [...]string{"0", "1", "-1", "100m", "1Gi", "1e30", "0.5"}

func (f *filler) fill(v reflect.Value, depth int) {
	switch p := v.Addr().Interface().(type) {
	case *resource.Quantity:
		*p = resource.MustParse(quantities[f.next()%len(quantities)])
		return
	case *intstr.IntOrString:
		if *p = intstr.FromInt32(int32(f.next() - 3)); f.next()%2 == 0 {
			*p = intstr.FromString(words[f.next()%len(words)])
		}
		return
	case *runtime.RawExtension:
		p.Raw = []byte(`{"a":1}`)
		return
	case *metav1.Time, *metav1.MicroTime, *metav1.FieldsV1, *metav1.Duration:
		return
	}
	if v.Kind() == reflect.Struct && v.Type().Name() == "JSON" {
		v.Field(0).SetBytes([]byte(`{"a":1}`))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if f.next()%2 == 1 {
			v.Set(reflect.New(v.Type().Elem()))
			f.fill(v.Elem(), depth+1)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() && depth < 30 {
				f.fill(v.Field(i), depth+1)
			}
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes([]byte(words[f.next()%len(words)]))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), f.next()%3, 3))
		for i := range v.Len() {
			f.fill(v.Index(i), depth+1)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range f.next() % 3 {
			key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			f.fill(key, depth+1)
			f.fill(value, depth+1)
			v.SetMapIndex(key, value)
		}
	case reflect.String:
		v.SetString(words[f.next()%len(words)])
	case reflect.Bool:
		v.SetBool(f.next()%2 == 1)
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(int64(f.next() - 3))
	}
}

// fuzzed is one kind in one version.
type fuzzed struct {
	apiVersion, kind string
	make             func() runtime.Object
}

func fuzzedKinds() []fuzzed {
	var out []fuzzed
	for _, k := range kindRules() {
		if k.make != nil {
			out = append(out, fuzzed{k.apiVersion(), k.kind, k.make})
		}
	}
	for _, v := range versions() {
		out = append(out, fuzzed{v.apiVersion(), v.kind, v.make})
	}
	return out
}

// FuzzKinds checks, of objects of every kind and version with any values, that
// nothing gives up on converting, defaulting and judging them, and that what is
// accepted survives being written again.
func FuzzKinds(f *testing.F) {
	seed := sha256.Sum256([]byte("seed"))
	for i := range len(fuzzedKinds()) {
		var data []byte
		for range 24 {
			seed = sha256.Sum256(seed[:])
			data = append(data, seed[:]...)
		}
		f.Add(uint16(i), data)
		f.Add(uint16(i), []byte{})
	}
	kinds := fuzzedKinds()
	r := newRules()
	f.Fuzz(func(t *testing.T, which uint16, data []byte) {
		k := kinds[int(which)%len(kinds)]
		object := k.make()
		(&filler{data}).fill(reflect.ValueOf(object).Elem(), 0)
		fields, ok := asJSON(t, object).(map[string]any)
		if !ok {
			t.Fatalf("%T is not a mapping", object)
		}
		fields["apiVersion"], fields["kind"] = k.apiVersion, k.kind
		text, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		src := &source{file: "f.json", line: 1, text: newText(text)}
		entries, problems := r.parseObject(src, text, 0) // which, unlike parseFile, lets a panic through
		for _, p := range problems {
			checkPrintable(t, p)
		}
		for _, e := range entries {
			if !desired.Rejected(problems) && e.object != nil {
				rewrite(t, r, e)
			}
		}
	})
}
