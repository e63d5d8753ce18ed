package otel_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/otel"
	"github.com/dunlin-mqtt/dunlin/mqtttest"
	"github.com/dunlin-mqtt/dunlin/packets"
)

const (
	traceID = "4bf92f3577b34da6a3ce929d0e0e4736"
	spanID  = "00f067aa0ba902b7"
	sampled = "00-" + traceID + "-" + spanID + "-01"
)

func recorded(o otel.Options) (*otel.Spans, *tracetest.SpanRecorder) {
	r := tracetest.NewSpanRecorder()
	o.Provider = sdk.NewTracerProvider(sdk.WithSpanProcessor(r))
	return otel.New(o), r
}

// publish returns a PUBLISH with User Properties: names and values.
func publish(user ...string) *packets.Publish {
	p := &packets.Publish{Topic: []byte("a/b"), Payload: []byte("hello")}
	for i := 0; i < len(user); i += 2 {
		p.Properties = p.Properties.AppendUser(user[i], user[i+1])
	}
	return p
}

func userOf(p packets.Properties) (all []string) {
	for name, value := range p.User() {
		all = append(all, name, value)
	}
	return all
}

func TestASampledMessageHasSpansFromPublisherToSubscriber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spans, r := recorded(otel.Options{})
		b := mqtttest.NewBroker(t, mqtttest.Config(func(c *dunlin.Config) {
			c.Interceptor = spans
			c.Observer = hooks.Join(c.Observer, spans.Observer())
		}))
		from, to := b.Client(t, "from"), b.Client(t, "to")
		to.Send(&packets.Subscribe{PacketID: 1, Subscriptions: []packets.Subscription{{Filter: "a/#"}}})
		to.WantType("a SUBACK", packets.TypeSuback)
		from.Send(publish("before", "1", "traceparent", sampled, "tracestate", "v=1", "after", "2"))
		got := to.WantType("the message", packets.TypePublish).(*packets.Publish)
		synctest.Wait()
		ended := r.Ended()
		require.Len(t, ended, 2)
		in, out := ended[0], ended[1]
		require.Equal(t, "publish", in.Name())
		require.Equal(t, "deliver", out.Name())
		require.Equal(t, spanID, in.Parent().SpanID().String())
		require.Equal(t, in.SpanContext().SpanID(), out.Parent().SpanID())
		for _, s := range ended {
			require.Equal(t, traceID, s.SpanContext().TraceID().String())
			require.Equal(t, codes.Unset, s.Status().Code)
			require.Equal(t, "v=1", s.SpanContext().TraceState().String())
			require.Contains(t, s.Attributes(), attribute.String("messaging.destination.name", "a/b"))
		}
		require.Contains(t, in.Attributes(), attribute.String("messaging.client.id", "from"))
		require.Contains(t, out.Attributes(), attribute.String("messaging.client.id", "to"))
		require.Equal(t, trace.SpanKindServer, in.SpanKind())
		require.Equal(t, []string{"before", "1", "after", "2", "traceparent",
			"00-" + traceID + "-" + in.SpanContext().SpanID().String() + "-01", "tracestate", "v=1"},
			userOf(got.Properties))
	})
}

func TestOtherMessagesPassAsTheyAre(t *testing.T) {
	spans, r := recorded(otel.Options{})
	for name, user := range map[string][]string{
		"no property":            nil,
		"another property":       {"x", "y"},
		"not sampled":            {"traceparent", strings.TrimSuffix(sampled, "01") + "00"},
		"no trace":               {"traceparent", "00-" + strings.Repeat("0", 32) + "-" + spanID + "-01"},
		"garbage":                {"traceparent", "\u202egarbage"},
		"the wrong case":         {"Traceparent", sampled},
		"the first of two holds": {"traceparent", "no", "traceparent", sampled},
		"very long":              {"traceparent", strings.Repeat("0", 60_000)},
	} {
		m := &packets.Message{Topic: "a/b", Properties: publish(user...).Properties}
		got, err := spans.Intercept(t.Context(), nil, m)
		require.NoError(t, err, name)
		require.Same(t, m, got, name)
		spans.Observer().Delivered(hooks.Delivered{Message: m})
		require.Empty(t, r.Ended(), name)
	}
}

// The sampler of the program has the last word.
func TestAProgramThatSamplesNothing(t *testing.T) {
	spans := otel.New(otel.Options{Provider: sdk.NewTracerProvider(
		sdk.WithSampler(sdk.NeverSample()))})
	m := &packets.Message{Topic: "a", Properties: publish("traceparent", sampled).Properties}
	got, err := spans.Intercept(t.Context(), &hooks.Client{ID: "c"}, m)
	require.NoError(t, err)
	require.Same(t, m, got)
}

func TestSpansPerSecondAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spans, r := recorded(otel.Options{MaxPerSecond: 10})
		m := &packets.Message{Topic: strings.Repeat("t", 5000), QoS: 1,
			Properties: publish("traceparent", sampled).Properties}
		for range 3 {
			for range 25 {
				_, err := spans.Intercept(context.Background(), nil, m)
				require.NoError(t, err)
			}
			time.Sleep(time.Second)
		}
		require.Len(t, r.Ended(), 30)
		require.EqualValues(t, 45, spans.Skipped())
		for _, a := range r.Ended()[0].Attributes() {
			require.LessOrEqual(t, len(a.Value.String()), 1024, a.Key)
		}
		free, all := recorded(otel.Options{MaxPerSecond: -1})
		for range 2000 {
			_, err := free.Intercept(context.Background(), nil, m)
			require.NoError(t, err)
		}
		require.Len(t, all.Ended(), 2000)
	})
}

// A message that takes no part costs no memory.
func TestAMessageWithoutPropertiesIsNotAllocatedFor(t *testing.T) {
	spans, _ := recorded(otel.Options{})
	m := &packets.Message{Topic: "a"}
	require.Zero(t, testing.AllocsPerRun(100, func() {
		_, _ = spans.Intercept(context.Background(), nil, m) // it never fails
	}))
}
