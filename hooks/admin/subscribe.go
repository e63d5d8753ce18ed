package admin

import (
	"net/http"

	"github.com/dunlin-mqtt/dunlin/hooks"
	"github.com/dunlin-mqtt/dunlin/packets"
)

// This file is subscriptions that an operator makes for clients.

// subscribeBody subscribes a client, also one that comes later.
type subscribeBody struct {
	ID                string `json:"id"`
	Filter            string `json:"filter"`
	QoS               int    `json:"qos,omitempty"`
	NoLocal           bool   `json:"no_local,omitempty"`
	RetainAsPublished bool   `json:"retain_as_published,omitempty"`
}

// subscribe subscribes a client, whether it is connected or not. The subscription stays until
// unsubscribe ends it. No access rule is asked.
func (c *call) subscribe() error {
	var a subscribeBody
	if err := c.read(&a); err != nil {
		return err
	}
	c.about = a.ID + " " + a.Filter
	if a.QoS < 0 || a.QoS > 2 {
		return fail(http.StatusBadRequest, "qos", "the QoS is none of 0, 1 and 2")
	}
	err := c.desk.b.SubscribeClient(c.r.Context(), a.ID, hooks.Subscription{
		Subscription: packets.Subscription{Filter: a.Filter, QoS: packets.QoS(a.QoS),
			NoLocal: a.NoLocal, RetainAsPublished: a.RetainAsPublished}})
	if err != nil {
		return err
	}
	return c.did(1)
}

// unsubscribeBody ends a subscription that subscribe has made.
type unsubscribeBody struct {
	ID     string `json:"id"`
	Filter string `json:"filter"`
}

// unsubscribe ends a subscription that subscribe has made. Those that the client has made stay.
func (c *call) unsubscribe() error {
	var a unsubscribeBody
	if err := c.read(&a); err != nil {
		return err
	}
	c.about = a.ID + " " + a.Filter
	n, err := c.desk.b.UnsubscribeClient(c.r.Context(), a.ID, a.Filter)
	if err != nil {
		return err
	}
	if n == 0 {
		return fail(http.StatusNotFound, "no_subscription", "the server has made no such "+
			"subscription for this Client Identifier")
	}
	return c.did(n)
}
