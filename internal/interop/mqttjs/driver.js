// Hosts MQTT.js clients for the Go test beside it: commands come as lines of JSON on standard input, replies and events go
// to standard output in the same way. ../README.md describes the lines.
import mqtt from 'mqtt'
import { createInterface } from 'node:readline'

const clients = new Map()

const write = (line) => process.stdout.write(JSON.stringify(line) + '\n')

// pairs turns { k: v, l: [w, x] } into [[k, v], [l, w], [l, x]].
const pairs = (user) => Object.entries(user ?? {}).flatMap(([k, v]) => [v].flat().map((w) => [k, w]))

function object (user) {
  const o = {}
  for (const [k, v] of user) o[k] = k in o ? [o[k], v].flat() : v
  return o
}

function fromPacket (topic, payload, packet) {
  const p = packet.properties ?? {}
  return {
    topic,
    payload: payload.toString('base64'),
    qos: packet.qos,
    retain: packet.retain,
    user: pairs(p.userProperties),
    contentType: p.contentType,
    responseTopic: p.responseTopic,
    correlationData: p.correlationData?.toString('base64'),
    expiry: p.messageExpiryInterval,
    subscriptionIdentifiers: p.subscriptionIdentifier === undefined ? undefined : [p.subscriptionIdentifier].flat()
  }
}

function properties (m) {
  const p = {}
  if (m.user) p.userProperties = object(m.user)
  if (m.contentType) p.contentType = m.contentType
  if (m.responseTopic) p.responseTopic = m.responseTopic
  if (m.correlationData) p.correlationData = Buffer.from(m.correlationData, 'base64')
  if (m.expiry) p.messageExpiryInterval = m.expiry
  return p
}

function connect (c) {
  const v5 = c.version === 5
  const options = {
    host: '127.0.0.1',
    port: c.port,
    protocol: 'mqtt',
    protocolId: c.version === 3 ? 'MQIsdp' : 'MQTT',
    protocolVersion: c.version,
    clientId: c.clientId,
    clean: c.clean ?? false,
    keepalive: c.keepAlive ?? 0,
    reconnectPeriod: c.reconnect ? 50 : 0,
    resubscribe: false,
    autoUseTopicAlias: v5
  }
  if (v5) {
    options.properties = { sessionExpiryInterval: c.sessionExpiry ?? 0 }
    if (c.topicAliasMaximum) options.properties.topicAliasMaximum = c.topicAliasMaximum
  }
  if (c.will) {
    options.will = { topic: c.will.topic, payload: Buffer.from(c.will.payload, 'base64'), qos: c.will.qos, retain: c.will.retain }
    if (v5) options.will.properties = { ...properties(c.will), willDelayInterval: c.willDelay ?? 0 }
  }
  const client = mqtt.connect(options)
  clients.set(c.client, { client, v5 })
  return new Promise((resolve, reject) => {
    client.on('connect', (connack) => {
      write({ client: c.client, event: 'connected' })
      resolve({ sessionPresent: connack.sessionPresent })
    })
    client.on('message', (topic, payload, packet) =>
      write({ client: c.client, event: 'message', message: fromPacket(topic, payload, packet) }))
    client.on('disconnect', (packet) => write({ client: c.client, event: 'disconnect', code: packet.reasonCode }))
    client.on('close', () => {
      write({ client: c.client, event: 'closed' })
      reject(new Error('the connection was closed before CONNACK'))
    })
    client.on('error', reject)
  })
}

// settle makes a promise of a call with a callback.
const settle = (call) => new Promise((resolve, reject) =>
  call((err, value, packet) => err ? reject(err) : resolve({ value, packet })))

const operations = {
  connect,

  async subscribe ({ client, v5 }, c) {
    const filters = {}
    for (const s of c.subscriptions) {
      filters[s.filter] = { qos: s.qos }
      if (v5) Object.assign(filters[s.filter], { nl: s.noLocal, rap: s.retainAsPublished, rh: s.retainHandling })
    }
    const options = c.identifier ? { properties: { subscriptionIdentifier: c.identifier } } : {}
    const { packet } = await settle((done) => client.subscribe(filters, options, done))
    return { codes: packet.granted }
  },

  async unsubscribe ({ client, v5 }, c) {
    const { value } = await settle((done) => client.unsubscribe(c.filters, done))
    return { codes: v5 ? value?.granted : undefined }
  },

  async publish ({ client, v5 }, c) {
    await Promise.all(c.messages.map((m, i) => {
      const options = { qos: m.qos, retain: m.retain }
      if (v5) options.properties = properties(m)
      // The client puts the alias in the place of the topic itself once it has sent both.
      if (m.alias && i === 0) options.properties.topicAlias = m.alias
      return settle((done) => client.publish(m.topic, Buffer.from(m.payload, 'base64'), options, done))
    }))
  },

  async disconnect ({ client }) {
    await settle((done) => client.end(false, {}, done))
  },

  async kill ({ client }, c) {
    clients.delete(c.client)
    client.end(true)
  }
}

const lines = createInterface({ input: process.stdin })
lines.on('line', async (line) => {
  const c = JSON.parse(line)
  try {
    const subject = c.op === 'connect' ? c : clients.get(c.client)
    if (subject) write({ id: c.id, ...await operations[c.op](subject, c) })
    else write({ id: c.id })
  } catch (err) {
    write({ id: c.id, error: String(err) })
  }
})
lines.on('close', () => process.exit(0))
