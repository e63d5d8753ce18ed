// The desk itself: who has done what here, and what concerns the whole broker.

import {el, get, id, post, say, select, table, time, zone} from "./lib.js";

export async function desk(app) {
	const {items} = await get("api/v1/audit?limit=200");
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
		el("h2", "What was done here"),
		table([
			["When", x => time(x.at), "when"], ["Who", x => x.user], ["From", x => x.remote],
			["Action", x => x.action], ["Broker", x => x.broker], ["About", x => x.about && id(x.about)],
			["Result", x => x.err ? el("span.badge.bad", x.err) : el("span.badge.good", "done")],
		], items, "Nothing yet."));
}
