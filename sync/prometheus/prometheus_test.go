package prometheus_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/planner/scale"
	"github.com/tallyman-dev/tallyman/sync/prometheus"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// TestAnswers has a server speak Prometheus' HTTP API as its documentation
// writes it.
func TestAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		status  int
		body    string
		want    []scale.Series
		problem string
	}{
		"a vector": {
			200, `{"status":"success","data":{"resultType":"vector","result":[{"metric":{"__name__":"up","job":"a"},"value":[1435781451.781,"1"]},{"metric":{"job":"b"},"value":[1435781451.781,"0.25"]}]}}`,
			[]scale.Series{{Labels: map[string]string{"__name__": "up", "job": "a"}, Value: 1}, {Labels: map[string]string{"job": "b"}, Value: 0.25}},
			"",
		},
		"an empty vector":       {200, `{"status":"success","data":{"resultType":"vector","result":[]}}`, nil, ""},
		"a scalar":              {200, `{"status":"success","data":{"resultType":"scalar","result":[1435781451.781,"3.5"]}}`, []scale.Series{{Value: 3.5}}, ""},
		"a matrix":              {200, `{"status":"success","data":{"resultType":"matrix","result":[]}}`, nil, "gives a matrix"},
		"a query that is wrong": {400, `{"status":"error","errorType":"bad_data","error":"parse error: unexpected end of input"}`, nil, "400 Bad Request: parse error: unexpected end of input"},
		"something else":        {502, `<html>`, nil, "502 Bad Gateway, and the answer is not that of a Prometheus"},
		"no value":              {200, `{"status":"success","data":{"resultType":"scalar","result":[1435781451.781,3.5]}}`, nil, "is no value"},
	} {
		t.Run(name, func(t *testing.T) {
			var asked string
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked = r.Method + " " + r.URL.Path + " " + r.FormValue("query")
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			}))
			defer server.Close()
			source := prometheus.Source{Now: func() time.Time { return now }}
			got := source.Ask(t.Context(), server.URL+"/prom/", []string{`sum(up{job=~"a|b"})`})
			if asked != `POST /prom/api/v1/query sum(up{job=~"a|b"})` {
				t.Errorf("asked %q", asked)
			}
			if len(got) != 1 || got[0].At != now || !strings.Contains(got[0].Problem, c.problem) || (c.problem == "") != (got[0].Problem == "") {
				t.Fatalf("samples %+v, want problem %q", got, c.problem)
			}
			if c.problem == "" {
				if diff := cmp.Diff(c.want, got[0].Series); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

func TestNobodyAnswers(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	address := server.URL
	server.Close()
	got := (&prometheus.Source{}).Ask(t.Context(), address, []string{"up", "down"})
	if len(got) != 2 || got[0].Query != "up" || got[1].Query != "down" {
		t.Fatalf("samples %+v, want one for each query", got)
	}
	for _, s := range got {
		if !strings.Contains(s.Problem, "ask "+address) || !strings.Contains(s.Problem, "connection refused") || strings.Contains(s.Problem, "Post") {
			t.Errorf("problem %q", s.Problem)
		}
	}
}
