package metrics

import (
	"math"
	"strconv"
	"strings"
)

// Append appends the families of brokers, which have the same families, in the text format of
// Prometheus. Each sample has the label broker.
func Append(dst []byte, names []string, brokers [][]Family) []byte {
	if len(brokers) == 0 {
		return dst
	}
	for i, f := range brokers[0] {
		dst = append(dst, "# HELP "+f.Name+" "+f.Help+"\n# TYPE "+f.Name+" "+f.Kind.String()+"\n"...)
		for n, families := range brokers {
			for _, s := range families[i].Samples {
				dst = appendSample(dst, names[n], &families[i], &s)
			}
		}
	}
	return dst
}

func appendSample(dst []byte, broker string, f *Family, s *Sample) []byte {
	labels := `broker="` + escape.Replace(broker) + `"`
	for i, name := range f.Labels {
		labels += "," + name + `="` + escape.Replace(s.Labels[i]) + `"`
	}
	line := func(suffix, more string, value float64) {
		dst = append(dst, f.Name+suffix+"{"+labels+more+"} "+number(value)+"\n"...)
	}
	if f.Kind != Histogram {
		line("", "", s.Value)
		return dst
	}
	for _, b := range s.Buckets {
		line("_bucket", `,le="`+number(b.Bound)+`"`, float64(b.Count))
	}
	line("_bucket", `,le="+Inf"`, float64(s.Count))
	line("_sum", "", s.Value)
	line("_count", "", float64(s.Count))
	return dst
}

var escape = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func number(v float64) string {
	if v == math.Trunc(v) && math.Abs(v) < 1e15 {
		return strconv.FormatInt(int64(v), 10)
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}
