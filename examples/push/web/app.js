import { Mqtt } from "./mqtt.js";
import { Store } from "./store.js";

const $ = (id) => document.getElementById(id);
const notices = "service";
let token, me, store, link, chat = null, tries = 0, retry, state = "connecting";

// el makes an element. What users have written only ever becomes text.
function el(tag, name, ...inner) {
  const e = document.createElement(tag);
  if (name) e.className = name;
  e.append(...inner);
  return e;
}

async function api(method, path) {
  const r = await fetch(path, { method, headers: { Authorization: "Bearer " + token } });
  const answer = r.status === 204 ? null : await r.json();
  if (!r.ok) throw Object.assign(new Error(answer.error), { status: r.status });
  return answer;
}

const nameOf = (account) => account.slice(account.indexOf("/") + 1);
const senderOf = (m) => m.from === notices ? "Notice" : nameOf(m.from);
const initial = (name) => ([...name][0] ?? "?").toUpperCase();
const clock = (at) => new Date(at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
function day(at) {
  const d = new Date(at), today = new Date();
  return d.toDateString() === today.toDateString() ? "Today" : d.toLocaleDateString([], { weekday: "long", day: "numeric", month: "long" });
}

// The conversations: notices, groups, people of the groups, devices.
function chats() {
  const list = [{ key: notices, name: "Notices", kind: "notices" }];
  for (const g of me.groups) list.push({ key: "groups/" + g.name, name: g.name, kind: "group", members: g.members });
  const people = new Map();
  for (const g of me.groups) for (const m of g.members) if ("users/" + m.name !== me.account) people.set(m.name, m.online);
  for (const [name, online] of [...people].sort()) list.push({ key: "users/" + name, name, kind: "person", online });
  for (const d of me.devices) list.push({ key: "devices/" + d.name, name: d.name, kind: "device", online: d.online });
  for (const m of store.data.messages) { // of groups that one has left, and people who have left
    if (!list.some((c) => c.key === m.chat)) list.push({ key: m.chat, name: nameOf(m.chat), kind: "former" });
  }
  return list;
}

// chatOf says which conversation a message belongs to.
function chatOf(topic, from) {
  const [kind, name] = topic.split("/");
  return topic === me.account || kind === "users" ? (from === notices ? notices : from) : kind + "/" + name;
}

function message({ topic, body, user }) {
  const from = user.from ?? notices;
  const m = { id: user.id ?? crypto.randomUUID(), ref: user.ref, chat: chatOf(topic, from), from, body, at: Date.now(),
    mine: from === me.account, high: user.priority === "high" };
  if (user.collapse) { // it takes the place of earlier ones
    m.collapse = user.collapse;
    store.data.messages = store.data.messages.filter((x) => x.chat !== m.chat || x.collapse !== m.collapse);
  }
  if (m.mine) delete m.state;
  store.add(m);
  draw();
}

function connect() {
  clearTimeout(retry);
  state = "connecting";
  drawStatus();
  const id = localStorage.getItem("push-client") ?? "page-" + crypto.randomUUID().slice(0, 13);
  localStorage.setItem("push-client", id);
  const url = location.origin.replace(/^http/, "ws") + "/mqtt";
  link = new Mqtt(url, id, token, {
    up() {
      state = "connected"; tries = 0;
      for (const x of store.data.outbox) link.publish(x.to, x.body, x.ref);
      look();
    },
    down(code) {
      link = null;
      if (code === 0x86 || code === 0x87) return signedOut("Your session has ended. Sign in again.");
      state = "offline";
      drawStatus();
      retry = setTimeout(connect, Math.min(30000, 500 * 2 ** tries++) * (0.75 + Math.random() / 2));
    },
    message,
    acknowledged(ref, code) {
      store.settle(ref, code >= 128 ? "was refused" : "");
      draw();
    },
  });
}

// look asks what groups there are, and who is there.
async function look() {
  try {
    me = await api("GET", "/v1/me");
    localStorage.setItem("push-me", JSON.stringify(me));
    if (new Date(me.expires) - Date.now() < 7 * 24 * 3600e3) await renew();
  } catch (e) {
    if (e.status === 401) return signedOut("Your session has ended. Sign in again.");
  }
  draw();
}

async function renew() {
  const next = await api("POST", "/v1/me/refresh");
  if (new Date(next.expires) <= new Date(me.expires)) return;
  token = next.token;
  localStorage.setItem("push-token", token);
}

function send(to, body) {
  const ref = crypto.randomUUID();
  store.data.outbox.push({ to, body, ref });
  store.add({ id: ref, ref, chat: to, from: me.account, body, at: Date.now(), mine: true, state: "not sent yet" });
  if (state === "connected") link.publish(to, body, ref);
  draw();
}

function drawStatus() {
  const texts = { connected: "Connected", connecting: "Connecting …", offline: "Offline",
    elsewhere: "Open in another tab" };
  $("status").textContent = texts[state];
  $("status").dataset.state = state;
  $("banner").hidden = state !== "offline";
}

function avatar(c) {
  const a = el("span", "avatar " + c.kind, c.kind === "notices" ? "!" : c.kind === "group" ? "#" : initial(c.name));
  a.setAttribute("aria-hidden", "true");
  if (c.online) a.append(el("i", "here"));
  return a;
}

function drawChats(list) {
  const rows = list.map((c) => {
    const last = store.of(c.key).at(-1), n = store.unread(c.key);
    const who = last && c.kind === "group" && !last.mine ? senderOf(last) + ": " : last?.mine ? "You: " : "";
    const words = last ? who + last.body : c.kind === "group" ? c.members.length + " members" : c.online ? "online" : "";
    const row = el("button", "row" + (c.key === chat ? " on" : "") + (n ? " fresh" : ""), avatar(c),
      el("span", "name", c.name), el("time", "", last ? clock(last.at) : ""), el("span", "last", words));
    if (n) row.append(el("b", "count", String(n)));
    row.dataset.key = c.key;
    row.setAttribute("aria-label", `${c.name}${c.online ? ", online" : ""}${n ? `, ${n} unread` : ""}`);
    return row;
  });
  $("chats").replaceChildren(...rows);
  const total = list.reduce((n, c) => n + store.unread(c.key), 0);
  document.title = (total ? `(${total}) ` : "") + "Messages";
}

function drawChat(c) {
  $("title").textContent = c.name;
  $("members").replaceChildren(...(c.kind === "group"
    ? c.members.map((m) => el("span", m.online ? "member here" : "member", "users/" + m.name === me.account ? "you" : m.name))
    : [c.kind === "former" ? "no longer shared with you" : c.kind === "notices" ? "from the service" : c.online ? "online" : "not connected"]));
  const box = $("messages"), out = [];
  let before = "", from = "";
  for (const m of store.of(c.key)) {
    if (day(m.at) !== before) { before = day(m.at); from = ""; out.push(el("p", "day", before)); }
    const bubble = el("article", "bubble" + (m.mine ? " mine" : "") + (m.high ? " high" : ""));
    if (c.kind === "group" && !m.mine && m.from !== from) bubble.append(el("strong", "", senderOf(m)));
    from = m.from;
    bubble.append(el("p", "", m.body), el("time", "", (m.high ? "important · " : "") + clock(m.at) + (m.mine && m.state ? " · " + m.state : "")));
    out.push(bubble);
  }
  if (!out.length) out.push(el("p", "empty", c.kind === "notices" ? "Nothing has come yet." : "No messages yet."));
  box.replaceChildren(...out);
  box.scrollTop = box.scrollHeight;
  const silent = c.kind === "notices" || c.kind === "former";
  $("send").hidden = silent;
  $("closed").hidden = c.kind !== "notices";
}

function draw() {
  if (!me) return;
  const list = chats();
  const c = list.find((x) => x.key === chat);
  if (c && document.visibilityState === "visible") store.markRead(chat);
  $("who").textContent = nameOf(me.account);
  $("app").dataset.open = c ? "chat" : "list";
  drawStatus();
  drawChats(list);
  if (c) drawChat(c);
  $("chat").hidden = !c;
}

function open(key) {
  chat = key;
  draw();
  if (chat && matchMedia("(min-width: 46rem)").matches) $("body").focus();
}

function signedOut(why) {
  clearTimeout(retry);
  for (const key of ["push-token", "push-me", "push-client"]) localStorage.removeItem(key);
  if (link) { const l = link; link = null; l.on = null; l.close(); }
  token = me = null;
  $("trouble").textContent = why;
  $("app").hidden = true;
  $("door").hidden = false;
}

async function signIn(given) {
  token = given;
  try {
    me = await api("GET", "/v1/me");
  } catch (e) {
    if (e.status) return signedOut(e.status === 401 ? "This token is not valid: it is unknown, has expired, or was revoked." : e.message);
    me = JSON.parse(localStorage.getItem("push-me"));
    if (!me || given !== localStorage.getItem("push-token")) return signedOut("The service cannot be reached. Try again later.");
  }
  localStorage.setItem("push-token", token);
  localStorage.setItem("push-me", JSON.stringify(me));
  store = new Store(me.account);
  $("door").hidden = true;
  $("app").hidden = false;
  if (matchMedia("(min-width: 46rem)").matches) chat ??= notices;
  draw();
  state = "elsewhere";
  drawStatus();
  navigator.locks.request("push-link", () => { connect(); return new Promise(() => {}); }); // one tab has the connection
}

$("signin").addEventListener("submit", (e) => {
  e.preventDefault();
  $("trouble").textContent = "";
  signIn($("token").value.trim()).then(() => { $("token").value = ""; });
});
$("signout").addEventListener("click", async () => {
  try { await api("DELETE", "/v1/me/session"); } catch { /* the token is forgotten here in any case */ }
  if (store) localStorage.removeItem(store.name);
  signedOut("");
});
$("chats").addEventListener("click", (e) => { const row = e.target.closest(".row"); if (row) open(row.dataset.key); });
$("back").addEventListener("click", () => open(null));
$("send").addEventListener("submit", (e) => {
  e.preventDefault();
  const body = $("body").value.trim();
  if (!body || !chat) return;
  $("body").value = "";
  send(chat, body);
});
$("body").addEventListener("keydown", (e) => {
  if (e.key === "Enter" && !e.shiftKey && !e.isComposing) { e.preventDefault(); $("send").requestSubmit(); }
});
new ResizeObserver(() => { $("messages").scrollTop = $("messages").scrollHeight; }).observe($("messages"));
addEventListener("online", () => { if (state === "offline") { tries = 0; connect(); } });
addEventListener("offline", () => link?.close());
document.addEventListener("visibilitychange", draw);
setInterval(() => { if (state === "connected" && document.visibilityState === "visible") look(); }, 10000);

if ("serviceWorker" in navigator) {
  const policy = globalThis.trustedTypes?.createPolicy("worker", { createScriptURL: (u) => u });
  navigator.serviceWorker.register(policy ? policy.createScriptURL("sw.js") : "sw.js").catch(() => {});
}
const linked = new URLSearchParams(location.hash.slice(1)).get("token"); // a link to sign in with
if (linked) history.replaceState(null, "", location.pathname);
const kept = linked ?? localStorage.getItem("push-token");
if (kept) signIn(kept); else signedOut("");
