package custom

import (
	"encoding/json"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"
	openapi "k8s.io/kube-openapi/pkg/validation/errors"
	"k8s.io/kube-openapi/pkg/validation/validate"
)

// fieldErrors are a validator's errors in the words of an API server.
func fieldErrors(result *validate.Result) field.ErrorList {
	var errs field.ErrorList
	for _, err := range result.Errors {
		if v, ok := err.(*openapi.Validation); ok {
			errs = append(errs, fieldError(v))
			continue
		}
		errs = append(errs, field.Invalid(mentioned(err.Error()), "", err.Error()))
	}
	return errs
}

// mentioned is the path that a message names at its beginning, in quotes, or at
// its end; nil for none.
func mentioned(message string) *field.Path {
	path := ""
	if rest, quoted := strings.CutPrefix(message, `"`); quoted {
		path, _, _ = strings.Cut(rest, `"`)
	} else if i := strings.LastIndex(message, " in "); i >= 0 {
		path = message[i+len(" in "):]
	}
	if path = strings.TrimPrefix(path, "."); path == "" || strings.ContainsAny(path, " \"") {
		return nil
	}
	return field.NewPath(path)
}

func fieldError(err *openapi.Validation) *field.Error {
	var path *field.Path
	if name := strings.TrimPrefix(err.Name, "."); name != "" {
		path = field.NewPath(name)
	}
	value := err.Value
	if value == nil {
		value = ""
	}
	switch err.Code() {
	case openapi.RequiredFailCode:
		return field.Required(path, "")
	case openapi.EnumFailCode:
		return field.NotSupported(path, err.Value, texts(err.Values))
	case openapi.TooLongFailCode:
		return field.TooLong(path, "", number(err.Valid))
	case openapi.MaxItemsFailCode, openapi.TooManyPropertiesCode:
		return field.TooMany(path, number(err.Value), number(err.Valid))
	case openapi.InvalidTypeCode:
		return field.TypeInvalid(path, value, err.Error())
	}
	return field.Invalid(path, value, err.Error())
}

func number(v any) int {
	if n, ok := v.(int64); ok {
		return int(n)
	}
	return -1
}

func texts(values []any) []string {
	out := make([]string, 0, len(values))
	for _, v := range values {
		if s, ok := v.(string); ok {
			out = append(out, s)
			continue
		}
		text, err := json.Marshal(v)
		if err != nil {
			continue // what came from JSON goes there
		}
		out = append(out, string(text))
	}
	return out
}
