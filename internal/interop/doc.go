// Package interop holds no code, only tests: they start the example broker and let real MQTT
// clients use it, the Eclipse Paho clients for Go and Python, MQTT.js and Mosquitto's command line
// tools, in every version of the protocol that each of them speaks. README.md beside this file says
// what they need and how to run them.
package interop
