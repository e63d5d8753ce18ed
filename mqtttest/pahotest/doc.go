// Package pahotest holds no code, only tests that show the two Eclipse Paho client libraries on
// package mqtttest: over sockets, and in the virtual time of a testing/synctest bubble.
//
// What they need in a bubble:
//
//   - The connection has to be one of mqtttest.Broker.Dial. Paho's
//     github.com/eclipse/paho.mqtt.golang takes it by ClientOptions.SetCustomOpenConnectionFn,
//     github.com/eclipse/paho.golang by autopaho.ClientConfig.AttemptConnection, or for package
//     paho by paho.ClientConfig.Conn. The broker's URL is still required by both and may be any.
//     What paho.golang gets has to be wrapped by its packets.NewThreadSafeConn: it writes a packet
//     in pieces, and a ping of its own could come between them.
//   - The client must be made, connected and disconnected inside of the bubble, and must have ended
//     before the bubble does: its goroutines belong to it. For paho.mqtt.golang that is Disconnect
//     and a moment of virtual time after it, for autopaho Disconnect or the end of the context and
//     <-Done().
//   - A token or context with a timeout waits in virtual time. Where nothing else is to happen for
//     an hour, such a timeout is what happens next.
//   - No file store and no WebSocket or TCP connection: a bubble cannot wait for the system.
package pahotest
