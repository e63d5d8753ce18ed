"""Hosts paho-mqtt clients for the Go test beside it.

Commands come as lines of JSON on standard input, replies and events go to standard output in the same way;
../README.md describes the lines. It works with versions 1.6 and 2 of the package.
"""

import base64
import gc
import json
import os
import sys
import threading

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

PATIENCE = 14  # seconds, a little less than the Go side's

output = threading.Lock()


def write(**line):
    with output:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def unpack(text):
    return base64.b64decode(text or "")


def properties_of(message, kind, delay=0):
    """The properties of a PUBLISH or a will."""
    p = Properties(kind)
    if message.get("user"):
        p.UserProperty = [tuple(pair) for pair in message["user"]]
    if message.get("contentType"):
        p.ContentType = message["contentType"]
    if message.get("responseTopic"):
        p.ResponseTopic = message["responseTopic"]
    if message.get("correlationData"):
        p.CorrelationData = unpack(message["correlationData"])
    if message.get("expiry"):
        p.MessageExpiryInterval = message["expiry"]
    if message.get("alias"):
        p.TopicAlias = message["alias"]
    if delay:
        p.WillDelayInterval = delay
    return p


def describe(m):
    """A received message as the Go side wants it."""
    message = {
        "topic": m.topic,
        "payload": base64.b64encode(m.payload).decode(),
        "qos": m.qos,
        "retain": bool(m.retain),
    }
    p = getattr(m, "properties", None)
    if p is None:
        return message
    message["user"] = [list(pair) for pair in getattr(p, "UserProperty", [])]
    message["contentType"] = getattr(p, "ContentType", "")
    message["responseTopic"] = getattr(p, "ResponseTopic", "")
    message["correlationData"] = base64.b64encode(getattr(p, "CorrelationData", b"")).decode()
    message["expiry"] = getattr(p, "MessageExpiryInterval", 0)
    message["subscriptionIdentifiers"] = getattr(p, "SubscriptionIdentifier", [])
    return message


def number(code):
    """A Reason Code of any version of the package as a number."""
    return getattr(code, "value", code)


class Client:
    def __init__(self, command):
        self.name = command["client"]
        self.v5 = command["version"] == 5
        self.changed = threading.Condition()
        self.connack = None  # flags and code
        self.ended = False
        self.acks = {}  # Packet Identifier: codes

        arguments = {
            "client_id": command["clientId"],
            "protocol": command["version"],
            "reconnect_on_failure": command.get("reconnect", False),
        }
        if not self.v5:
            arguments["clean_session"] = command.get("clean", False)
        if hasattr(mqtt, "CallbackAPIVersion"):
            arguments["callback_api_version"] = mqtt.CallbackAPIVersion.VERSION1
        self.client = mqtt.Client(**arguments)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = self.on_connect
        self.client.on_message = lambda c, u, m: write(client=self.name, event="message", message=describe(m))
        self.client.on_disconnect = self.on_disconnect
        self.client.on_subscribe = lambda c, u, mid, codes, properties=None: self.acknowledged(mid, codes)
        self.client.on_unsubscribe = self.on_unsubscribe
        self.set_will(command)

    def set_will(self, command):
        will = command.get("will")
        if not will:
            return
        properties = properties_of(will, PacketTypes.WILLMESSAGE, command.get("willDelay", 0)) if self.v5 else None
        self.client.will_set(will["topic"], unpack(will["payload"]), will["qos"], will["retain"], properties)

    def on_connect(self, client, userdata, flags, code, properties=None):
        write(client=self.name, event="connected")
        with self.changed:
            self.connack = (flags, number(code))
            self.changed.notify_all()

    def on_disconnect(self, client, userdata, code, properties=None):
        write(client=self.name, event="closed")
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def on_unsubscribe(self, client, userdata, mid, properties=None, codes=None):
        if codes is not None and not isinstance(codes, list):
            codes = [codes]
        self.acknowledged(mid, codes)

    def acknowledged(self, mid, codes):
        with self.changed:
            self.acks[mid] = [number(code) for code in codes or []]
            self.changed.notify_all()

    def wait(self, condition, what):
        with self.changed:
            if not self.changed.wait_for(condition, PATIENCE):
                raise TimeoutError("no " + what)

    def connect(self, command):
        arguments = {"keepalive": command.get("keepAlive", 0)}
        if self.v5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = command.get("sessionExpiry", 0)
            arguments["properties"] = properties
            # MQTT_CLEAN_START_FIRST_ONLY would be the default, but a client that resumes must not even clean then.
            arguments["clean_start"] = mqtt.MQTT_CLEAN_START_FIRST_ONLY if command.get("clean") else False
        self.client.connect("127.0.0.1", command["port"], **arguments)
        self.client.loop_start()
        self.wait(lambda: self.connack or self.ended, "CONNACK")
        if self.connack is None:
            raise ConnectionError("the connection was closed before CONNACK")
        flags, code = self.connack
        if code:
            raise ConnectionError("connection refused: %s" % code)
        return {"sessionPresent": bool(flags["session present"])}

    def subscribe(self, command):
        subscriptions, properties = [], None
        for s in command["subscriptions"]:
            if self.v5:
                options = SubscribeOptions(s["qos"], s["noLocal"], s["retainAsPublished"], s["retainHandling"])
                subscriptions.append((s["filter"], options))
            else:
                subscriptions.append((s["filter"], s["qos"]))
        if command.get("identifier"):
            properties = Properties(PacketTypes.SUBSCRIBE)
            properties.SubscriptionIdentifier = command["identifier"]
        _, mid = self.client.subscribe(subscriptions, properties=properties)
        self.wait(lambda: mid in self.acks, "SUBACK")
        return {"codes": self.acks.pop(mid)}

    def unsubscribe(self, command):
        _, mid = self.client.unsubscribe(command["filters"])
        self.wait(lambda: mid in self.acks, "UNSUBACK")
        return {"codes": self.acks.pop(mid)}

    def publish(self, command):
        infos = []
        for i, m in enumerate(command["messages"]):
            topic = "" if m.get("alias") and i > 0 else m["topic"]
            properties = properties_of(m, PacketTypes.PUBLISH) if self.v5 else None
            infos.append(self.client.publish(topic, unpack(m["payload"]), m["qos"], m["retain"], properties))
        for info in infos:
            info.wait_for_publish(PATIENCE)
            if not info.is_published():
                raise TimeoutError("a message was not acknowledged")

    def disconnect(self, command):
        self.client.disconnect()
        self.wait(lambda: self.ended, "end of the connection")
        self.client.loop_stop()

    def kill(self, command):
        self.client.disconnect()
        self.client.loop_stop()
        # The package closes two of a client's three sockets only when it is collected, and select knows none above 1023.
        self.client = None
        gc.collect()


clients = {}


def execute(command):
    try:
        name, op = command["client"], command["op"]
        if op == "connect":
            clients[name] = Client(command)
        client = clients.get(name)
        if op == "kill":
            clients.pop(name, None)
        result = getattr(client, op)(command) if client else None
        write(id=command["id"], **(result or {}))
    except Exception as e:  # the Go side reports it, whatever it is
        write(id=command["id"], error="%s: %s" % (type(e).__name__, e))


for line in sys.stdin:
    # Each command waits in a thread of its own for what the client's thread gets from the broker.
    threading.Thread(target=execute, args=(json.loads(line),), daemon=True).start()
os._exit(0)
