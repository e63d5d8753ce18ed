//go:build lockcheck

package lock

import (
	"context"
	"log/slog"
)

// handler is a slog.Handler that is called with no lock held.
type handler struct{ slog.Handler }

// Handler returns h, whose Handle is a place that Brief marks.
func Handler(h slog.Handler) slog.Handler { return handler{h} }

// Enabled is that of the Handler. It is asked about lines that nobody wants as well.
func (h handler) Enabled(ctx context.Context, l slog.Level) bool {
	Brief("a line of the log")
	return h.Handler.Enabled(ctx, l)
}

// Handle passes r on.
func (h handler) Handle(ctx context.Context, r slog.Record) error {
	Brief("a line of the log")
	return h.Handler.Handle(ctx, r)
}

// WithAttrs is that of the Handler.
func (h handler) WithAttrs(as []slog.Attr) slog.Handler { return handler{h.Handler.WithAttrs(as)} }

// WithGroup is that of the Handler.
func (h handler) WithGroup(name string) slog.Handler { return handler{h.Handler.WithGroup(name)} }
