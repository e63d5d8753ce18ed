package audit_test

import (
	"context"
	"log"
	"log/slog"
	"os"
	"time"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/hooks/audit"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// The records go to any slog.Handler, here one without the time.
func ExampleNew() {
	handler := slog.NewTextHandler(os.Stdout,
		&slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}})
	trail := audit.New(handler, 0)
	observer := trail.Observer() // for Config.Observer

	jane := &hooks.Client{ID: "c1", Username: "jane", HasUsername: true, Version: packets.V5}
	observer.Refused(hooks.Refused{Client: jane, Code: packets.BadUserNameOrPassword})
	observer.Denied(hooks.Denied{
		Client: jane, Action: hooks.ActionPublish, Topic: "alarms/fire", MountedTopic: "alarms/fire",
	})

	patient, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := trail.Close(patient); err != nil {
		log.Fatal(err)
	}
	// Output:
	// level=WARN msg="connect refused" client_id=c1 user=jane code=134 reason="Bad User Name or Password"
	// level=WARN msg="access denied" client_id=c1 user=jane action=publish topic=alarms/fire
}
