// The frame around the pages: which page is shown, the keys, the stream of samples.

import {el, get, newPage, of, Refusal, stream} from "./lib.js";
import {overview} from "./overview.js";
import {clients, client} from "./clients.js";
import {seen, topics} from "./topics.js";
import {bans, security} from "./security.js";
import {desk} from "./desk.js";
import {drops, ended, who} from "./why.js";

// name in the address, name in the navigation, key, page
const pages = [
	["", "Overview", "o", overview],
	["clients", "Clients", "c", clients],
	["topics", "Topics", "t", topics],
	["who", "Who gets it", "w", who],
	["ended", "Ended", "e", ended],
	["drops", "Drops", "r", drops],
	["bans", "Bans", "b", bans],
	["security", "Security", "s", security],
	["desk", "Desk", "d", desk],
];
const others = {client, seen};

const main = document.getElementById("main"), nav = document.getElementById("nav");
const live = document.getElementById("live");
let me, app, endSamples;

/** link is the address of a page of this program. */
function link(broker, page, q) {
	const query = q ? "?" + new URLSearchParams(q) : "";
	return `#/${encodeURIComponent(broker)}/${page}${query}`;
}

function where() {
	const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
	const [broker, page = ""] = path.split("/");
	let name = null; // what is no name leads to the first broker
	try { name = decodeURIComponent(broker); } catch { /* it was mistyped */ }
	return {broker: name, page, q: Object.fromEntries(new URLSearchParams(query))};
}

async function show() {
	const {broker, page, q} = where();
	if (!me.brokers.includes(broker)) {
		location.replace(link(me.brokers[0], ""));
		return;
	}
	if (app?.broker !== broker) follow(broker);
	const found = pages.find(p => p[0] === page);
	const make = found?.[3] ?? others[page] ?? overview;
	for (const a of nav.children) {
		if (a.dataset.page === page || a.dataset.page === {client: "clients", seen: "topics"}[page]) a.setAttribute("aria-current", "page");
		else a.removeAttribute("aria-current");
	}
	nav.querySelector("[aria-current]")?.scrollIntoView({inline: "nearest", block: "nearest"});
	document.title = (found?.[1] ?? {client: "Client", seen: "Seen lately"}[page] ?? "Overview") + " – Dunlin";
	const signal = newPage();
	app.signal = signal;
	app.onSample = null;
	try {
		const content = await make(app, q);
		if (!signal.aborted) main.replaceChildren(content);
	} catch (err) {
		if (signal.aborted) return;
		main.replaceChildren(el("div.banner", {role: "alert"}, err instanceof Refusal ? err.message : "This page could not be shown: " + err.message));
		if (!(err instanceof Refusal)) console.error(err);
	}
	if (!signal.aborted && !main.contains(document.activeElement)) window.scrollTo(0, 0);
}

/** follow reads the samples of a broker. */
function follow(broker) {
	endSamples?.abort();
	endSamples = new AbortController();
	app = {me, broker, acts: me.role === "act", sample: null, onSample: null,
		link: (page, q) => link(broker, page, q), of: (path, q) => of(broker, path, q), reload: show};
	const here = app;
	stream(of(broker, "events"), {
		stats: s => {
			here.sample = s;
			here.onSample?.(s);
		},
		open: () => { live.className = "on"; live.textContent = "live"; },
		error: () => { live.className = "off"; live.textContent = "not live"; },
	}, endSamples.signal);
	const box = document.getElementById("broker");
	box.value = broker;
	nav.replaceChildren(...pages.map(([page, name, key]) => el("a", {href: link(broker, page), "data-page": page, title: `Keys: g ${key}`}, name)));
}

let gone = 0;
function keys(e) {
	if (e.ctrlKey || e.metaKey || e.altKey || document.querySelector("dialog[open]")) return;
	if (e.target.closest?.("input, select, textarea")) {
		if (e.key === "Escape") e.target.blur();
		return;
	}
	if (e.key === "/") {
		const search = main.querySelector("input[type=search]");
		if (search) {
			e.preventDefault();
			search.focus();
			search.select();
		} else location.hash = app.link("clients");
	} else if (e.key === "?") help();
	else if (e.key === "g") gone = Date.now();
	else if (Date.now() - gone < 1500) {
		const page = pages.find(p => p[2] === e.key);
		gone = 0;
		if (page) location.hash = app.link(page[0]);
	}
}

function help() {
	const line = (key, text) => [el("dt", key.split(" ").map(k => [el("kbd", k), " "])), el("dd", text)];
	const box = el("dialog", el("form", {method: "dialog"}, el("h2", "Keys"),
		el("dl", line("/", "search"), pages.map(p => line("g " + p[2], p[1])), line("?", "this list")),
		el("div.buttons", el("button.main", "Close"))));
	box.addEventListener("close", () => box.remove());
	document.body.append(box);
	box.showModal();
}

async function start() {
	try {
		me = await get("api/v1/me");
	} catch (err) {
		main.replaceChildren(el("div.banner", {role: "alert"}, err.message));
		return;
	}
	document.getElementById("who").textContent = me.user ? `${me.user} (${me.role === "act" ? "may act" : "may look"})` : "";
	const box = document.getElementById("broker");
	box.replaceChildren(...me.brokers.map(name => el("option", {value: name}, name || "(no name)")));
	document.getElementById("broker-label").hidden = me.brokers.length < 2;
	box.addEventListener("change", () => { location.hash = link(box.value, where().page.replace(/^client$/, "clients")); });
	document.addEventListener("keydown", keys);
	window.addEventListener("hashchange", show);
	if (!me.brokers.length) main.replaceChildren(el("p.empty", "The program has given this page no broker."));
	else show();
}

start();
