// The overview: how much passes, what is kept, and whether all is well.

import {bytes, el, get, number, short, span} from "./lib.js";
import {chart, level, rate} from "./chart.js";

export async function overview(app) {
	const [history, list] = await Promise.all([get(app.of("history")), get("api/v1/brokers")]);
	const tiles = el("div.tiles"), state = el("div");
	const charts = [
		chart("Messages a second", [["in", rate("messages_received")], ["out", rate("messages_sent")], ["dropped", rate("messages_dropped")]], short, app.signal),
		chart("Bytes a second", [["in", rate("bytes_received")], ["out", rate("bytes_sent")]], bytes, app.signal),
		chart("Connections and Sessions", [["connections", level("connections")], ["Sessions", level("sessions")]], short, app.signal),
		chart("Memory that clients take", [["memory", level("memory")]], bytes, app.signal),
		chart("Messages that wait", [["queued", level("queued")], ["in flight", level("inflight")]], short, app.signal),
		chart("Connects a second", [["accepted", rate("accepted")], ["refused", rate("refused")]], short, app.signal),
	];
	const most = Math.ceil(3600 / app.me.interval);
	const show = s => {
		const at = Date.parse(s.at) / 1000;
		if (!history.at.length || at > history.at.at(-1)) {
			history.at.push(at);
			for (const [name, column] of Object.entries(history.columns)) column.push(s[name]);
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
		state, tiles, el("div.grid", charts));
}
