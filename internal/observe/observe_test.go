package observe

import (
	"reflect"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/hooks"
)

// locked are the functions that may be called with the lock of a Session held.
var locked = []string{"SessionEnded", "Acknowledged", "Dropped", "Settled"}

func TestAPanicGoesNoFurther(t *testing.T) {
	for field := range reflect.TypeFor[hooks.Observer]().Fields() {
		if field.Name == "Published" || field.Name == "Delivered" { // the caller recovers
			continue
		}
		t.Run(field.Name, func(t *testing.T) {
			var o hooks.Observer
			reflect.ValueOf(&o).Elem().FieldByName(field.Name).Set(reflect.MakeFunc(field.Type,
				func([]reflect.Value) []reflect.Value { panic("on purpose") }))
			to, about := "", new(hooks.Client)
			note := func(where string) func(*hooks.Client, any) {
				return func(c *hooks.Client, v any) {
					require.Equal(t, "on purpose", v)
					to, about = where, c
				}
			}
			safe := Safely(o, Panics{note("usual"), note("locked"), note("panicked")})

			e := reflect.New(field.Type.In(0)).Elem()
			client := &hooks.Client{ID: "c"}
			has := e.FieldByName("Client")
			if has.IsValid() {
				has.Set(reflect.ValueOf(client))
			} else {
				client = nil
			}
			reflect.ValueOf(safe).Elem().FieldByName(field.Name).Call([]reflect.Value{e})
			want := "usual"
			switch {
			case field.Name == "Panicked":
				want = "panicked"
			case slices.Contains(locked, field.Name):
				want = "locked"
			}
			require.Equal(t, want, to)
			require.Same(t, client, about)
		})
	}
}

func TestANilFunctionStaysNil(t *testing.T) {
	require.Equal(t, hooks.Observer{}, *Safely(hooks.Observer{}, Panics{}))
}
