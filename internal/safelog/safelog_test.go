package safelog

import (
	"bytes"
	"context"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
)

// A picky handler panics in one of its methods.
type picky struct {
	slog.Handler
	in string
}

func (p picky) fail(in string) {
	if p.in == in {
		panic("the handler's own fault")
	}
}

func (p picky) Enabled(ctx context.Context, l slog.Level) bool {
	p.fail("Enabled")
	return p.Handler.Enabled(ctx, l)
}

func (p picky) Handle(ctx context.Context, r slog.Record) error {
	p.fail("Handle")
	return p.Handler.Handle(ctx, r)
}

func (p picky) WithAttrs(attrs []slog.Attr) slog.Handler {
	p.fail("WithAttrs")
	return picky{p.Handler.WithAttrs(attrs), p.in}
}

func (p picky) WithGroup(name string) slog.Handler {
	p.fail("WithGroup")
	return picky{p.Handler.WithGroup(name), p.in}
}

func TestAPanicLosesItsLineAndNothingElse(t *testing.T) {
	for in, want := range map[string]string{
		"":          "level=INFO msg=hello a=1 g.b=2\n",
		"Enabled":   "",
		"Handle":    "",
		"WithAttrs": "level=INFO msg=hello g.b=2\n",
		"WithGroup": "level=INFO msg=hello a=1 b=2\n",
	} {
		var out bytes.Buffer
		text := slog.NewTextHandler(&out, &slog.HandlerOptions{
			ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.TimeKey {
					return slog.Attr{}
				}
				return a
			}})
		l := Logger(slog.New(picky{text, in}))
		require.NotPanics(t, func() { l.With("a", 1).WithGroup("g").Info("hello", "b", 2) }, in)
		require.Equal(t, want, out.String(), in)
	}
}

func TestAHandlerIsMadeSafeOnce(t *testing.T) {
	h := Handler(slog.DiscardHandler)
	require.Equal(t, h, Handler(h))
	require.Equal(t, Handler(slog.Default().Handler()), Logger(nil).Handler())
}
