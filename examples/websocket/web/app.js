"use strict";
// The page: one MQTT.js client, a tree of the topics that it has heard, a chart of the one that is selected, and two forms. Whatever comes by MQTT is
// put into the page as text only.

const $ = (id) => document.getElementById(id);
const maxPoints = 600, maxLog = 7;
const root = { children: new Map() };
const filters = new Map(); // filter -> QoS
let selected = null, total = 0, recent = [];

const client = mqtt.connect(location.origin.replace(/^http/, "ws") + "/mqtt", {
  protocolVersion: 5, clientId: "page-" + Math.random().toString(36).slice(2, 10), clean: true, reconnectPeriod: 500, connectTimeout: 5000, resubscribe: true,
});

function status(state, text) {
  $("status").dataset.state = state;
  $("status").textContent = text || state;
}
client.on("connect", () => status("connected"));
client.on("reconnect", () => status("connecting", "connecting again"));
client.on("close", () => status("closed", "not connected"));
client.on("error", (err) => status("closed", err.message));

// --- subscriptions

// ill says what is wrong with a Topic Filter, or nothing. The broker ends the connection of a client that sends one.
function ill(filter) {
  const levels = filter.split("/");
  if (levels.some((l) => l.includes("+") && l !== "+")) return "+ stands for a whole level, as in a/+/c.";
  if (filter.includes("#") && (!filter.endsWith("#") || levels.at(-1) !== "#" || filter.indexOf("#") !== filter.length - 1)) {
    return "# stands at the end, for a whole level, as in a/#.";
  }
  if (levels[0] === "$share" && (levels.length < 3 || levels[1] === "" || /[+]/.test(levels[1]))) return "Write $share/GROUP/FILTER.";
  return "";
}

function subscribe(filter, qos) {
  $("subscribe").elements.filter.setCustomValidity(ill(filter));
  if (!$("subscribe").reportValidity()) return;
  client.subscribe(filter, { qos }, (err, granted) => {
    const refused = err || (granted && granted.find((g) => g.qos >= 128));
    if (refused) {
      alert("The subscription to " + filter + " was refused: " + (err ? err.message : "0x" + refused.qos.toString(16)));
      return;
    }
    filters.set(filter, qos);
    showFilters();
  });
}

function showFilters() {
  $("filters").replaceChildren(...[...filters].map(([filter, qos]) => {
    const li = element("li", "", filter + " · QoS " + qos);
    const x = element("button", "", "×");
    x.title = "Unsubscribe";
    x.onclick = () => client.unsubscribe(filter, () => { filters.delete(filter); showFilters(); });
    li.append(x);
    return li;
  }));
}

$("subscribe").elements.filter.oninput = (e) => e.target.setCustomValidity("");
$("subscribe").onsubmit = (e) => {
  e.preventDefault();
  const f = e.target.elements;
  subscribe(f.filter.value, Number(f.qos.value));
};

$("publish").onsubmit = (e) => {
  e.preventDefault();
  const f = e.target.elements, at = performance.now(), qos = Number(f.qos.value);
  if (/[+#]/.test(f.topic.value)) { // the broker would end the connection, and MQTT.js would publish it again and again
    f.result.value = "not published: a Topic Name has no + or #; only Topic Filters have them";
    return;
  }
  f.result.value = "…";
  client.publish(f.topic.value, f.payload.value, { qos, retain: f.retain.checked }, (err) => {
    f.result.value = err ? "not published: " + err.message : "published at QoS " + qos + " in " + (performance.now() - at).toFixed(1) + " ms";
  });
};

// --- the tree

function element(tag, cls, text) {
  const e = document.createElement(tag);
  if (cls) e.className = cls;
  if (text !== undefined) e.textContent = text;
  return e;
}

function makeNode(parent, list, name, topic) {
  const n = { name, topic, parent, children: new Map(), count: 0, points: [], li: element("li", "leaf"), list: null, last: null };
  n.row = element("div", "row");
  n.row.dataset.topic = topic;
  n.nameEl = element("span", "name", name === "" ? "(empty)" : name);
  n.countEl = element("span", "count");
  n.valueEl = element("span", "value");
  n.row.append(n.nameEl, n.countEl, n.valueEl);
  n.row.onclick = () => {
    if (!n.last) {
      n.li.classList.toggle("shut");
      return;
    }
    select(n);
    $("detail").scrollIntoView({ block: "nearest" }); // on a narrow screen the chart is below the topics
  };
  n.li.append(n.row);
  const after = [...list.children].find((li) => li.node.name > name);
  list.insertBefore(n.li, after || null);
  n.li.node = n;
  return n;
}

function nodeOf(topic) {
  let n = root, list = $("tree"), path = "";
  for (const level of topic.split("/")) {
    path = path === "" && n === root ? level : path + "/" + level;
    let child = n.children.get(level);
    if (!child) {
      if (n !== root && !n.list) {
        n.list = element("ul");
        n.li.append(n.list);
        n.li.classList.remove("leaf");
      }
      child = makeNode(n, n === root ? list : n.list, level, path);
      n.children.set(level, child);
    }
    n = child;
    list = n.list;
  }
  return n;
}

const dirty = new Set();
client.on("message", (topic, payload, packet) => {
  total++;
  const n = nodeOf(topic), at = Date.now();
  const text = new TextDecoder().decode(payload.subarray(0, 200));
  n.last = { at, text, size: payload.length, qos: packet.qos, retain: packet.retain };
  n.count++;
  const x = text.trim() === "" ? NaN : Number(text);
  if (Number.isFinite(x)) {
    n.points.push([at, x]);
    if (n.points.length > maxPoints) n.points.shift();
  }
  recent.unshift([n, n.last]);
  recent.length = Math.min(recent.length, maxLog);
  dirty.add(n);
  if (!selected && Number.isFinite(x)) select(n);
});

function select(n) {
  if (selected) selected.row.classList.remove("on");
  selected = n;
  n.row.classList.add("on");
  $("selected").textContent = n.topic;
  $("publish").elements.topic.value = n.topic;
}

// Once a frame, whatever has come meanwhile.
let counted = 0, countedAt = performance.now(), perSecond = 0;
function frame(now) {
  for (const n of dirty) {
    n.valueEl.textContent = n.last.text;
    n.countEl.textContent = n.count > 1 ? "×" + n.count : "";
    n.valueEl.classList.remove("new");
    void n.valueEl.offsetWidth; // starts the animation anew
    n.valueEl.classList.add("new");
  }
  if (dirty.size > 0) {
    dirty.clear();
    showLog();
  }
  if (now - countedAt >= 1000) {
    perSecond = ((total - counted) * 1000) / (now - countedAt);
    counted = total;
    countedAt = now;
  }
  $("rate").textContent = total + " messages, " + perSecond.toFixed(1) + " a second";
  if (selected) draw(selected);
  requestAnimationFrame(frame);
}

function showLog() {
  $("log").replaceChildren(...recent.map(([n, m]) => {
    const tr = element("tr");
    tr.append(element("td", "", new Date(m.at).toLocaleTimeString("en-GB")), element("td", "", n.topic), element("td", "", m.text), element("td", "", m.qos + (m.retain ? " r" : "")));
    return tr;
  }));
}

// --- the chart

const windowMs = 60000;

function ticks(low, high, n) {
  const raw = (high - low) / n, mag = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((k) => k * mag).find((s) => s >= raw);
  const out = [];
  for (let v = Math.ceil(low / step) * step; v <= high; v += step) out.push(v);
  return { out, digits: Math.max(0, -Math.floor(Math.log10(step))) };
}

function draw(n) {
  const m = n.last;
  $("facts").textContent = m ? "last " + m.text + " · " + m.size + " bytes · QoS " + m.qos + (m.retain ? " · retained" : "") + " · " + n.count + " messages" : "";
  const canvas = $("chart"), ratio = window.devicePixelRatio || 1, w = canvas.clientWidth, h = canvas.clientHeight;
  if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
    canvas.width = Math.round(w * ratio);
    canvas.height = Math.round(h * ratio);
  }
  const c = canvas.getContext("2d"), css = getComputedStyle(document.documentElement), color = (name) => css.getPropertyValue(name).trim();
  c.setTransform(ratio, 0, 0, ratio, 0, 0);
  c.clearRect(0, 0, w, h);
  c.font = "12px system-ui, sans-serif";
  const now = Date.now(), points = n.points.filter((p) => p[0] > now - windowMs);
  if (points.length === 0) {
    c.fillStyle = color("--faint");
    c.textAlign = "center";
    c.fillText(n.points.length ? "no number in the last minute" : "no numbers on this topic", w / 2, h / 2);
    return;
  }
  let low = Math.min(...points.map((p) => p[1])), high = Math.max(...points.map((p) => p[1]));
  const pad = (high - low) * 0.12 || Math.abs(high) * 0.1 || 1;
  low -= pad;
  high += pad;
  const left = 52, right = 10, top = 8, bottom = 22;
  const X = (t) => left + ((t - (now - windowMs)) / windowMs) * (w - left - right), Y = (v) => h - bottom - ((v - low) / (high - low)) * (h - top - bottom);
  c.lineWidth = 1;
  c.textBaseline = "middle";
  c.textAlign = "right";
  const { out, digits } = ticks(low, high, 7);
  for (const v of out) {
    c.strokeStyle = color("--line");
    c.beginPath();
    c.moveTo(left, Y(v));
    c.lineTo(w - right, Y(v));
    c.stroke();
    c.fillStyle = color("--faint");
    c.fillText(v.toFixed(digits), left - 8, Y(v));
  }
  c.textBaseline = "alphabetic";
  c.textAlign = "center";
  for (let s = 50; s >= 0; s -= 10) c.fillText(s === 0 ? "now" : "−" + s + " s", Math.min(X(now - s * 1000), w - right - 12), h - 5);
  c.beginPath();
  points.forEach((p, i) => (i ? c.lineTo(X(p[0]), Y(p[1])) : c.moveTo(X(p[0]), Y(p[1]))));
  c.strokeStyle = color("--main");
  c.lineWidth = 2;
  c.lineJoin = "round";
  c.stroke();
  const last = points[points.length - 1];
  c.lineTo(X(last[0]), h - bottom);
  c.lineTo(X(points[0][0]), h - bottom);
  c.globalAlpha = 0.12;
  c.fillStyle = color("--main");
  c.fill();
  c.globalAlpha = 1;
  c.beginPath();
  c.arc(X(last[0]), Y(last[1]), 4, 0, 7);
  c.fill();
}

subscribe("#", 2);
requestAnimationFrame(frame);
