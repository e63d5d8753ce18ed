// Why: who gets a topic, why a client does not, who has gone or was refused, what was dropped.

import {age, el, get, id, input, number, payload, prose, select, stream, table, time} from "./lib.js";

const clientLink = (app, name) => name && el("a", {href: app.link("client", {id: name})}, id(name));

/** explain is a card with a box for a topic, and the answer. */
export function explain(app, client) {
	const topic = input({placeholder: "home/kitchen/temperature", "aria-label": "Topic", required: true}), answer = el("div", {role: "status"});
	const ask = async e => {
		e.preventDefault();
		try {
			const x = await get(app.of("explain", {id: client, topic: topic.value}));
			answer.replaceChildren(finding(app, x.finding, true), ...x.also.map(f => finding(app, f)));
		} catch (err) { answer.replaceChildren(el("p", err.message)); }
	};
	topic.className = "grow";
	return el("section.card", el("h2", "Why does it get nothing?"),
		el("form.row", {onsubmit: ask}, topic, el("button.main", "Explain")), answer);
}

function finding(app, f, first) {
	const good = f.cause === "nothing in the way";
	const line = (name, value) => value && [el("dt", name), el("dd", id(value))];
	return el(first ? "div.finding" : "div.finding.also", el("p", el(good ? "span.badge.good" : "span.badge.bad", f.cause), " ", prose(f.text)),
		el("dl", line("Subscription", f.filter), line("Nearest", f.nearest), f.rule && [el("dt", "Rule"), el("dd", prose(f.rule))], line("Went to", f.member),
			f.drop && [el("dt", "Dropped"), el("dd", time(f.drop.at), `, ${number(f.drop.count)} times: ${f.drop.reason}`)],
			f.ending && [el("dt", "Ended"), el("dd", time(f.ending.ended_at), `: ${f.ending.cause} `, el("span.quiet", prose(f.ending.err)))]));
}

/** live is a card that shows the packets of a client while it is on. */
export function live(app, client) {
	const rows = el("div.packets"), state = el("span.quiet.small", {role: "status"}), kept = 200;
	let stop = null;
	const toggle = el("button", {onclick: () => stop ? end("") : begin()}, "Show live packets");
	const end = text => {
		stop?.abort();
		stop = null;
		toggle.textContent = "Show live packets";
		state.textContent = text;
	};
	const begin = () => {
		stop = new AbortController();
		app.signal.addEventListener("abort", () => end(""));
		toggle.textContent = "Stop";
		state.textContent = "connecting ...";
		rows.replaceChildren();
		let n = 0;
		const source = stream(app.of("packets", {id: client}), {
			packet: p => {
				state.textContent = `${number(++n)} packets` + (p.lost ? `, ${number(p.lost)} not shown` : "");
				rows.prepend(el(p.incoming ? "div.packet.in" : "div.packet", time(p.at), el("span", {title: p.incoming ? "from the client" : "to the client"}, p.incoming ? "→" : "←"), el("span.line", id(p.line)),
					p.message?.bytes > 80 && el("div.payload", payload(p.message))));
				while (rows.childElementCount > kept) rows.lastChild.remove();
			},
			open: () => { state.textContent = "waiting for packets ..."; },
			end: () => end("ended after ten minutes"),
			error: () => { if (source.readyState === EventSource.CLOSED) end("It was refused, or the connection is lost."); },
		}, stop.signal);
	};
	return el("section.card", el("div.row", el("h2", "Packets"), toggle, state), rows);
}

const endings = (app, items, empty) => table([
	["When", x => time(x.ended_at), "when"],
	["Client", x => clientLink(app, x.client)],
	["", x => el(x.refused ? "span.badge.bad" : "span.badge", x.refused ? "refused" : "ended")],
	["Why", x => [x.cause, x.err && el("div.quiet.small", prose(x.err))], "wide"],
	["Code", x => "0x" + x.code.toString(16).toUpperCase().padStart(2, "0")],
	["User", x => x.user && id(x.user)],
	["Address", x => x.address],
	["Times", x => x.count > 1 ? number(x.count) : "", "num"],
], items, empty);

/** lastOf is a card with the last connections of a client. */
export async function lastOf(app, client) {
	const {items} = await get(app.of("ended", {id: client, limit: 10}));
	return items.length ? el("section.card", el("h2", "Connections before"), endings(app, items, "")) : null;
}

export async function ended(app, q) {
	const page = await get(app.of("ended", {refused: q.refused, user: q.user, address: q.address, id: q.id, after: q.after}));
	const which = select([["", "all"], ["true", "refused"], ["false", "ended"]], q.refused ?? "");
	which.ariaLabel = "Which";
	const text = input({type: "search", value: q.id ?? q.user ?? q.address ?? "", placeholder: "A Client Identifier, user:ann, address:10.0.0.0/8", "aria-label": "Search"});
	const go = more => {
		const [, name, value] = text.value.trim().match(/^(user|address):(.*)$/) ?? [];
		const now = {refused: which.value, [name ?? "id"]: name ? value : text.value.trim(), ...more};
		location.hash = app.link("ended", Object.fromEntries(Object.entries(now).filter(([, v]) => v)));
	};
	which.addEventListener("change", () => go());
	return el("div", el("div.top", el("h1", "Ended and refused"),
		el("form.row", {onsubmit: e => { e.preventDefault(); go(); }}, text, which, el("button", "Search"))),
	endings(app, page.items, "None."),
	el("div.pager", el("span.quiet", `${number(page.items.length)} shown`), q.after && el("button", {onclick: () => history.back()}, "Previous"),
		el("button", {disabled: !page.next, onclick: () => go({after: page.next})}, "Next")));
}

export async function drops(app, q) {
	const {items} = await get(app.of("drops", {id: q.id, limit: 500}));
	const by = (await get(app.of("stats"))).dropped_by; // the last sample may be older than the list
	const reasons = Object.entries(by).sort((a, b) => b[1] - a[1]);
	return el("div", el("div.top", el("h1", "Drops"), q.id && el("span.badge", "of ", id(q.id))),
		el("div.tiles", reasons.length ? reasons.map(([why, n]) => el("div.tile", el("div.name", why), el("div.value", number(n)))) : el("div.tile", el("div.name", "Since the start"), el("div.value", "0"))),
		table([
			["Last", x => time(x.at), "when"], ["Client", x => x.client ? clientLink(app, x.client) : "a retained message"],
			["Topic", x => x.topic && el("a", {href: app.link("who", {topic: x.topic})}, id(x.topic))],
			["Why", x => el("span.badge.bad", x.reason)], ["Times", x => number(x.count), "num"],
			["Since", x => x.count > 1 && age(x.first), "when"],
		], items, "Nothing was dropped."));
}

export async function who(app, q) {
	const topic = input({type: "search", value: q.topic ?? "", placeholder: "home/kitchen/temperature", "aria-label": "Topic"});
	const page = q.topic ? await get(app.of("subscribers", {topic: q.topic, limit: 500})) : null;
	page?.items.sort((a, b) => a.client < b.client ? -1 : 1);
	return el("div", el("div.top", el("h1", "Who gets it?"),
		el("form.row", {onsubmit: e => { e.preventDefault(); location.hash = app.link("who", {topic: topic.value}); }}, topic, el("button", "Show"))),
	!page ? el("p.empty", "Type a topic: this page shows who would get a message, and what would keep it from them.") : [
		el("p.quiet", page.more ? "More than 500 subscriptions match. Some of them:" : page.items.length === 1 ? "1 subscription matches." : `${number(page.items.length)} subscriptions match.`),
		table([
			["Client", x => x.client.startsWith("$local/") ? id(x.client) : clientLink(app, x.client)],
			["Subscription", x => [x.group && el("span.badge", "group ", id(x.group)), " ", id(x.filter)]],
			["QoS", x => x.qos, "num"],
			["Gets it", x => x.cause ? el("span.badge.bad", x.cause) : el("span.badge.good", "yes")],
		], page.items, "Nobody would get it.")]);
}
