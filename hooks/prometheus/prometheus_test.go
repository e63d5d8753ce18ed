package prometheus

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks/internal/metrics"
	"github.com/dunlin-mqtt/dunlin/mqtttest"
)

func collector(t *testing.T) *Collector {
	one, two := mqtttest.NewBroker(t), mqtttest.NewBroker(t)
	one.Client(t, "c")
	return NewCollector(map[string]*dunlin.Broker{"one": one.Broker(), "two\n\"": two.Broker()})
}

func TestTheLinterFindsNothing(t *testing.T) {
	problems, err := testutil.CollectAndLint(collector(t))
	require.NoError(t, err)
	require.Empty(t, problems)
}

func TestEachBrokerHasItsValues(t *testing.T) {
	require.NoError(t, testutil.CollectAndCompare(collector(t), strings.NewReader(`
# HELP dunlin_connections Network Connections now.
# TYPE dunlin_connections gauge
dunlin_connections{broker="one"} 1
dunlin_connections{broker="two\n\""} 0
`), "dunlin_connections"))
}

// What hooks/admin writes without the library is what the library reads, and has the same values.
func TestTheTextOfTheDeskIsThatOfTheLibrary(t *testing.T) {
	c := collector(t)
	families := map[string][]metrics.Family{}
	var all [][]metrics.Family
	for _, name := range c.names {
		families[name] = metrics.Of(c.brokers[name])
		all = append(all, families[name])
	}
	text := metrics.Append(nil, c.names, all)
	parser := expfmt.NewTextParser(model.LegacyValidation)
	parsed, err := parser.TextToMetricFamilies(strings.NewReader(string(text)))
	require.NoError(t, err)
	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, registry.Register(c))
	gathered, err := registry.Gather()
	require.NoError(t, err)
	require.Greater(t, len(gathered), 20)
	for _, f := range gathered {
		other := parsed[f.GetName()]
		require.NotNil(t, other, f.GetName())
		require.Equal(t, f.GetHelp(), other.GetHelp(), f.GetName())
		require.Equal(t, f.GetType(), other.GetType(), f.GetName())
		require.Len(t, other.Metric, len(f.Metric), f.GetName())
	}
}

// A histogram and odd values, which a quiet broker has not.
func TestAHistogramIsWrittenAsTheLibraryReadsIt(t *testing.T) {
	f := metrics.Family{Name: "x_seconds", Help: "X.", Kind: metrics.Histogram,
		Labels: []string{"kind"}, Samples: []metrics.Sample{{Labels: []string{`a"b\`}, Value: 1.5,
			Count: 7, Buckets: []metrics.Bucket{{Bound: 0.001, Count: 2}, {Bound: 1, Count: 6}}}}}
	text := metrics.Append(nil, []string{"b"}, [][]metrics.Family{{f}})
	parser := expfmt.NewTextParser(model.LegacyValidation)
	parsed, err := parser.TextToMetricFamilies(strings.NewReader(string(text)))
	require.NoError(t, err)
	h := parsed["x_seconds"].Metric[0].GetHistogram()
	require.EqualValues(t, 7, h.GetSampleCount())
	require.Equal(t, 1.5, h.GetSampleSum())
	require.Len(t, h.Bucket, 3)
	require.Equal(t, `a"b\`, parsed["x_seconds"].Metric[0].Label[1].GetValue())
	d := prometheus.NewDesc(f.Name, f.Help, []string{"broker", "kind"}, nil)
	m := metric(d, f.Kind, &f.Samples[0], []string{"b", "x"})
	require.NoError(t, m.Write(new(dto.Metric)))
}

// exported are the names of all metrics, those of the parts of histograms too.
func exported(t *testing.T) map[string]bool {
	names := map[string]bool{}
	for _, f := range metrics.Of(mqtttest.NewBroker(t).Broker()) {
		names[f.Name] = true
		if f.Kind == metrics.Histogram {
			for _, part := range []string{"_bucket", "_sum", "_count"} {
				names[f.Name+part] = true
			}
		}
	}
	return names
}

var metricName = regexp.MustCompile(`\bdunlin_[a-z0-9_]+`)

// checkExpression wants an expression to name metrics that there are, and at least one.
func checkExpression(t *testing.T, names map[string]bool, expression string) {
	found := metricName.FindAllString(expression, -1)
	if len(found) == 0 {
		t.Errorf("%q names no metric", expression)
	}
	for _, name := range found {
		if !names[name] {
			t.Errorf("%q names %s, which is not exported", expression, name)
		}
	}
	if strings.Count(expression, "(") != strings.Count(expression, ")") ||
		strings.Count(expression, "{") != strings.Count(expression, "}") {
		t.Errorf("%q has an open parenthesis", expression)
	}
}

func TestTheDashboardNamesMetricsThatThereAre(t *testing.T) {
	text, err := os.ReadFile("grafana.json")
	require.NoError(t, err)
	var board struct {
		Title  string
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	require.NoError(t, json.Unmarshal(text, &board))
	names, expressions := exported(t), 0
	for _, p := range board.Panels {
		require.NotEmpty(t, p.Targets, p.Title)
		for _, x := range p.Targets {
			checkExpression(t, names, x.Expr)
			expressions++
		}
	}
	require.Greater(t, expressions, 10)
}

func TestTheAlertsNameMetricsThatThereAre(t *testing.T) {
	text, err := os.ReadFile("alerts.yaml")
	require.NoError(t, err)
	var file struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr, For string
				Annotations      map[string]string
				Labels           map[string]string
			}
		}
	}
	require.NoError(t, yaml.Unmarshal(text, &file))
	names, rules := exported(t), 0
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			rules++
			checkExpression(t, names, r.Expr)
			require.NotEmpty(t, r.Alert)
			require.NotEmpty(t, r.Annotations["summary"], r.Alert)
			require.NotEmpty(t, r.Labels["severity"], r.Alert)
		}
	}
	require.GreaterOrEqual(t, rules, 6)
}
