package main

// This file is what is measured: the runs of the load generator, and the rows of the table that
// come of them.

// A scenario is one way of running the load generator.
type scenario struct {
	name  string
	flags string
	// Which of the contenders take part, besides all real brokers: "floor", or nothing
	brokers string
}

const quick = " -warm 300ms -dur 1500ms"

var scenarios = []scenario{
	{"p2p", "-scenario p2p -pubs 10" + quick, "floor"},
	{"unbatched", "-scenario p2p -pubs 50 -batch 1 -e2e 20" + quick, "floor"},
	{"paced", "-scenario p2p -pubs 50 -rate 20000 -batch 1 -e2e 0" + quick, "floor"},
	{"few", "-scenario p2p -pubs 200 -rate 2000 -batch 1 -e2e 0" + quick, "floor"},
	{"paced1", "-scenario p2p -qos 1 -pubs 50 -rate 10000 -batch 1" + quick, ""},
	{"few1", "-scenario p2p -qos 1 -pubs 50 -rate 2000 -batch 1" + quick, ""},
	{"p2p1", "-scenario p2p -pubs 10 -qos 1" + quick, "floor"},
	{"p2p2", "-scenario p2p -pubs 10 -qos 2" + quick, ""},
	{"fanout", "-scenario fanout -pubs 1 -subs 1000 -e2e 20 -batch 4" + quick, "floor"},
	{"fanout1", "-scenario fanout -qos 1 -pubs 1 -subs 1000 -e2e 20 -batch 4" + quick, ""},
	{"fanin", "-scenario fanin -pubs 50 -subs 1 -e2e 100" + quick, ""},
	{"shared", "-scenario shared -pubs 20 -subs 10 -e2e 200" + quick, ""},
	{"shared1", "-scenario shared -qos 1 -pubs 20 -subs 10" + quick, ""},
	{"large", "-scenario p2p -pubs 4 -size 65536 -batch 1 -e2e 16" + quick, "floor"},
	{"wild", "-scenario wild -topics 100000 -subs 20 -pubs 4 -settle 1s" + quick, ""},
	{"idle", "-scenario idle -count 9000 -idlesub -settle 1500ms -hold 1500ms", ""},
	{"ping", "-scenario ping -count 300" + quick, ""},
	{"storm", "-scenario storm" + quick, ""},
	{"reconnect", "-scenario reconnect" + quick, ""},
	{"takeover", "-scenario takeover" + quick, ""},
	{"retained", "-scenario retained -count 100000 -settle 1s", ""},
	{"offline", "-scenario offline -subs 1000 -count 100 -pubs 4 -settle 1s", ""},
	{"slow", "-scenario slow -pubs 1 -subs 10 -rate 5000 -e2e 0 -size 1024 -batch 8 -warm 300ms " +
		"-dur 3s", ""},
	{"noslow", "-scenario slow -stalled 0 -pubs 1 -subs 10 -rate 5000 -e2e 0 -size 1024 -batch 8 " +
		"-warm 300ms -dur 3s", ""},
}

// million is the scenario that -million adds. It takes minutes with some brokers.
var million = scenario{"million",
	"-scenario wild -topics 1000000 -subs 20 -pubs 4 -warm 300ms -dur 2s -settle 1s", ""}

// A row is one line of the table: a figure of a scenario, divided by another one if over is set.
type row struct {
	title    string
	scenario string
	key      string // of the generator's report
	unit     string
	// a scenario, whose floor the figure is divided by; or with self, the broker's own
	over string
	self bool    //
	bar  float64 // what Dunlin may need at most
}

const perMessage = "broker_us_per_msg"

var rows = []row{
	{"p2p QoS 0, 128 B, batched", "p2p", perMessage, "µs", "p2p", false, 2.0},
	{"p2p QoS 0, one message a write", "unbatched", perMessage, "µs", "unbatched", false, 1.25},
	{"p2p QoS 0, 20,000 msg/s over 50 pairs", "paced", perMessage, "µs", "paced", false, 1.10},
	{"p2p QoS 0, 2,000 msg/s over 200 pairs", "few", perMessage, "µs", "few", false, 0},
	{"p2p QoS 1, 10,000 msg/s over 50 pairs", "paced1", perMessage, "µs", "", false, 0},
	{"p2p QoS 1, 2,000 msg/s over 50 pairs", "few1", perMessage, "µs", "", false, 0},
	{"p2p QoS 1, window 100", "p2p1", perMessage, "µs", "p2p1", false, 2.2},
	{"p2p QoS 2, window 100", "p2p2", perMessage, "µs", "p2p1", false, 4.0},
	{"fan-out 1 to 1,000, QoS 0", "fanout", perMessage, "µs", "fanout", false, 1.4},
	{"fan-out 1 to 1,000, QoS 1", "fanout1", perMessage, "µs", "fanout", false, 2.5},
	{"fan-in 50 to 1 by a wildcard", "fanin", perMessage, "µs", "p2p", false, 2.3},
	{"shared subscription, 20 to 10", "shared", perMessage, "µs", "p2p", false, 3.0},
	{"shared subscription, 20 to 10, QoS 1", "shared1", perMessage, "µs", "p2p", false, 0},
	{"p2p QoS 0, 64 KiB", "large", perMessage, "µs", "large", false, 1.10},
	{"100,000 subscriptions, random topics", "wild", perMessage, "µs", "p2p", false, 14},
	{"subscribe, each of 100,000 filters", "wild", "us_per_sub", "µs", "", false, 2.5},
	{"memory of a subscription", "wild", "bytes_per_sub", "B", "", false, 400},
	{"1,000,000 subscriptions, random topics", "million", perMessage, "µs", "p2p", false, 0},
	{"subscribe, each of 1,000,000 filters", "million", "us_per_sub", "µs", "", false, 2.5},
	{"memory of an idle connection", "idle", "bytes_per_conn", "B", "", false, 2000},
	{"PINGREQ and PINGRESP", "ping", "broker_us_per_ping", "µs", "", false, 26},
	{"connect and disconnect", "storm", "broker_us_per_conn", "µs", "", false, 55},
	{"resume a persistent Session", "reconnect", "broker_us_per_conn", "µs", "", false, 0},
	{"take a Session over", "takeover", "broker_us_per_conn", "µs", "", false, 0},
	{"retained: store", "retained", "store_us_per_msg", "µs", "", false, 0},
	{"retained: 100,000 to one #", "retained", "deliver_us_per_msg", "µs", "", false, 1.2},
	{"offline queue: in", "offline", "queue_us_per_msg", "µs", "", false, 1.5},
	{"offline queue: out", "offline", "drain_us_per_msg", "µs", "", false, 2.5},
	{"offline queue: memory of a message", "offline", "bytes_per_queued", "B", "", false, 300},
	{"one frozen subscriber: memory at most", "slow", "rss_peak_mb", "MB", "", false, 0},
	{"one frozen subscriber: p99 of the others", "slow", "p99_us", "µs", "noslow", true, 1.2},
}
