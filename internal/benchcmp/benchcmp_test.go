package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestStat(t *testing.T) {
	require.Equal(t, stat{3, 1, 9, 3}, statOf([]float64{9, 1, 3}))
	require.Equal(t, stat{2, 1, 9, 4}, statOf([]float64{9, 1, 3, 1}))
	require.Equal(t, stat{}, statOf(nil))
}

const recorded = `{"Scenario":"p2p","Broker":"floor","Round":0,"Report":{"broker_us_per_msg":0.15,"lost":7}}
{"Scenario":"p2p","Broker":"floor","Round":1,"Report":{"broker_us_per_msg":0.17}}
{"Scenario":"p2p","Broker":"dunlin","Round":0,"Report":{"broker_us_per_msg":0.2,"other_cores":0.5}}
{"Scenario":"p2p","Broker":"dunlin","Round":1,"Report":{"broker_us_per_msg":0.2}}
{"Scenario":"p2p","Broker":"mochi","Round":0,"Report":{"broker_us_per_msg":6,"lost":12}}
{"Scenario":"p2p","Broker":"mochi","Round":1,"Report":{"err":"broker not ready"}}
{"Scenario":"fanin","Broker":"dunlin","Round":0,"Report":{"broker_us_per_msg":0.32}}
{"Scenario":"storm","Broker":"dunlin","Round":0,"Report":{"broker_us_per_conn":50.25}}
`

func TestTableOfRecordedRuns(t *testing.T) {
	name := filepath.Join(t.TempDir(), "runs.jsonl")
	require.NoError(t, os.WriteFile(name, []byte(recorded), 0o600))
	var out bytes.Buffer
	require.NoError(t, run([]string{"-from", name}, &out, io.Discard))
	require.Equal(t, `| | floor | dunlin | mochi | Dunlin ÷ floor | bar |
|---|---|---|---|---|---|
| p2p QoS 0, 128 B, batched, µs | 0.160 (0.150–0.170) | 0.200 (0.200–0.200) | 6.00 | 1.25 | 2 |
| fan-in 50 to 1 by a wildcard, µs | – | 0.320 | – | 2.00 | 2.3 |
| connect and disconnect, µs | – | 50.2 | – |  | 55 |

* p2p, mochi, round 1: lost 12
* p2p, mochi, round 2: broker not ready
* in 1 of 8 runs something else used more than a quarter of a processor
`, out.String())
}

func TestEveryRowHasItsScenario(t *testing.T) {
	flags := map[string]scenario{million.name: million}
	for _, s := range scenarios {
		require.NotContains(t, flags, s.name, "scenarios have different names")
		flags[s.name] = s
	}
	for _, r := range rows {
		require.Contains(t, flags, r.scenario, r.title)
		if r.over != "" {
			require.Contains(t, flags, r.over, r.title)
			if !r.self {
				require.Equal(t, "floor", flags[r.over].brokers,
					"%s is divided by a floor that is measured", r.title)
			}
		}
	}
}

func TestAnotherLoadGeneratorThatIsNotThereIsNamed(t *testing.T) {
	err := run([]string{"-load", "/nonexistent/generator"}, io.Discard, io.Discard)
	require.ErrorContains(t, err, "-load")
	require.ErrorContains(t, err, "/nonexistent/generator")
}

func TestPlotIsXMLAndHasEveryPoint(t *testing.T) {
	curves := []curve{
		{"connections", "dunlin", []point{{10, stat{1, 0.9, 1.1, 3}},
			{10_000, stat{1.2, 1, 1.5, 3}}}},
		{"connections", "floor", []point{{10, stat{0.5, 0.5, 0.5, 1}}}},
		{"retained messages", "dunlin", []point{{0, stat{1, 1, 1, 1}}, {1000, stat{}}}},
	}
	var svg, csv bytes.Buffer
	require.NoError(t, writeSVG(&svg, curves))
	circles, d := 0, xml.NewDecoder(bytes.NewReader(svg.Bytes()))
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		if e, ok := tok.(xml.StartElement); ok && e.Name.Local == "circle" {
			circles++
		}
	}
	require.Equal(t, 4, circles, "a point that was not measured is not drawn")
	require.Equal(t, 2, strings.Count(svg.String(), "µs of CPU per message over"),
		"one panel for each")
	require.NoError(t, writeCSV(&csv, curves))
	require.Contains(t, csv.String(), "connections,dunlin,10000,1.20,1.00,1.50,3\n")
}
