// A small MQTT 5.0 client over WebSocket: it keeps its Session at the server, takes messages at any QoS and publishes at QoS 1.
const text = new TextEncoder(), decode = new TextDecoder();

class Writer {
  bytes = [];
  byte(n) { this.bytes.push(n); return this; }
  two(n) { return this.byte(n >> 8 & 255).byte(n & 255); }
  four(n) { return this.two(n >>> 16).two(n & 65535); }
  raw(b) { for (const x of b) this.bytes.push(x); return this; }
  string(s) { const b = text.encode(s); return this.two(b.length).raw(b); }
  varint(n) { do { this.byte(n % 128 | (n > 127 ? 128 : 0)); n = n >> 7; } while (n > 0); return this; }
  block(w) { return this.varint(w.bytes.length).raw(w.bytes); } // with its length in front
}

class Reader {
  constructor(bytes) { this.b = bytes; this.at = 0; }
  byte() { return this.b[this.at++]; }
  two() { return this.byte() << 8 | this.byte(); }
  raw(n) { this.at += n; return this.b.subarray(this.at - n, this.at); }
  string() { return decode.decode(this.raw(this.two())); }
  varint() { let n = 0, shift = 0, x; do { x = this.byte(); n |= (x & 127) << shift; shift += 7; } while (x > 127); return n; }
}

// What a property has behind its identifier, as far as servers send them with CONNACK, PUBLISH, PUBACK and DISCONNECT.
const kinds = { 1: "byte", 2: "four", 3: "string", 8: "string", 9: "string", 11: "varint", 17: "four", 18: "string", 19: "two", 26: "string",
  28: "string", 31: "string", 33: "two", 34: "two", 36: "byte", 37: "byte", 38: "pair", 39: "four", 40: "byte", 41: "byte", 42: "byte" };

function properties(r) {
  const out = { user: {} }, end = r.varint() + r.at;
  while (r.at < end) {
    const id = r.byte(), kind = kinds[id];
    if (kind === "pair") { const name = r.string(); out.user[name] = r.string(); }
    else if (kind === "four") out[id] = r.two() * 65536 + r.two();
    else if (kind) out[id] = r[kind]();
    else throw new Error("an unknown property");
  }
  return out;
}

// on has the functions up(), down(code), message({topic, body, user, qos}) and acknowledged(ref, code). message has stored the message
// when it returns: only then it is acknowledged.
export class Mqtt {
  #socket; #buffer = new Uint8Array(); #ping; #next = 0; #waiting = new Map(); #open = new Set();
  constructor(url, clientId, password, on) {
    this.on = on;
    this.#socket = new WebSocket(url, "mqtt");
    this.#socket.binaryType = "arraybuffer";
    this.#socket.onopen = () => {
      const w = new Writer().string("MQTT").byte(5).byte(0x40).two(30)
        .block(new Writer().byte(17).four(30 * 24 * 3600)).string(clientId).string(password);
      this.#send(0x10, w);
    };
    this.#socket.onmessage = (e) => { try { this.#take(new Uint8Array(e.data)); } catch (err) { console.error(err); this.close(); } };
    this.#socket.onclose = () => this.#over(0);
  }
  close() { this.#socket.close(); this.#over(0); }
  #over(code) {
    clearInterval(this.#ping);
    if (!this.on) return;
    const on = this.on;
    this.on = null;
    on.down(code);
  }
  #send(first, w = new Writer()) {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(new Uint8Array(new Writer().byte(first).block(w).bytes));
  }
  publish(topic, body, ref) {
    do { this.#next = this.#next % 65535 + 1; } while (this.#waiting.has(this.#next));
    this.#waiting.set(this.#next, ref);
    const p = new Writer().byte(1).byte(1).byte(38).string("ref").string(ref);
    this.#send(0x32, new Writer().string(topic).two(this.#next).block(p).raw(text.encode(body)));
  }
  #take(more) {
    const all = new Uint8Array(this.#buffer.length + more.length);
    all.set(this.#buffer); all.set(more, this.#buffer.length);
    let at = 0;
    for (;;) {
      let n = 0, size = 0, x;
      do { x = all[at + 1 + n]; if (x === undefined) { this.#buffer = all.slice(at); return; } size |= (x & 127) << (7 * n++); } while (x > 127);
      const begin = at + 1 + n;
      if (all.length < begin + size) { this.#buffer = all.slice(at); return; }
      this.#packet(all[at], new Reader(all.subarray(begin, begin + size)));
      at = begin + size;
    }
  }
  #packet(first, r) {
    switch (first >> 4) {
      case 2: { // CONNACK
        if (!(r.byte() & 1)) this.#open.clear();
        const code = r.byte();
        if (code) { this.#over(code); this.#socket.close(); return; }
        this.#ping = setInterval(() => this.#send(0xC0), 20000);
        this.on.up();
        return;
      }
      case 3: return this.#published(first >> 1 & 3, r);
      case 4: { // PUBACK
        const id = r.two(), ref = this.#waiting.get(id);
        this.#waiting.delete(id);
        if (ref) this.on?.acknowledged(ref, r.b.length > 2 ? r.byte() : 0);
        return;
      }
      case 6: { const id = r.two(); this.#open.delete(id); this.#send(0x70, new Writer().two(id)); return; } // PUBREL
      case 14: this.#over(r.b.length ? r.byte() : 0); this.#socket.close(); return; // DISCONNECT
    }
  }
  #published(qos, r) {
    const topic = r.string(), id = qos ? r.two() : 0, p = properties(r);
    if (qos < 2 || !this.#open.has(id)) {
      this.on?.message({ topic, body: decode.decode(r.b.subarray(r.at)), user: p.user, qos });
    }
    if (qos === 2) this.#open.add(id);
    if (qos) this.#send(qos === 1 ? 0x40 : 0x50, new Writer().two(id));
  }
}
