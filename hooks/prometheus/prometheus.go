// Package prometheus is a collector for the official client library of Prometheus: what brokers
// count and hold.
//
//	registry.MustRegister(prometheus.NewCollector(map[string]*dunlin.Broker{"main": b}))
//
// The names and values are those that hooks/admin serves under /metrics without any library. Use
// this package where the program has metrics of its own, in one registry. Each scrape asks each
// broker once for its Stats; nothing is counted in between.
//
// The folder of the package has a dashboard for Grafana (grafana.json) and rules for alerts
// (alerts.yaml).
package prometheus

import (
	"maps"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks/internal/metrics"
)

// A Collector is a prometheus.Collector of brokers. Each metric has the label broker.
type Collector struct {
	names   []string // sorted
	brokers map[string]*dunlin.Broker
}

// NewCollector returns a Collector of the brokers, by their names.
func NewCollector(brokers map[string]*dunlin.Broker) *Collector {
	return &Collector{slices.Sorted(maps.Keys(brokers)), maps.Clone(brokers)}
}

// Describe sends nothing: a Collector is unchecked, because which metrics there are is known only
// when they are collected.
func (c *Collector) Describe(chan<- *prometheus.Desc) {}

// Collect sends what there is now.
func (c *Collector) Collect(to chan<- prometheus.Metric) {
	for _, name := range c.names {
		for _, f := range metrics.Of(c.brokers[name]) {
			d := prometheus.NewDesc(f.Name, f.Help, append([]string{"broker"}, f.Labels...), nil)
			for _, s := range f.Samples {
				to <- metric(d, f.Kind, &s, append([]string{name}, s.Labels...))
			}
		}
	}
}

// metric makes one of a sample.
func metric(d *prometheus.Desc, kind metrics.Kind, s *metrics.Sample, labels []string,
) (m prometheus.Metric) {
	var err error
	switch kind {
	case metrics.Histogram:
		buckets := make(map[float64]uint64, len(s.Buckets))
		for _, b := range s.Buckets {
			buckets[b.Bound] = b.Count
		}
		m, err = prometheus.NewConstHistogram(d, s.Count, s.Value, buckets, labels...)
	case metrics.Counter:
		m, err = prometheus.NewConstMetric(d, prometheus.CounterValue, s.Value, labels...)
	default:
		m, err = prometheus.NewConstMetric(d, prometheus.GaugeValue, s.Value, labels...)
	}
	if err != nil {
		return prometheus.NewInvalidMetric(d, err)
	}
	return m
}
