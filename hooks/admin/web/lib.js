// What the pages share: elements, requests, and how things are written. Nothing here makes HTML of a
// text: a text of a client only ever becomes a text node.

/** el("td.num", {title: "x"}, "a", element, null) makes an element with children. */
export function el(what, ...rest) {
	const [tag, ...classes] = what.split(".");
	const e = document.createElement(tag);
	if (classes.length) e.className = classes.join(" ");
	for (const x of rest.flat(9)) {
		if (x === null || x === undefined || x === false) continue;
		if (x instanceof Node) e.append(x);
		else if (typeof x === "object") set(e, x);
		else e.append(String(x));
	}
	return e;
}

function set(e, attributes) {
	for (const [name, value] of Object.entries(attributes)) {
		if (name.startsWith("on")) e.addEventListener(name.slice(2), value);
		else if (name in e && name !== "list" && name !== "form") e[name] = value;
		else if (value !== null && value !== undefined) e.setAttribute(name, value);
	}
}

// Characters that would not be seen, or that turn the order of others round.
const unseen = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/u;

// The same, but lines and tabs are usual in a payload.
const odd = new RegExp(unseen.source.replace("\\u0000-\\u001f", "\\u0000-\\u0008\\u000b\\u000c\\u000e-\\u001f"), "u");

/** id writes a text that a client has chosen, so that all of it is seen. */
export function id(text) {
	if (text === "") return el("bdi.id", el("span.odd", "empty"));
	return seen(el("bdi.id", {dir: "ltr"}), text, unseen);
}

/** prose writes a sentence that may have texts of clients in it, so that all of it is seen. */
export const prose = text => text ? seen(el("bdi"), text, unseen) : "";

/** plain is id where there can be no elements, as in the options of a select. */
export const plain = text => text.replace(new RegExp(unseen.source, "gu"), code);

const code = character => "U+" + character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");

/** seen appends a text to an element, so that the characters of a pattern are seen. */
function seen(e, text, pattern) {
	for (const part of text.split(new RegExp(`(${pattern.source})`, "u"))) {
		if (pattern.test(part)) {
			e.append(el("span.odd", code(part)));
		} else if (part) e.append(part);
	}
	return e;
}

/** A Refusal is an answer that says no. */
export class Refusal extends Error {
	constructor(status, error) {
		super(error.message);
		Object.assign(this, {status, code: error.code, count: error.count});
	}
}

async function answer(response) {
	let body = null;
	try { body = await response.json(); } catch { /* no JSON */ }
	if (response.ok && body) return body;
	throw new Refusal(response.status, body?.error ?? {code: "?", message: `The server answered ${response.status}.`});
}

const stale = new AbortController();
let page = stale;

/** newPage ends the requests and streams of the page before. */
export function newPage() {
	page.abort();
	page = new AbortController();
	return page.signal;
}

function query(q) {
	const pairs = Object.entries(q ?? {}).filter(([, v]) => v !== undefined && v !== null && v !== "");
	return pairs.length ? "?" + new URLSearchParams(pairs) : "";
}

/** of is the address of something of a broker. */
export const of = (broker, path, q) => `api/v1/brokers/${encodeURIComponent(broker)}/${path}${query(q)}`;

export const get = async path => answer(await fetch(path, {signal: page.signal}));

export async function post(path, body) {
	return answer(await fetch(path, {
		method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body),
	}));
}

/** stream calls functions for the events of a stream, until the page changes. */
export function stream(path, on, signal = page.signal) {
	const source = new EventSource(path);
	for (const [name, f] of Object.entries(on)) {
		if (name === "open" || name === "error") source.addEventListener(name, f);
		else source.addEventListener(name, e => f(JSON.parse(e.data)));
	}
	signal.addEventListener("abort", () => source.close());
	return source;
}

const whole = new Intl.NumberFormat();
export const number = n => n === undefined ? "" : whole.format(n);

/** short writes a number in about four characters. */
export function short(n) {
	for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e4]]) {
		if (Math.abs(n) >= size) {
			const x = n / (unit === "k" ? 1e3 : size);
			return (x >= 100 ? x.toFixed(0) : x.toFixed(1)) + " " + unit;
		}
	}
	if (n === 0 || Number.isInteger(n)) return whole.format(n);
	return n < 10 ? n.toFixed(1) : whole.format(Math.round(n));
}

export function bytes(n) {
	if (n === undefined) return "";
	let i = 0;
	for (; Math.abs(n) >= 1024 && i < 5; i++) n /= 1024;
	return (i === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)) + " " + ["B", "KiB", "MiB", "GiB", "TiB", "PiB"][i];
}

export function span(seconds) {
	if (seconds < 1) return seconds <= 0 ? "0 s" : Math.max(1, Math.round(seconds * 1000)) + " ms";
	const parts = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
	let i = parts.findIndex(([, size]) => seconds >= size);
	const first = Math.floor(seconds / parts[i][1]);
	const rest = i < 3 ? Math.floor(seconds % parts[i][1] / parts[i + 1][1]) : 0;
	return `${first} ${parts[i][0]}` + (rest ? ` ${rest} ${parts[i + 1][0]}` : "");
}

const clock = new Intl.DateTimeFormat(undefined, {hour: "2-digit", minute: "2-digit", second: "2-digit"});
const dated = new Intl.DateTimeFormat(undefined, {dateStyle: "medium", timeStyle: "medium"});
export const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;

/** time writes a moment in the zone of the reader: today without its date. */
export function time(text) {
	if (!text) return "";
	const t = new Date(text), now = new Date();
	const f = t.toDateString() === now.toDateString() ? clock : dated;
	return el("time", {dateTime: text, title: `${dated.format(t)} (${zone})`}, f.format(t));
}

/** age writes how long ago, or in how long, a moment is. */
export function age(text) {
	if (!text) return "";
	const s = (Date.now() - new Date(text)) / 1000;
	return el("time", {dateTime: text, title: `${dated.format(new Date(text))} (${zone})`},
		s >= 0 ? span(s) : "in " + span(-s));
}

/** payload writes the payload of a message as far as it was sent. */
export function payload(m) {
	if (m.text) return seen(el("bdi"), m.text, odd);
	if (m.base64) {
		const b = atob(m.base64);
		return el("bdi", Array.from(b, c => c.charCodeAt(0).toString(16).padStart(2, "0")).join(" "));
	}
	return el("span.quiet", m.bytes ? "" : "empty");
}

/** table makes a table. A column is [title, function of an item, class]. */
export function table(columns, items, empty) {
	if (!items.length) return el("div.table", el("p.empty", empty));
	return el("div.table", el("table.cards",
		el("thead", el("tr", columns.map(([title, , kind]) => el(kind === "num" ? "th.num" : "th", {scope: "col"}, title)))),
		el("tbody", items.map(x => el("tr", columns.map(([title, f, kind]) => {
			const value = f(x);
			return el(kind ? "td." + kind : "td", {"data-label": typeof title === "string" ? title : title.textContent}, value);
		}))))));
}

/** say shows a line for a moment. */
export function say(text, bad) {
	const e = el(bad ? "div.toast.bad" : "div.toast", text);
	document.getElementById("toasts").append(e);
	setTimeout(() => e.remove(), bad ? 8000 : 4000);
}

/** ask shows a dialog with fields, and does something with them. */
export function ask({title, text, fields = [], button, bad, act}) {
	const inputs = {};
	const say = el("p.small", {role: "alert"});
	const ok = el(bad ? "button.main.bad" : "button.main", {type: "submit"}, button);
	const form = el("form", {method: "dialog"},
		el("h2", title), text && el("p", text),
		fields.map(([name, label, input]) => (inputs[name] = input, el("label.field", label, input))),
		say,
		el("div.buttons", el("button", {type: "button", onclick: () => box.close()}, "Cancel"), ok));
	const box = el("dialog", form);
	form.addEventListener("submit", async e => {
		e.preventDefault();
		ok.disabled = true;
		try {
			await act(inputs);
			box.close();
		} catch (err) {
			say.textContent = err.message;
			ok.disabled = false;
		}
	});
	box.addEventListener("close", () => box.remove());
	document.body.append(box);
	box.showModal();
	return box;
}

export const input = (attributes = {}) => el("input", {type: "text", autocomplete: "off", spellcheck: false, ...attributes});

export const select = (options, value) => {
	const e = el("select", options.map(([v, name]) => el("option", {value: v}, name)));
	e.value = value ?? options[0][0];
	return e;
};
