// The clients: their list, and one of them.

import {age, ask, bytes, el, get, id, input, number, plain, post, say, select, short, span, table, time} from "./lib.js";

import {explain, lastOf, live} from "./why.js";

const sorts = [["", "by Client Identifier"], ["queued", "most queued"], ["queued_bytes", "most bytes queued"],
	["dropped", "most dropped"], ["received", "most published"], ["sent", "most received"], ["unsent", "most unsent bytes"],
	["inflight", "most in flight"], ["subscriptions", "most subscriptions"]];

const state = c => c.connected ? el("span.badge.good", "connected") : el("span.badge", "away");

/** filters reads what was typed: words, and name:value. */
function filters(text) {
	const q = {};
	for (const word of text.match(/\S+:"[^"]*"|\S+/g) ?? []) {
		const [, name, value] = word.match(/^(user|address|listener|prefix):"?([^"]*)"?$/) ?? [];
		if (name) q[name] = value;
		else q.id = q.id ? q.id + " " + word : word;
	}
	return q;
}

export async function clients(app, q) {
	const text = input({type: "search", value: q.text ?? "", placeholder: "Client Identifier, or user:ann, address:10.0.0.0/8", "aria-label": "Search clients"});
	const sort = select(sorts, q.sort ?? ""), connected = select([["", "all"], ["true", "connected"], ["false", "away"]], q.connected ?? "");
	sort.ariaLabel = "Order";
	connected.ariaLabel = "Which";
	const list = el("div"), progress = el("span.quiet", {role: "status"});
	const go = (more = {}) => {
		const now = {text: text.value.trim(), sort: sort.value, connected: connected.value, ...more};
		location.hash = app.link("clients", Object.fromEntries(Object.entries(now).filter(([, v]) => v)));
	};
	for (const e of [sort, connected]) e.addEventListener("change", () => go());
	const next = el("button", {disabled: true}, "Next");
	const show = async () => {
		const limit = 50, items = [];
		let after = q.after ?? "", looked = 0;
		do { // a filter that matches little takes several requests
			const page = await get(app.of("clients", {...filters(q.text ?? ""), sort: q.sort, connected: q.connected, limit: limit - items.length, after}));
			items.push(...page.items);
			after = page.next ?? "";
			looked += page.looked;
			if (after && items.length < limit) progress.textContent = `${number(looked)} looked at, ${number(items.length)} found ...`;
			if (items.length) list.replaceChildren(rows(app, items));
		} while (after && items.length < limit && !app.signal.aborted);
		list.replaceChildren(rows(app, items));
		progress.textContent = items.length ? `${number(items.length)} shown` : "";
		next.disabled = !after;
		next.onclick = () => go({after});
	};
	const first = show();
	first.catch(err => app.signal.aborted || list.replaceChildren(el("div.banner", {role: "alert"}, err.message)));
	if (!(app.sample?.sessions > 100000)) await first.catch(() => {});
	return el("div", el("div.top", el("h1", "Clients"),
		el("form.row", {onsubmit: e => { e.preventDefault(); go(); }}, text, connected, sort, el("button", "Search"))),
	list, el("div.pager", progress,
		q.after && el("button", {onclick: () => history.back()}, "Previous"), next));
}

function rows(app, items) {
	return table([
		["Client", c => [el("a", {href: app.link("client", {id: c.id})}, id(c.id)), c.bridge && [" ", el("span.badge", "bridge")]]],
		["State", state],
		["User", c => c.user && id(c.user)],
		["Address", c => c.remote],
		["Since", c => age(c.connected_at), "when"],
		["Published", c => short(c.received.messages), "num"],
		["Received", c => short(c.sent.messages), "num"],
		["Queued", c => short(c.queued), "num"],
		["Dropped", c => short(c.dropped), "num"],
	], items, "No client is like that.");
}

/** host is the address of a client without its port. */
const host = remote => remote.replace(/:\d+$/, "").replace(/^\[(.*)\]$/, "$1");

export async function client(app, q) {
	let c;
	try {
		c = await get(app.of("client", {id: q.id}));
	} catch (err) {
		if (err.status !== 404) throw err;
		return el("div", el("div.top", el("h1", {title: q.id}, id(q.id)), el("span.badge", "no Session")),
			explain(app, q.id), await lastOf(app, q.id));
	}
	const facts = el("div.grid", cards(c));
	let before = c;
	app.onSample = async () => { // the figures are read again with each sample of the broker
		try {
			const now = await get(app.of("client", {id: q.id}));
			facts.replaceChildren(...cards(now, before));
			before = now;
		} catch { /* the Session has ended: the page stays as it was */ }
	};
	const done = (text, then) => async () => { await then(); say(text); app.reload(); };
	const disconnect = () => ask({title: "Disconnect this client?", text: ["Its Session stays, and it may come back at once."], button: "Disconnect", bad: true,
		act: done("It was disconnected.", () => post(app.of("disconnect"), {id: c.id}))});
	const remove = () => ask({title: "Delete this Session?", text: "Its subscriptions, and all that waits for it, are lost. The client is disconnected.", button: "Delete", bad: true,
		act: async () => { await post(app.of("delete-session"), {id: c.id}); say("The Session was deleted."); location.hash = app.link("clients"); }});
	return el("div",
		el("div.top", el("h1", {title: c.id}, id(c.id)), state(c), app.acts && [
			el("button", {onclick: disconnect, disabled: !c.connected}, "Disconnect"),
			el("button.bad", {onclick: () => ban(app, c)}, "Ban"),
			el("button.bad", {onclick: remove}, "Delete Session")]),
		facts,
		explain(app, c.id),
		await subscriptions(app, c),
		app.acts && live(app, c.id),
		await lastOf(app, c.id));
}

/** cards are the facts of a client, with rates if it is known what they were before. */
function cards(c, before) {
	const fact = (name, ...value) => !value[0] && value[0] !== 0 ? null : [el("dt", name), el("dd", value)];
	const took = before ? (Date.now() - before.at) / 1000 : 0;
	c.at = Date.now();
	const traffic = way => {
		const grown = took > 0 && c.connected_at === before.connected_at ? (c[way].messages - before[way].messages) / took : null;
		return c.connected && [`${number(c[way].messages)} messages, ${bytes(c[way].bytes)}`, grown !== null && el("strong", ` ${short(grown)}/s`)];
	};
	return [
		el("section.card", el("h2", "Client"), el("dl",
			fact("User", c.user && id(c.user)), fact("Principal", c.principal !== c.user && c.principal && id(c.principal)),
			fact("Address", c.remote), fact("Listener", c.listener),
			fact("Protocol", c.protocol && "MQTT " + c.protocol), fact("TLS", c.tls),
			fact("Connected", c.connected_at && time(c.connected_at), c.connected_at && [" (", age(c.connected_at), ")"]),
			fact("Last packet", c.last_packet && age(c.last_packet), " ago"),
			fact("Keep Alive", c.keep_alive && span(c.keep_alive)),
			fact("Will", c.will_topic && id(c.will_topic)),
			fact("Session", c.expires_at ? ["expires ", time(c.expires_at)] : c.expiry < 0 ? "never expires" : c.expiry ? `outlives the connection by ${span(c.expiry)}` : "ends with the connection"))),
		el("section.card", el("h2", "Traffic and queue"), el("dl",
			fact("Published", traffic("received")), fact("Received", traffic("sent")),
			fact("Queued", `${number(c.queued)} messages, ${bytes(c.queued_bytes)}`, c.oldest_queued && [", the oldest for ", age(c.oldest_queued)]),
			fact("In flight", `${number(c.inflight)} messages`),
			fact("To be released", c.awaiting_pubrel > 0 && `${number(c.awaiting_pubrel)} messages of QoS 2`),
			fact("Unsent", c.unsent > 0 && bytes(c.unsent), c.blocked_since && [", its socket takes nothing for ", age(c.blocked_since)]),
			fact("Dropped", `${number(c.dropped)} messages`, Object.entries(c.dropped_by ?? {}).map(([why, n]) => [el("br"), `${why}: ${number(n)}`])))),
	];
}

async function subscriptions(app, c) {
	const list = el("div"), more = el("button", "More"), all = [], count = el("span.quiet");
	let after;
	const end = s => ask({title: "End this subscription?", text: ["An operator or the program has made it: ", id(s.filter)], button: "Unsubscribe", bad: true,
		act: async () => { await post(app.of("unsubscribe"), {id: c.id, filter: s.filter}); say("The subscription was ended."); app.reload(); }});
	const add = () => {
		const filter = input({required: true, placeholder: "home/+/temperature"}), qos = select([["0", "0"], ["1", "1"], ["2", "2"]]);
		ask({title: "Subscribe this client", fields: [["filter", "Topic Filter", filter], ["qos", "QoS", qos]], button: "Subscribe",
			text: "The client gets these messages without a SUBSCRIBE, and also when it comes back. No access rule is asked.",
			act: async () => { await post(app.of("subscribe"), {id: c.id, filter: filter.value, qos: Number(qos.value)}); say("The client was subscribed."); app.reload(); }});
	};
	const load = async () => {
		const page = await get(app.of("subscriptions", {id: c.id, after, limit: 100}));
		all.push(...page.items);
		after = page.next;
		more.hidden = !after;
		count.textContent = number(c.subscriptions + all.filter(s => s.by_server).length);
		list.replaceChildren(table([
			["Filter", s => id(s.filter)], ["QoS", s => s.qos, "num"],
			["Options", s => [s.no_local && el("span.badge", "No Local"), " ", s.retain_as_published && el("span.badge", "Retain As Published"), " ", s.by_server && el("span.badge", "by the server")]],
			["", s => app.acts && s.by_server && el("button", {onclick: () => end(s)}, "Unsubscribe")],
		], all, "It subscribes to nothing."));
	};
	more.addEventListener("click", load);
	await load();
	return el("section.card", el("div.row", el("h2", "Subscriptions ", count), app.acts && el("button", {onclick: add}, "Subscribe ...")), list, more);
}

/** ban asks which of a client is to be kept out, and for how long. */
export function ban(app, c) {
	const kinds = [["client", "this Client Identifier"]];
	if (c.user) kinds.push(["user", `the user ${plain(c.user)}`]);
	if (c.remote) kinds.push(["address", `the address ${host(c.remote)}`]);
	const kind = select(kinds), seconds = select([["3600", "an hour"], ["86400", "a day"], ["604800", "a week"], ["0", "until it is lifted"]]);
	const reason = input({maxLength: 500});
	ask({title: "Keep out", fields: [["kind", "Whom", kind], ["seconds", "How long", seconds], ["reason", "Why, for the list", reason]], button: "Ban", bad: true,
		act: async () => {
			const whom = {client: {value: c.id}, user: {client: c.id}, address: {value: c.remote && host(c.remote)}}[kind.value];
			await post(app.of("ban"), {kind: kind.value, ...whom, seconds: Number(seconds.value), reason: reason.value});
			say("The ban is in force.");
			app.reload();
		}});
}
