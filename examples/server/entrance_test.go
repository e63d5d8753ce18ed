package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/listeners"
)

// at is a connection from an address.
type at struct {
	net.Conn
	from string
}

func (c at) RemoteAddr() net.Addr { return name(c.from) }

type name string

func (n name) Network() string { return "tcp" }
func (n name) String() string  { return string(n) }

// hosts is a listener whose connections come from the addresses that dial gives.
type hosts struct {
	*listeners.Memory
	from chan string
}

func (l hosts) Accept() (net.Conn, error) {
	c, err := l.Memory.Accept()
	if err != nil {
		return nil, err
	}
	return at{c, <-l.from}, nil
}

// entranceBench serves a handler with at most 8 connections, 2 from one address.
func entranceBench(t *testing.T, h http.HandlerFunc) (dial func(from string) net.Conn) {
	l := hosts{listeners.NewMemory(), make(chan string, 1)}
	srv, g := serverOf(h, l, 8, slog.New(slog.DiscardHandler))
	go srv.Serve(g) // ends with srv
	t.Cleanup(func() { srv.Close() })
	return func(from string) net.Conn {
		l.from <- from + ":1"
		c, err := l.Dial()
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		synctest.Wait()
		return c
	}
}

const aRequest = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"

// answered says whether a request on c is answered.
func answered(t *testing.T, c net.Conn) bool {
	if _, err := io.WriteString(c, aRequest); err != nil {
		return false
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return false
	}
	r.Body.Close()
	return r.StatusCode == 200
}

// hungUp says whether the other side has closed c.
func hungUp(c net.Conn) bool {
	c.SetReadDeadline(time.Now().Add(time.Second))
	_, err := c.Read(make([]byte, 1))
	var late net.Error
	return err != nil && (!errors.As(err, &late) || !late.Timeout())
}

func TestConnectionsThatSendNothingMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial := entranceBench(t, func(http.ResponseWriter, *http.Request) {})
		for i := range 100 { // slow headers, from many addresses and from one
			io.WriteString(dial(strings.Repeat("x", i)), "GET / HTTP/1.1\r\nHost: a")
			io.WriteString(dial("one"), "GET / HTTP/1.1\r\nHost: a")
		}
		require.True(t, answered(t, dial("operator")))
		require.True(t, answered(t, dial("one")), "also at the address of the slow ones")
	})
}

func TestOneAddressHasAQuarter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		dial := entranceBench(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == "POST" { // a stream
				<-ctx.Done()
			}
		})
		busy := func(from string) net.Conn {
			c := dial(from)
			io.WriteString(c, "POST"+strings.TrimPrefix(aRequest, "GET"))
			synctest.Wait()
			return c
		}
		busy("one")
		busy("one")
		require.True(t, hungUp(busy("one")), "all places of the address are busy")
		require.True(t, answered(t, dial("operator")))
		for _, from := range []string{"two", "two", "three", "three", "four"} {
			require.False(t, hungUp(busy(from)), from)
		}
		busy("four") // takes the place of the operator, who asks for nothing now
		require.True(t, hungUp(dial("five")), "all places are busy")
		cancel()
		synctest.Wait()
		require.True(t, answered(t, dial("five")), "there is room again")
	})
}

// A client that reads nothing does not stay.
func TestASlowReaderOfThePageIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dial := entranceBench(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Write(make([]byte, 16<<20))
		})
		c := dial("slow")
		io.WriteString(c, aRequest)
		time.Sleep(2 * time.Minute)
		_, err := io.WriteString(c, aRequest)
		require.Error(t, err, "it is closed")
	})
}

func TestAConnectionGivesItsPlaceBackOnce(t *testing.T) {
	l := listeners.NewMemory()
	g := newEntrance(l, 1, 1)
	c, err := l.Dial()
	require.NoError(t, err)
	defer c.Close()
	nc, err := g.Accept()
	require.NoError(t, err)
	require.Len(t, g.open, 1)
	nc.Close()
	nc.Close()
	require.Empty(t, g.open)
	require.Empty(t, g.hosts)
	l.Close()
	_, err = g.Accept()
	require.Error(t, err)
}
