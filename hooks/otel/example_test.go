package otel_test

import (
	"context"
	"fmt"
	"log"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/dunlin-mqtt/dunlin"
	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/otel"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// A message whose publisher has sampled its trace gets a span. A real program gives the spans to an
// exporter; here a recorder takes them.
func ExampleNew() {
	spans := tracetest.NewSpanRecorder()
	provider := sdk.NewTracerProvider(sdk.WithSpanProcessor(spans))
	tracing := otel.New(otel.Options{Provider: provider})
	b, err := dunlin.New(dunlin.Config{
		Authenticator: hooks.AllowAll,
		Interceptor:   tracing,
		Observer:      tracing.Observer(), // or hooks.Join(tracing.Observer(), another)
	})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()

	jane := dunlin.Publisher{Client: &hooks.Client{ID: "jane"}}
	_, err = b.PublishAs(context.Background(), jane, &dunlin.Message{
		Topic:   "orders/new",
		Payload: []byte("17"),
		Properties: packets.Properties(nil).AppendUser("traceparent",
			"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, s := range spans.Ended() {
		fmt.Println(s.Name(), s.SpanContext().TraceID())
	}
	// Output: publish 4bf92f3577b34da6a3ce929d0e0e4736
}
