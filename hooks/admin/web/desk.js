// The desk itself: who has done what here, and what concerns the whole broker.

import {age, ask, bytes, el, get, id, input, number, post, prose, say, select, table, time, zone} from "./lib.js";

export async function desk(app) {
	const [{items}, list] = await Promise.all([get("api/v1/audit?limit=200"), get("api/v1/brokers")]);
	const level = app.me.log_level && select(["DEBUG", "INFO", "WARN", "ERROR"].map(l => [l, l]), app.me.log_level);
	level?.addEventListener("change", async () => {
		try {
			await post("api/v1/log-level", {level: level.value});
			app.me.log_level = level.value;
			say(`The log is at ${level.value}.`);
		} catch (err) { say(err.message, true); }
	});
	return el("div", el("div.top", el("h1", "Desk")),
		el("section.card", el("dl",
			el("dt", "You"), el("dd", app.me.user || "–", app.acts ? ", who may act" : ", who may look"),
			el("dt", "Times"), el("dd", zone),
			level && app.acts && [el("dt", "Log level"), el("dd", level)],
			el("dt", "API"), el("dd", el("a", {href: "api/v1/openapi.json"}, "OpenAPI description"), ", ", el("a", {href: "metrics"}, "metrics")))),
		drain(app, list.items.find(b => b.name === app.broker)),
		await traces(app),
		el("h2", "What was done here"),
		table([
			["When", x => time(x.at), "when"], ["Who", x => x.user && id(x.user)], ["From", x => x.remote],
			["Action", x => x.action], ["Broker", x => x.broker], ["About", x => x.about && id(x.about)],
			["Result", x => x.err ? el("span.badge.bad", prose(x.err)) : el("span.badge.good", "done")],
		], items, "Nothing yet."));
}

/** drain is a card from which all clients are moved to another server. */
function drain(app, b) {
	const d = b.drain, draining = b.readiness?.includes("draining");
	const begin = () => {
		const server = input({placeholder: "b.example:1883"}), rate = input({inputMode: "numeric", value: "1000"});
		const moved = el("input", {type: "checkbox"});
		ask({title: "Move all clients away?", button: "Move them", bad: true,
			text: "New clients are refused from now on. Those that are connected are disconnected bit by bit; their Sessions stay.",
			fields: [["server", "To which server (clients of MQTT 5.0 are told)", server], ["rate", "How many in a second", rate], ["moved", "For ever", moved]],
			act: async () => {
				await post(app.of("drain"), {server_reference: server.value, per_second: Number(rate.value) || 0, moved: moved.checked});
				say("The clients are being moved.");
				app.reload();
			}});
	};
	const end = async () => {
		try { await post(app.of("undrain"), {}); } catch (err) { return say(err.message, true); }
		say("Clients are welcome again.");
		app.reload();
	};
	const left = el("strong", number(app.sample?.connections));
	app.onSample = s => { left.textContent = number(s.connections); };
	return el("section.card", el("h2", "Move all clients away"), el("p",
		draining ? ["This broker accepts no clients. ", left, " are connected."] : "Before this broker is stopped, its clients can be sent to another one, so many in a second.",
		d && !d.running && ` The last time ${d.moved === 1 ? "1 client was" : number(d.moved) + " clients were"} moved.`, d?.err && ` It ended: ${d.err}.`),
	app.acts && el("div.row", draining ? el("button", {onclick: end}, "Let clients in again") : el("button.bad", {onclick: begin}, "Move them ...")));
}

/** traces is a card with the traces that were started here. */
async function traces(app) {
	const {items} = await get(app.of("traces"));
	const stop = x => async () => {
		try { await post(app.of("stop-trace"), {name: x.name}); } catch (err) { return say(err.message, true); }
		app.reload();
	};
	return el("section.card", el("div.row", el("h2", "Traces to files"), app.acts && el("button", {onclick: () => start(app)}, "Start a trace")),
		el("p.quiet.small", "Packets are written to files, without passwords, as lines, as JSON, or for Wireshark."),
		items.length > 0 && table([
			["Name", x => x.name], ["Of", x => id(x.id ?? x.address ?? x.filter ?? "everybody")], ["Format", x => x.format],
			["Since", x => age(x.started), "when"], ["State", x => x.running ? el("span.badge.good", "running") : el(x.err ? "span.badge.bad" : "span.badge", x.err || "ended")],
			["Packets", x => [number(x.packets), x.lost > 0 && el("span.quiet", `, ${number(x.lost)} lost`)], "num"], ["Size", x => bytes(x.bytes), "num"],
			["", x => app.acts && el("div.row", x.running && el("button", {onclick: stop(x)}, "Stop"),
				Array.from({length: x.files}, (_, i) => el("a.button", {href: app.of("trace-file", i ? {name: x.name, file: i} : {name: x.name}), download: ""}, i ? `File ${i + 1}` : "Download")))],
		], items, ""));
}

/** start asks whose packets are to be written. */
export function start(app, client) {
	const name = input({required: true, value: client ? client.replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "").slice(0, 50) || "trace" : "trace"});
	const kind = select([["id", "a Client Identifier"], ["address", "an address or network"], ["filter", "topics that match a filter"]]);
	const value = input({required: true, value: client ?? ""}), format = select([["pcapng", "pcapng, for Wireshark"], ["json", "JSON lines"], ["text", "text"]]);
	const seconds = select([["600", "10 minutes"], ["3600", "an hour"], ["86400", "a day"]]);
	ask({title: "Trace to a file", button: "Start", fields: [["name", "Name of the file", name], ["kind", "Packets of", kind], ["value", "Which", value], ["format", "Format", format], ["seconds", "For", seconds]],
		act: async () => {
			await post(app.of("start-trace"), {name: name.value, [kind.value]: value.value, format: format.value, seconds: Number(seconds.value)});
			say("The trace is running.");
			app.reload();
		}});
}
