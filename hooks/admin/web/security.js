// Bans and security events.

import {age, ask, el, get, id, input, number, post, prose, say, select, span, table, time} from "./lib.js";

export async function bans(app) {
	const items = [];
	for (let after; items.length < 5000;) {
		const page = await get(app.of("bans", {limit: 500, after}));
		items.push(...page.items);
		if (!(after = page.next)) break;
	}
	const lift = x => ask({title: "Lift this ban?", text: [x.kind, " ", id(x.value)], button: "Lift it",
		act: async () => { await post(app.of("unban"), {kind: x.kind, value: x.value}); say("The ban was lifted."); app.reload(); }});
	return el("div", el("div.top", el("h1", "Bans"), app.acts && el("button.bad", {onclick: () => add(app)}, "Ban ...")),
		table([
			["Who", x => id(x.value)], ["Kind", x => x.kind],
			["Until", x => x.until ? [time(x.until), " (", age(x.until), ")"] : "it is lifted"],
			["Why", x => prose(x.reason)],
			["", x => app.acts && el("button", {onclick: () => lift(x)}, "Lift")],
		], items, "Nobody is banned."));
}

function add(app) {
	const kind = select([["address", "an address or network"], ["client", "a Client Identifier"], ["user", "a user"]]);
	const value = input({required: true, placeholder: "192.0.2.0/24"});
	const seconds = select([["3600", "an hour"], ["86400", "a day"], ["604800", "a week"], ["0", "until it is lifted"]]);
	const reason = input({maxLength: 500});
	ask({title: "Keep out", fields: [["kind", "Whom", kind], ["value", "Which", value], ["seconds", "How long", seconds], ["reason", "Why, for the list", reason]], button: "Ban", bad: true,
		text: "Connections of these clients end. Their Sessions stay.",
		act: async () => {
			await post(app.of("ban"), {kind: kind.value, value: value.value, seconds: Number(seconds.value), reason: reason.value});
			say("The ban is in force.");
			app.reload();
		}});
}

export async function security(app) {
	const {items} = await get(app.of("security", {limit: 500}));
	return el("div", el("div.top", el("h1", "Security events"), el("span.quiet.small", `the last ${number(items.length)}`)),
		table([
			["When", x => time(x.at), "when"],
			["What", x => el("span.badge.bad", x.what)],
			["Times", x => x.count > 1 && [number(x.count), " in ", span((new Date(x.at) - new Date(x.first)) / 1000)], "num"],
			["Client", x => x.client && el("a", {href: app.link("client", {id: x.client})}, id(x.client))],
			["User", x => x.user && id(x.user)],
			["Address", x => x.remote],
			["About", x => x.about && id(x.about)],
			["Why", x => prose(x.reason)],
		], items, "There were none, or the program collects none (Options.Events)."));
}
