package main

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dunlin-mqtt/dunlin/packets"
)

// A curve is the cost of a message over the size of something.
type curve struct {
	panel, name string
	points      []point
}

type point struct {
	x int
	stat
}

// bench is the load whose cost is followed: batched QoS 0 from 10 publishers to 10 subscribers.
const bench = "-scenario p2p -pubs 10 -warm 500ms -dur 2s"

// measureCurves measures the three curves and writes them as CSV and SVG.
func measureCurves(o *options, contenders []contender, stderr io.Writer) error {
	floor, dunlin := contenders[0], contenders[1]
	say := func(what string, n int, s stat) {
		fmt.Fprintf(stderr, "%s, %d: %s µs (%d runs)\n", what, n, number(s.median), s.n)
	}
	var curves []curve
	for _, c := range []contender{dunlin, floor} {
		cv := curve{panel: "connections", name: c.name}
		for _, n := range []int{10, 100, 1000, 4000, 10_000} {
			flags := fmt.Sprintf("-scenario p2p -pubs %d -e2e 64 -warm 1s -dur 2s", n/2)
			s := repeat(o.rounds(5), func() map[string]any {
				return load(o.load, c,
					strings.Fields(flags))
			})
			say("connections, "+c.name, n, s)
			cv.points = append(cv.points, point{n, s})
		}
		curves = append(curves, cv)
	}
	random := curve{panel: "subscriptions", name: "to a random one of them"}
	for _, n := range []int{1000, 10_000, 100_000, 1_000_000} {
		flags := fmt.Sprintf(
			"-scenario wild -topics %d -subs 20 -pubs 4 -settle 500ms -warm 500ms -dur 2s", n)
		s := repeat(o.rounds(5), func() map[string]any {
			return load(o.load, dunlin, strings.Fields(flags))
		})
		say("subscriptions, random", n, s)
		random.points = append(random.points, point{n, s})
	}
	held := curve{panel: "subscriptions", name: "to others beside them"}
	retained := curve{panel: "retained messages", name: "dunlin"}
	for _, n := range []int{0, 1000, 10_000, 100_000, 1_000_000} {
		for cv, fill := range map[*curve]func(string, int) (io.Closer, error){&held: subscribeMany,
			&retained: retainMany} {
			s := repeat(o.rounds(5), func() map[string]any {
				return loadBeside(o.load, dunlin, n,
					fill)
			})
			say(cv.panel+", held", n, s)
			cv.points = append(cv.points, point{n, s})
		}
	}
	curves = append(curves, held, random, retained)
	if err := os.MkdirAll(o.docs, 0o755); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(o.docs, "performance-scale.csv"), func(w io.Writer) error {
		return writeCSV(w, curves)
	}); err != nil {
		return err
	}
	return writeFile(filepath.Join(o.docs, "performance-scale.svg"), func(w io.Writer) error {
		return writeSVG(w, curves)
	})
}

func repeat(runs int, f func() map[string]any) stat {
	var v []float64
	for range runs {
		if x, ok := f()[perMessage].(float64); ok && x > 0 {
			v = append(v, x)
		}
	}
	return statOf(v)
}

// loadBeside starts the broker, fills it with n of something, and puts the load on it.
func loadBeside(bin string, c contender, n int,
	fill func(addr string, n int) (io.Closer, error)) map[string]any {
	addr, pid, end, err := startBroker(c)
	if err != nil {
		return failed(err)
	}
	defer end()
	filled, err := fill(addr, n)
	if err != nil {
		return failed(err)
	}
	defer filled.Close()
	flags := append([]string{"-json", "-addr", addr, "-pid", strconv.Itoa(pid)},
		strings.Fields(bench)...)
	return report(exec.Command(bin, append(flags, c.load...)...))
}

func failed(err error) map[string]any { return map[string]any{"err": err.Error()} }

// startBroker starts a broker and waits until it listens. The caller ends it.
func startBroker(c contender) (addr string, pid int, end func(), err error) {
	if addr, err = freeAddr(); err != nil {
		return "", 0, nil, err
	}
	args, err := c.command(addr)
	if err != nil {
		return "", 0, nil, err
	}
	broker := exec.Command(args[0], args[1:]...)
	if err := broker.Start(); err != nil {
		return "", 0, nil, err
	}
	end = func() {
		broker.Process.Kill()
		broker.Wait()
	}
	if err := await(addr); err != nil {
		end()
		return "", 0, nil, err
	}
	return addr, broker.Process.Pid, end, nil
}

// await waits until somebody listens on addr.
func await(addr string) (err error) {
	for range 200 {
		var c net.Conn
		if c, err = net.Dial("tcp", addr); err == nil {
			return c.Close()
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

// A client is a bare connection that sends packets and counts what comes back.
type client struct {
	net.Conn
	r *packets.Reader
}

type clients []*client

func (cs clients) Close() error {
	var err error
	for _, c := range cs {
		err = errors.Join(err, c.Conn.Close())
	}
	return err
}

// dial connects. The session ends with the connection if clean is set.
func dial(addr, id string, clean bool) (*client, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	c := &client{nc, packets.NewReader(nc, packets.Limits{})}
	c.r.SetVersion(packets.V311)
	if err := c.exchange(packets.TypeConnack,
		&packets.Connect{Version: packets.V311, ClientID: id, CleanStart: clean}); err != nil {
		return nil, errors.Join(err, nc.Close())
	}
	return c, nil
}

// exchange sends packets and waits for an answer of one type.
func (c *client) exchange(answer packets.Type, list ...packets.Packet) error {
	var b []byte
	for _, p := range list {
		var err error
		if b, err = p.Append(b, packets.V311); err != nil {
			return err
		}
	}
	if _, err := c.Write(b); err != nil {
		return err
	}
	p, err := c.r.ReadPacket()
	if err == nil && p.Type() != answer {
		err = fmt.Errorf("%v came, not %v", p.Type(), answer)
	}
	return err
}

const atOnce = 100 // filters or messages in one write

// subscribeMany makes n subscriptions of 20 clients, 3 in 5 of them without wildcards, that no
// message of the load matches.
func subscribeMany(addr string, n int) (io.Closer, error) {
	var cs clients
	for i := range 20 {
		c, err := dial(addr, fmt.Sprintf("held-%d", i), true)
		if err != nil {
			return nil, errors.Join(err, cs.Close())
		}
		cs = append(cs, c)
	}
	for k := 0; k < n; k += atOnce {
		s := &packets.Subscribe{PacketID: 1}
		for j := k; j < min(k+atOnce, n); j++ {
			f := fmt.Sprintf("held/s%d/d%d/t", j%1000, j/1000)
			if j%5 >= 3 {
				f = fmt.Sprintf("held/s%d/+/d%d", j%1000, j/1000)
			}
			s.Subscriptions = append(s.Subscriptions, packets.Subscription{Filter: f})
		}
		if err := cs[k/atOnce%len(cs)].exchange(packets.TypeSuback, s); err != nil {
			return nil, errors.Join(err, cs.Close())
		}
	}
	return cs, nil
}

// retainMany makes n retained messages.
func retainMany(addr string, n int) (io.Closer, error) {
	c, err := dial(addr, "retain", true)
	if err != nil {
		return nil, err
	}
	payload := bytes.Repeat([]byte("x"), 128)
	for k := 0; k < n; k += atOnce {
		var list []packets.Packet
		for j := k; j < min(k+atOnce, n); j++ {
			list = append(list, &packets.Publish{Retain: true,
				Topic: fmt.Appendf(nil, "held/s%d/d%d", j%1000, j/1000), Payload: payload})
		}
		if err := c.exchange(packets.TypePingresp,
			append(list, &packets.Pingreq{})...); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

func writeFile(name string, write func(io.Writer) error) error {
	var b bytes.Buffer
	if err := write(&b); err != nil {
		return err
	}
	return os.WriteFile(name, b.Bytes(), 0o644)
}

func writeCSV(w io.Writer, curves []curve) error {
	c := csv.NewWriter(w)
	c.Write([]string{"panel", "curve", "size", "us_per_message", "lowest", "highest", "runs"})
	for _, cv := range curves {
		for _, p := range cv.points {
			c.Write([]string{cv.panel, cv.name, strconv.Itoa(p.x), number(p.median), number(p.min),
				number(p.max), strconv.Itoa(p.n)})
		}
	}
	c.Flush()
	return c.Error()
}

// The sizes of the plot.
const (
	panelWidth, panelHeight = 320, 240
	marginX, marginY        = 48, 40
)

// writeSVG draws a panel for each panel of the curves: the size on a logarithmic axis, the cost on
// one that begins at zero.
func writeSVG(w io.Writer, curves []curve) error {
	var panels []string
	for _, c := range curves {
		if !slices.Contains(panels, c.panel) {
			panels = append(panels, c.panel)
		}
	}
	var b bytes.Buffer
	width := len(panels) * (panelWidth + marginX + 12)
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n", width, panelHeight+2*marginY)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", width,
		panelHeight+2*marginY)
	for i, name := range panels {
		list := slices.DeleteFunc(slices.Clone(curves),
			func(c curve) bool { return c.panel != name })
		fmt.Fprintf(&b, `<g transform="translate(%d,%d)">`+"\n", i*(panelWidth+marginX+12)+marginX,
			marginY)
		drawPanel(&b, name, list)
		fmt.Fprintln(&b, "</g>")
	}
	fmt.Fprintln(&b, "</svg>")
	_, err := w.Write(b.Bytes())
	return err
}

var colours = []string{"#1b6ca8", "#999999", "#c0392b"}

func drawPanel(b *bytes.Buffer, name string, curves []curve) {
	top, left, right := 0.0, math.Inf(1), 0.0
	for _, c := range curves {
		for _, p := range c.points {
			top, left, right = max(top, p.max), min(left, logSize(p.x)), max(right, logSize(p.x))
		}
	}
	top *= 1.15
	x := func(n int) float64 { return (logSize(n) - left) / max(right-left, 1) * panelWidth }
	y := func(us float64) float64 { return panelHeight - us/max(top, 1e-9)*panelHeight }
	fmt.Fprintf(b, `<rect width="%d" height="%d" fill="none" stroke="#444"/>`+"\n", panelWidth,
		panelHeight)
	fmt.Fprintf(b, `<text x="0" y="-12">µs of CPU per message over %s</text>`+"\n", name)
	for i := range 5 {
		us := top * float64(i) / 4
		fmt.Fprintf(b, `<text x="-6" y="%.1f" text-anchor="end">%.2f</text><path d="M0 %.1fH%d" stroke="#eee"/>`+"\n", y(us)+4, us, y(us), panelWidth)
	}
	for i, c := range curves {
		colour := colours[i%len(colours)]
		var path strings.Builder
		for k, p := range c.points {
			if p.n == 0 {
				continue
			}
			fmt.Fprintf(&path, "%c%.1f %.1f", "ML"[min(k, 1)], x(p.x), y(p.median))
			fmt.Fprintf(b, `<path d="M%.1f %.1fV%.1f" stroke="%s" stroke-width="1"/><circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n",
				x(p.x), y(p.min), y(p.max), colour, x(p.x), y(p.median), colour)
			fmt.Fprintf(b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", x(p.x),
				panelHeight+16, size(p.x))
		}
		fmt.Fprintf(b, `<path d="%s" fill="none" stroke="%s" stroke-width="2"/><text x="8" y="%d" fill="%s">%s</text>`+"\n", path.String(), colour, 16+14*i, colour, c.name)
	}
}

// logSize puts nothing where a hundred would be.
func logSize(n int) float64 { return math.Log10(float64(max(n, 10))) }

func size(n int) string {
	switch {
	case n >= 1_000_000:
		return fmt.Sprintf("%dM", n/1_000_000)
	case n >= 1000:
		return fmt.Sprintf("%dk", n/1000)
	}
	return strconv.Itoa(n)
}
