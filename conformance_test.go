package dunlin

import (
	"testing"

	"github.com/dunlin-mqtt/dunlin/internal/conformance"
	"github.com/dunlin-mqtt/dunlin/internal/script"
)

// TestConformance runs every script against the bare core and against a Broker.
func TestConformance(t *testing.T) {
	scripts, err := conformance.Scripts()
	if err != nil {
		t.Fatal(err)
	}
	if len(scripts) == 0 {
		t.Fatal("there are no scripts")
	}
	for _, s := range scripts {
		t.Run(s.Name, func(t *testing.T) {
			if _, err := configFor(s.Config); err != nil {
				t.Fatal(err)
			}
			bothHarnesses(t, func() Config {
				cfg, _ := configFor(s.Config)
				return cfg
			}, func(t *testing.T, h script.Harness) {
				if err := s.Run(h); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
