// The overview: how much passes, what is kept, and whether all is well.

import {bytes, el, get, number, short, span, table} from "./lib.js";
import {chart, level, mean, rate} from "./chart.js";

export async function overview(app) {
	const [history, list] = await Promise.all([get(app.of("history")), get("api/v1/brokers")]);
	const tiles = el("div.tiles"), state = el("div"), details = el("div.grid");
	const charts = [
		chart("Messages a second", [["in", rate("messages_received")], ["out", rate("messages_sent")], ["dropped", rate("messages_dropped")]], short, app.signal),
		chart("Bytes a second", [["in", rate("bytes_received")], ["out", rate("bytes_sent")]], bytes, app.signal),
		chart("Connections and Sessions", [["connections", level("connections")], ["Sessions", level("sessions")]], short, app.signal),
		chart("Memory", [["messages", level("memory_messages")], ["retained", level("memory_retained")], ["clients", level("memory_clients")], ["subscriptions", level("memory_subscriptions")]], bytes, app.signal),
		chart("Messages that wait", [["queued", level("queued")], ["in flight", level("inflight")]], short, app.signal),
		chart("Connects a second", [["accepted", rate("accepted")], ["refused", rate("refused")]], short, app.signal),
	];
	if (history.columns.commits.some(n => n > 0)) charts.push(chart("Commits of the store, mean time", [["time", mean("commit_time", "commits")]], span, app.signal));
	const most = Math.ceil(3600 / app.me.interval);
	const show = s => {
		const at = Date.parse(s.at) / 1000;
		if (!history.at.length || at > history.at.at(-1)) {
			history.at.push(at);
			for (const [name, column] of Object.entries(history.columns)) column.push(now(s, name));
			if (history.at.length > most) {
				history.at.shift();
				for (const column of Object.values(history.columns)) column.shift();
			}
		}
		const last = name => rate(name)(history).at(-1) ?? 0;
		const tile = (name, value, more, bad) => el(bad ? "div.tile.bad" : "div.tile", el("div.name", name), el("div.value", value), el("div.more", more));
		tiles.replaceChildren(
			tile("Clients connected", number(s.connections), `${number(s.sessions)} Sessions`),
			tile("Messages in", short(last("messages_received")) + "/s", bytes(last("bytes_received")) + "/s"),
			tile("Messages out", short(last("messages_sent")) + "/s", bytes(last("bytes_sent")) + "/s"),
			tile("Dropped", short(last("messages_dropped")) + "/s", number(s.messages_dropped) + " since the start", last("messages_dropped") > 0),
			tile("Waiting", short(s.queued), bytes(s.queued_bytes)),
			tile("Memory", bytes(s.memory), `${short(s.retained)} retained messages`),
		);
		details.replaceChildren(
			counts("Dropped, by reason", s.dropped_by, "Nothing was dropped."),
			counts("Memory, by kind", s.memory_by, "None.", bytes),
			counts("Refused, by Reason Code", s.refused_by, "Nobody was refused."),
			counts("Ended, by Reason Code", s.ended_by, "No connection has ended."),
			slow(s), listeners(s));
		const bad = !s.healthy || !s.ready;
		state.replaceChildren(el(bad ? "div.banner" : "div.banner.good", {role: bad ? "alert" : "status"},
			!s.healthy ? "The store fails: nothing that needs it is acknowledged. " : !s.ready ? "The broker takes no new clients. " : "All is well. ",
			`Up for ${span(s.uptime)}.`, s.panics ? ` ${number(s.panics)} panics: see the log.` : ""));
		for (const c of charts) c.show(history);
	};
	const about = list.items.find(b => b.name === app.broker);
	app.onSample = show;
	if (app.sample) show(app.sample);
	else show(await get(app.of("stats")));
	return el("div", el("div.top", el("h1", "Overview"), el("span.quiet.small", `Dunlin ${app.me.version}`)),
		about?.health && el("div.banner", {role: "alert"}, "The store: ", about.health),
		state, tiles, el("div.grid", charts), details);
}

// now is what a column of the history has of a sample.
function now(s, name) {
	const m = s.memory_by;
	switch (name) {
	case "commits": return s.commits.count;
	case "commit_time": return s.commits.sum;
	case "memory_messages": return m.queued + m.inflight + m.output + m.partial + m.uncommitted;
	case "memory_retained": return m.retained;
	case "memory_clients": return m.sessions + m.connections;
	case "memory_subscriptions": return m.subscriptions + m.routes;
	}
	return s[name];
}

/** counts is a card with numbers by name, the largest first. */
function counts(title, by, empty, write = number) {
	const rows = Object.entries(by).filter(([, n]) => n).sort((a, b) => b[1] - a[1]);
	const sum = rows.reduce((sum, [, n]) => sum + n, 0);
	return el("section.card", el("h2", title), rows.length
		? el("dl.counts", rows.map(([name, n]) => [el("dt", name), el("dd", el("meter", {value: n / sum, ariaLabel: name}), el("span", write(n)))]))
		: el("p.quiet", empty));
}

function slow(s) {
	const row = (name, x) => x.count ? [el("dt", name), el("dd", `half within ${span(x.p50)}, 99 of 100 within ${span(x.p99)}`, el("span.quiet", `, of ${number(x.count)}`))] : null;
	const rows = [row("Commits of the store", s.commits), row("Decisions of hooks", s.hooks), row("Later than due", s.lag)].filter(Boolean);
	return el("section.card", el("h2", "How long it takes"), rows.length ? el("dl", rows) : el("p.quiet", "Nothing was measured."));
}

function listeners(s) {
	return el("section.card", el("h2", "Listeners"), table([
		["Listener", x => x.listener || "(no name)"], ["Protocol", x => x.protocol || "none yet"],
		["Open", x => number(x.connections), "num"], ["In", x => short(x.messages_received), "num"], ["Out", x => short(x.messages_sent), "num"],
	], s.listeners.filter(x => x.connections || x.protocol), "Nobody has connected."));
}
