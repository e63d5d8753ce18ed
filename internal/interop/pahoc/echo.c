/* Subscribes to a topic, publishes to it at each QoS, and expects every message back, as a program
 * that uses Paho's C library synchronously. Exit status 0: all came.
 * Usage: echo URI CLIENT-ID VERSION COUNT */
#include <MQTTClient.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TIMEOUT 10000 /* ms */

static int fail(const char *what, int rc) {
	fprintf(stderr, "echo: %s: %d\n", what, rc);
	return 1;
}

/* exchange publishes one message and waits for its acknowledgement and for the message. */
static int exchange(MQTTClient client, char *topic, int qos, int number) {
	char payload[32];
	MQTTClient_message message = MQTTClient_message_initializer;
	MQTTClient_message *got = NULL;
	MQTTClient_deliveryToken token;
	char *from = NULL;
	int rc, length;

	snprintf(payload, sizeof payload, "%d/%d", qos, number);
	message.payload = payload;
	message.payloadlen = (int)strlen(payload);
	message.qos = qos;
	if ((rc = MQTTClient_publishMessage(client, topic, &message, &token)) != MQTTCLIENT_SUCCESS)
		return fail("publish", rc);
	if (qos > 0 && (rc = MQTTClient_waitForCompletion(client, token, TIMEOUT)) != MQTTCLIENT_SUCCESS)
		return fail("waiting for the acknowledgement", rc);
	rc = MQTTClient_receive(client, &from, &length, &got, TIMEOUT);
	if (rc != MQTTCLIENT_SUCCESS && rc != MQTTCLIENT_TOPICNAME_TRUNCATED)
		return fail("receive", rc);
	if (got == NULL)
		return fail("no message came, of QoS", qos);
	if (got->payloadlen != message.payloadlen || memcmp(got->payload, payload, got->payloadlen) != 0)
		return fail("another message came, instead of number", number);
	MQTTClient_freeMessage(&got);
	MQTTClient_free(from);
	return 0;
}

int main(int argc, char **argv) {
	MQTTClient client;
	MQTTClient_connectOptions options = MQTTClient_connectOptions_initializer_ws;
	char topic[64];
	int rc, qos, i;

	if (argc != 5)
		return fail("usage: echo URI CLIENT-ID VERSION COUNT, arguments", argc - 1);
	snprintf(topic, sizeof topic, "echo/%s", argv[2]);
	rc = MQTTClient_create(&client, argv[1], argv[2], MQTTCLIENT_PERSISTENCE_NONE, NULL);
	if (rc != MQTTCLIENT_SUCCESS)
		return fail("create", rc);
	options.MQTTVersion = atoi(argv[3]);
	options.keepAliveInterval = 60;
	options.connectTimeout = TIMEOUT / 1000;
	if ((rc = MQTTClient_connect(client, &options)) != MQTTCLIENT_SUCCESS)
		return fail("connect", rc);
	if ((rc = MQTTClient_subscribe(client, topic, 2)) != MQTTCLIENT_SUCCESS)
		return fail("subscribe", rc);
	for (i = 0; i < atoi(argv[4]); i++)
		for (qos = 0; qos <= 2; qos++)
			if (exchange(client, topic, qos, i) != 0)
				return 1;
	if ((rc = MQTTClient_disconnect(client, 0)) != MQTTCLIENT_SUCCESS)
		return fail("disconnect", rc);
	MQTTClient_destroy(&client);
	return 0;
}
