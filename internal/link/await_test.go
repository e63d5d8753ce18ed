package link

import (
	"crypto/tls"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dunlin-mqtt/dunlin/internal/testcert"
)

// What Await has read of a TLS connection comes first, once, whatever the buffer.
func TestAwaitTakesNothingFromATLSConnection(t *testing.T) {
	ca := testcert.CA(t, "servers")
	a, b := net.Pipe()
	defer a.Close()
	client := tls.Client(a, &tls.Config{RootCAs: ca.Pool(), ServerName: "localhost"})
	server := tls.Server(b, &tls.Config{
		Certificates: []tls.Certificate{ca.Issue("localhost").TLS()},
	})
	defer server.Close()
	sent := make(chan error, 1)
	go func() {
		for _, s := range []string{"ab", "c", "defgh"} {
			if _, err := client.Write([]byte(s)); err != nil {
				sent <- err
				return
			}
		}
		sent <- client.CloseWrite()
	}()
	var s Socket
	s.Init(server)
	require.True(t, s.CanAwait())
	var got []byte
	buf := make([]byte, 3)
	for {
		n, err := s.Await(buf)
		got = append(got, buf[:n]...)
		if err == nil {
			n, err = s.Read(buf)
			got = append(got, buf[:n]...)
		}
		if err != nil {
			require.Equal(t, io.EOF, err)
			break
		}
	}
	require.Equal(t, "abcdefgh", string(got))
	require.NoError(t, <-sent)
}

func TestAwaitEndsWithTheDeadline(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	server := tls.Server(b, &tls.Config{})
	var s Socket
	s.Init(server)
	require.NoError(t, s.SetReadDeadline(time.Unix(1, 0)))
	var timeout net.Error
	_, err := s.Await(make([]byte, 1))
	require.ErrorAs(t, err, &timeout)
	require.True(t, timeout.Timeout())
}

func TestOnlySomeConnectionsCanAwait(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	var s Socket
	s.Init(a)
	require.False(t, s.CanAwait())
}
