package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"
)

// This file is the command top, which shows in a terminal what goes on in a server with -http.

const topUsage = `usage: server top [-user NAME] [-sort FIGURE] [-n COUNT] [-once] ADDRESS

ADDRESS is that of -http. The password is read from the terminal, or taken from DUNLIN_PASSWORD.
Control-C ends it.
`

// A topView is the flags, and what was seen last.
type topView struct {
	base, user, password string
	sort                 string
	count                int
	last                 topStats
	client               http.Client
}

type topStats struct {
	At               time.Time `json:"at"`
	Uptime           float64   `json:"uptime"`
	Connections      int       `json:"connections"`
	Sessions         int       `json:"sessions"`
	Subscriptions    int       `json:"subscriptions"`
	Retained         int       `json:"retained"`
	Memory           int64     `json:"memory"`
	Queued           int       `json:"queued"`
	Inflight         int       `json:"inflight"`
	Refused          uint64    `json:"refused"`
	MessagesReceived uint64    `json:"messages_received"`
	MessagesSent     uint64    `json:"messages_sent"`
	MessagesDropped  uint64    `json:"messages_dropped"`
	BytesReceived    uint64    `json:"bytes_received"`
	BytesSent        uint64    `json:"bytes_sent"`
	Healthy          bool      `json:"healthy"`
	Ready            bool      `json:"ready"`
}

type topClient struct {
	ID            string `json:"id"`
	User          string `json:"user"`
	Remote        string `json:"remote"`
	Connected     bool   `json:"connected"`
	Subscriptions int    `json:"subscriptions"`
	Queued        int    `json:"queued"`
	Inflight      int    `json:"inflight"`
}

// top runs the command.
func top(args []string, out io.Writer) error {
	f := flag.NewFlagSet("server top", flag.ContinueOnError)
	f.Usage = func() {
		fmt.Fprint(f.Output(), topUsage)
		f.PrintDefaults()
	}
	v := topView{client: http.Client{Timeout: 30 * time.Second}}
	f.StringVar(&v.user, "user", cmp.Or(os.Getenv("USER"), "admin"), "`name` of a user of -http")
	f.StringVar(&v.sort, "sort", "queued", "which clients are listed: those with the most of this "+
		"`figure`, or \"id\" for the first ones")
	f.IntVar(&v.count, "n", 20, "how many clients are listed")
	interval := f.Duration("interval", 2*time.Second, "how often")
	once := f.Bool("once", false, "print once, and end")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() != 1 {
		return fmt.Errorf("expected one address, got %d\n%s", f.NArg(), topUsage)
	}
	v.base = strings.TrimSuffix(f.Arg(0), "/")
	if !strings.Contains(v.base, "://") {
		v.base = "http://" + v.base
	}
	if v.password = os.Getenv("DUNLIN_PASSWORD"); v.password == "" {
		fmt.Fprintf(os.Stderr, "password of %s: ", v.user)
		secret, err := term.ReadPassword(int(os.Stdin.Fd()))
		fmt.Fprintln(os.Stderr)
		if err != nil {
			return fmt.Errorf("the password: %w; or set DUNLIN_PASSWORD", err)
		}
		v.password = string(secret)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	tick := time.NewTicker(max(*interval, 100*time.Millisecond))
	defer tick.Stop()
	for {
		screen, err := v.screen(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if !*once {
			screen = "\x1b[H\x1b[2J" + screen // the top left, and nothing else on the screen
		}
		fmt.Fprint(out, screen)
		if *once {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// get asks the API.
func (v *topView) get(ctx context.Context, path string, into any) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, v.base+"/api/v1/"+path, nil)
	if err != nil {
		return err
	}
	r.SetBasicAuth(v.user, v.password)
	answer, err := v.client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		var refusal struct{ Error struct{ Message string } }
		_ = json.NewDecoder(io.LimitReader(answer.Body, 1<<16)).Decode(&refusal) // or else empty
		return errors.New(cmp.Or(refusal.Error.Message, answer.Status))
	}
	return json.NewDecoder(io.LimitReader(answer.Body, 64<<20)).Decode(into)
}

// screen asks, and returns what is to be seen.
func (v *topView) screen(ctx context.Context) (string, error) {
	var me struct {
		Brokers []string `json:"brokers"`
		Version string   `json:"version"`
	}
	if err := v.get(ctx, "me", &me); err != nil {
		return "", err
	}
	var b strings.Builder
	for _, name := range me.Brokers {
		path := "brokers/" + url.PathEscape(name) + "/"
		var s topStats
		if err := v.get(ctx, path+"stats", &s); err != nil {
			return "", err
		}
		var list struct{ Items []topClient }
		query := url.Values{"limit": {strconv.Itoa(v.count)}, "sort": {v.sort}}
		if err := v.get(ctx, path+"clients?"+query.Encode(), &list); err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "%s, Dunlin %s, up %v%s\n", plainText(name), plainText(me.Version),
			(time.Duration(s.Uptime) * time.Second), trouble(&s))
		v.figures(&b, &s)
		for _, c := range list.Items {
			state := "away"
			if c.Connected {
				state = c.Remote
			}
			fmt.Fprintf(&b, "%-32.32s %-16.16s %-22.22s %6d %8d %8d\n", plainText(c.ID),
				plainText(c.User), plainText(state), c.Subscriptions, c.Queued, c.Inflight)
		}
		if v.last = s; len(me.Brokers) > 1 {
			v.last = topStats{} // rates are shown of one broker only
		}
	}
	return b.String(), nil
}

func trouble(s *topStats) string {
	switch {
	case !s.Healthy:
		return ", THE STORE FAILS"
	case !s.Ready:
		return ", NOT READY"
	}
	return ""
}

// figures writes what is above the clients.
func (v *topView) figures(b *strings.Builder, s *topStats) {
	rate := func(now, before uint64) string {
		d := s.At.Sub(v.last.At).Seconds()
		if v.last.At.IsZero() || d <= 0 || now < before {
			return "-"
		}
		return strconv.FormatFloat(float64(now-before)/d, 'f', 0, 64) + "/s"
	}
	l := &v.last
	fmt.Fprintf(b, "clients %d  sessions %d  subscriptions %d  retained %d  memory %.1f MiB\n",
		s.Connections, s.Sessions, s.Subscriptions, s.Retained, float64(s.Memory)/(1<<20))
	fmt.Fprintf(b, "messages in %s  out %s  dropped %s (%d)  bytes in %s  out %s\n",
		rate(s.MessagesReceived, l.MessagesReceived), rate(s.MessagesSent, l.MessagesSent),
		rate(s.MessagesDropped, l.MessagesDropped), s.MessagesDropped,
		rate(s.BytesReceived, l.BytesReceived), rate(s.BytesSent, l.BytesSent))
	fmt.Fprintf(b, "queued %d  in flight %d  refused %s (%d)\n\n", s.Queued, s.Inflight,
		rate(s.Refused, l.Refused), s.Refused)
	fmt.Fprintf(b, "%-32s %-16s %-22s %6s %8s %8s\n", "CLIENT", "USER", "ADDRESS", "SUBS", "QUEUED",
		"INFLIGHT")
}

// plainText shows a text that a client has chosen without what a terminal would obey.
func plainText(s string) string {
	quoted := strconv.QuoteToGraphic(s)
	if quoted == `"`+s+`"` {
		return s
	}
	return quoted
}
