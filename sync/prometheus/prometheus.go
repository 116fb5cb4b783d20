// Package prometheus asks a Prometheus for the values that autoscalers need. It
// speaks the HTTP API's instant queries; anything that answers them will do.
//
// It decides nothing: a query that gets no answer gives a sample that says why.
package prometheus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/tallyman-dev/tallyman/planner/scale"
)

const (
	// patience is how long one query may take.
	patience = 10 * time.Second
	// maxAnswer bounds an answer, in bytes.
	maxAnswer = 8 << 20
)

// Source asks Prometheus servers. The zero value is ready to use.
type Source struct {
	// Client is http.DefaultClient when nil.
	Client *http.Client
	// Now is the wall clock; default time.Now.
	Now func() time.Time
}

// Ask sends every query to the server at an address (http://host:9090, a path
// before /api/v1 may follow) and gives one sample each, in the same order.
func (s *Source) Ask(ctx context.Context, address string, queries []string) []scale.Sample {
	samples := make([]scale.Sample, 0, len(queries))
	for _, q := range queries {
		sample := scale.Sample{Query: q}
		series, err := s.ask(ctx, address, q)
		if err != nil {
			sample.Problem = fmt.Sprintf("ask %s for %q: %v", address, q, err)
		}
		sample.Series, sample.At = series, s.now()
		samples = append(samples, sample)
	}
	return samples
}

func (s *Source) now() time.Time {
	if s.Now == nil {
		return time.Now().UTC()
	}
	return s.Now().UTC()
}

func (s *Source) ask(ctx context.Context, address, query string) ([]scale.Series, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	target := strings.TrimSuffix(address, "/") + "/api/v1/query"
	form := strings.NewReader(url.Values{"query": {query}}.Encode())
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, target, form)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	client := s.Client
	if client == nil {
		client = http.DefaultClient
	}
	response, err := client.Do(request)
	if err != nil {
		if inner := (*url.Error)(nil); errors.As(err, &inner) {
			err = inner.Err // the address is said already
		}
		return nil, err
	}
	defer response.Body.Close()
	return parse(io.LimitReader(response.Body, maxAnswer), response.Status)
}

// answer is what the API says to an instant query.
type answer struct {
	Status string `json:"status"`
	Error  string `json:"error"`
	Data   struct {
		Type   string          `json:"resultType"`
		Result json.RawMessage `json:"result"`
	} `json:"data"`
}

// point is an instant and a value as text.
type point [2]any

func parse(body io.Reader, status string) ([]scale.Series, error) {
	var a answer
	if err := json.NewDecoder(body).Decode(&a); err != nil {
		return nil, fmt.Errorf("%s, and the answer is not that of a Prometheus: %w", status, err)
	}
	if a.Status != "success" {
		return nil, fmt.Errorf("%s: %s", status, a.Error)
	}
	switch a.Data.Type {
	case "vector":
		var vector []struct {
			Metric map[string]string `json:"metric"`
			Value  point             `json:"value"`
		}
		if err := json.Unmarshal(a.Data.Result, &vector); err != nil {
			return nil, fmt.Errorf("read the answer: %w", err)
		}
		var series []scale.Series
		for _, v := range vector {
			value, err := v.Value.value()
			if err != nil {
				return nil, err
			}
			series = append(series, scale.Series{Labels: v.Metric, Value: value})
		}
		return series, nil
	case "scalar":
		var p point
		if err := json.Unmarshal(a.Data.Result, &p); err != nil {
			return nil, fmt.Errorf("read the answer: %w", err)
		}
		value, err := p.value()
		return []scale.Series{{Value: value}}, err
	default:
		return nil, fmt.Errorf("the query gives a %s, not a vector or a scalar", a.Data.Type)
	}
}

func (p point) value() (float64, error) {
	text, ok := p[1].(string)
	if !ok {
		return 0, fmt.Errorf("read the answer: %v is no value", p[1])
	}
	return strconv.ParseFloat(text, 64)
}
