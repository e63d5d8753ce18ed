package prometheus_test

import (
	"fmt"
	"log"

	client "github.com/prometheus/client_golang/prometheus"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/prometheus"
)

// The metrics of a broker in the registry of a program, which serves it with promhttp.
func ExampleNewCollector() {
	b, err := dunlin.New(dunlin.Config{Authenticator: hooks.AllowAll})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	registry := client.NewRegistry()
	registry.MustRegister(prometheus.NewCollector(map[string]*dunlin.Broker{"main": b}))

	metrics, err := registry.Gather()
	if err != nil {
		log.Fatal(err)
	}
	for _, m := range metrics {
		if m.GetName() == "dunlin_sessions" {
			fmt.Println(m.GetName(), m.GetMetric()[0].GetGauge().GetValue())
		}
	}
	// Output: dunlin_sessions 0
}
