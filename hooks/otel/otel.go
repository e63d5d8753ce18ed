// Package otel makes spans of OpenTelemetry for messages on their way through a broker: one when a
// message is published, and one for each delivery.
//
//	spans := otel.New(otel.Options{})
//	config.Interceptor = spans
//	config.Observer = spans.Observer() // or hooks.Join(spans.Observer(), another)
//
// A message takes part if its publisher says so: it has a User Property "traceparent" of W3C Trace
// Context whose flag "sampled" is set, and maybe "tracestate". The span "publish" is a child of the
// span that the publisher names. The broker then writes "publish" into the traceparent of the
// message, so that "deliver", and what a subscriber makes, are children of "publish". All other
// messages pass as they are, and cost a look at their properties.
//
// The spans mark moments. The time from "publish" to "deliver" is what the message spent in the
// broker, also in the queue of a client that was away.
package otel

import (
	"context"
	"sync/atomic"
	"time"

	api "go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

const (
	scope          = "github.com/dunlin-mqtt/dunlin/hooks/otel"
	defaultRate    = 1000
	traceParent    = "traceparent"
	traceState     = "tracestate"
	maxStateLength = 512 // longer ones may be left out (W3C Trace Context, 3.3.1.5)
)

// Options are what New is given. The zero value is valid.
type Options struct {
	// Provider makes the tracer. Nil: the global one of go.opentelemetry.io/otel.
	Provider trace.TracerProvider
	// MaxPerSecond is how many spans are made in a second, because any publisher can set the flag
	// "sampled". Further messages pass as they are. Zero: 1,000. Negative: no such limit.
	MaxPerSecond int
}

// Spans is a hooks.Interceptor, and has an Observer. Its methods may be called concurrently.
type Spans struct {
	tracer trace.Tracer
	most   int64
	began  time.Time

	// The second since began in the upper 32 bits, and how many spans it has had
	window  atomic.Int64
	skipped atomic.Uint64
}

// New returns Spans.
func New(o Options) *Spans {
	if o.Provider == nil {
		o.Provider = api.GetTracerProvider()
	}
	if o.MaxPerSecond == 0 {
		o.MaxPerSecond = defaultRate
	}
	return &Spans{tracer: o.Provider.Tracer(scope), most: int64(o.MaxPerSecond), began: time.Now()}
}

// Skipped returns how many spans were not made because there were too many in that second.
func (s *Spans) Skipped() uint64 { return s.skipped.Load() }

// Intercept makes the span "publish". It never refuses a message.
func (s *Spans) Intercept(
	ctx context.Context, c *hooks.Client, m *packets.Message,
) (*packets.Message, error) {
	parent, ok := s.parent(ctx, m)
	if !ok {
		return m, nil
	}
	ctx, span := s.tracer.Start(parent, "publish", trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(attributes(c, m.Topic, m)...))
	span.End()
	if !span.SpanContext().IsSampled() { // the sampler of the program says no
		return m, nil
	}
	return rewritten(ctx, m), nil
}

// Observer returns the Observer that makes the spans "deliver".
func (s *Spans) Observer() *hooks.Observer {
	return &hooks.Observer{Delivered: func(d hooks.Delivered) {
		parent, ok := s.parent(context.Background(), d.Message)
		if !ok {
			return
		}
		_, span := s.tracer.Start(parent, "deliver", trace.WithSpanKind(trace.SpanKindProducer),
			trace.WithAttributes(attributes(d.Client, d.Message.Topic, d.Message)...),
			trace.WithAttributes(attribute.Int("mqtt.delivery.qos", int(d.QoS))))
		span.End()
	}}
}

// parent returns ctx with the span that m names, if that is sampled and may have one more child.
func (s *Spans) parent(ctx context.Context, m *packets.Message) (context.Context, bool) {
	if len(m.Properties) == 0 {
		return ctx, false
	}
	carrier := propagation.MapCarrier{}
	for name, value := range m.Properties.User() {
		if name == traceParent || name == traceState && len(value) <= maxStateLength {
			if _, twice := carrier[name]; !twice {
				carrier[name] = value
			}
		}
	}
	if carrier[traceParent] == "" {
		return ctx, false
	}
	ctx = propagation.TraceContext{}.Extract(ctx, carrier)
	if of := trace.SpanContextFromContext(ctx); !of.IsRemote() || !of.IsSampled() {
		return ctx, false
	}
	return ctx, s.takes()
}

// takes says whether one more span may be made in this second.
func (s *Spans) takes() bool {
	if s.most < 0 {
		return true
	}
	now := int64(time.Since(s.began) / time.Second)
	for {
		w := s.window.Load()
		next := w + 1
		if w>>32 != now {
			next = now<<32 + 1
		}
		if next&(1<<32-1) > s.most {
			s.skipped.Add(1)
			return false
		}
		if s.window.CompareAndSwap(w, next) {
			return true
		}
	}
}

// rewritten returns m with the span of ctx as its traceparent.
func rewritten(ctx context.Context, m *packets.Message) *packets.Message {
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	out := *m
	out.Properties = m.Properties.Without(nil, packets.UserProperty)
	for name, value := range m.Properties.User() {
		if name != traceParent && name != traceState {
			out.Properties = out.Properties.AppendUser(name, value)
		}
	}
	out.Properties = out.Properties.AppendUser(traceParent, carrier[traceParent])
	if state := carrier[traceState]; state != "" {
		out.Properties = out.Properties.AppendUser(traceState, state)
	}
	return &out
}

// attributes follow the semantic conventions of OpenTelemetry for messaging. c may be nil.
func attributes(c *hooks.Client, topic string, m *packets.Message) []attribute.KeyValue {
	all := []attribute.KeyValue{
		attribute.String("messaging.system", "mqtt"),
		attribute.String("messaging.destination.name", cut(topic)),
		attribute.Int("messaging.message.body.size", len(m.Payload)),
		attribute.Int("mqtt.qos", int(m.QoS)),
		attribute.Bool("mqtt.retain", m.Retain),
	}
	if c != nil {
		all = append(all, attribute.String("messaging.client.id", cut(c.ID)))
	}
	return all
}

// cut returns at most 1,024 bytes of a text that a client has chosen.
func cut(s string) string { return s[:min(len(s), 1024)] }
