// The retained messages: as a tree, level by level, or those that match a filter.

import {age, ask, bytes, el, get, id, input, number, payload, post, say, select, table, time} from "./lib.js";

/** since is the age of a retained message. One that the broker has loaded has none that is known. */
const since = m => m.since ? age(m.since) : el("span.quiet", {title: "It was there when the broker started."}, "older");

export async function topics(app, q) {
	const filter = input({type: "search", value: q.filter ?? "", placeholder: "A Topic Filter: sensors/+/temperature, a/#", "aria-label": "Topic Filter"});
	const go = e => {
		e.preventDefault();
		location.hash = app.link("topics", filter.value ? {filter: filter.value} : undefined);
	};
	const content = q.filter ? await matching(app, q) : el("section.card", el("div.tree", await levels(app)));
	return el("div", el("div.top", el("h1", "Retained messages"),
		el("form.row", {onsubmit: go}, filter, el("button", "Show")),
		el("a.button", {href: app.link("seen")}, "Seen lately"),
		app.acts && el("button", {onclick: () => publish(app)}, "Publish"),
		app.acts && el("button.bad", {onclick: () => clear(app, q.filter ?? "")}, "Clear ...")),
	content);
}

async function matching(app, q) {
	const page = await get(app.of("retained", {filter: q.filter, after: q.after}));
	const next = el("button", {disabled: !page.next, onclick: () => { location.hash = app.link("topics", {filter: q.filter, after: page.next}); }}, "Next");
	return el("div", table([
		["Topic", m => el("a", {href: "#", onclick: e => { e.preventDefault(); value(app, m); }}, id(m.topic))],
		["Value", m => el("div.payload", payload(m))],
		["Age", since, "when"], ["QoS", m => m.qos, "num"], ["Size", m => bytes(m.bytes), "num"],
	], page.items, "No retained message matches."),
	el("div.pager", el("span.quiet", `${number(page.items.length)} shown`), q.after && el("button", {onclick: () => history.back()}, "Previous"), next));
}

/** levels are the elements of the levels below a topic. */
async function levels(app, below) {
	const box = el("div");
	let after, more;
	const load = async () => {
		more?.remove();
		const page = await get(app.of("topics", {after, limit: 100}) + (below === undefined ? "" : `&below=${encodeURIComponent(below)}`));
		for (const x of page.items) box.append(level(app, x));
		after = page.next;
		if (after) box.append(more = el("button.link", {onclick: load}, "More ..."));
	};
	await load();
	if (!box.childElementCount) box.append(el("p.empty", "There are no retained messages."));
	return box;
}

function level(app, x) {
	const name = [el("span.name", x.name === "" ? el("span.odd", "empty level") : id(x.name)),
		x.message && el("span.value", payload(x.message)), x.message && el("span.age", since(x.message))];
	if (!x.more) return el("div.leaf", {tabIndex: 0, role: "button", onclick: () => value(app, x.message),
		onkeydown: e => { if (e.key === "Enter") value(app, x.message); }}, name);
	const details = el("details", el("summary", name));
	details.addEventListener("toggle", async () => {
		if (!details.open || details.childElementCount > 1) return;
		const box = el("div", el("p.quiet.small", "Loading ..."));
		details.append(box);
		try {
			box.replaceChildren(await levels(app, x.topic));
			if (x.message) box.prepend(el("div.leaf", {tabIndex: 0, role: "button", onclick: () => value(app, x.message),
				onkeydown: e => { if (e.key === "Enter") value(app, x.message); }}, el("span.quiet.small", "its own value"), el("span.value", payload(x.message))));
		} catch (err) {
			box.replaceChildren(el("p.quiet", err.message));
		}
	});
	return details;
}

/** value shows a message as a whole. */
function value(app, m) {
	const box = el("dialog", el("form", {method: "dialog"},
		el("h2", id(m.topic)),
		el("p.quiet.small", m.since ? ["since ", time(m.since), " (", age(m.since), "), "] : "from before the broker started, ", `QoS ${m.qos}, ${bytes(m.bytes)}`, m.content_type && ", " + m.content_type, m.bytes > 4096 && ", the beginning of it:"),
		el("pre", payload(m)),
		el("div.buttons",
			app.acts && el("button.bad", {type: "button", onclick: () => { box.close(); clear(app, m.topic); }}, "Clear"),
			el("button.main", {autofocus: true}, "Close"))));
	box.addEventListener("close", () => box.remove());
	document.body.append(box);
	box.showModal();
}

/** clear asks for a filter, counts, and then asks for the number. */
export function clear(app, filter) {
	const box = input({value: filter, required: true, placeholder: "a/#"});
	ask({title: "Clear retained messages", fields: [["filter", "That match the filter", box]], button: "Count them",
		act: async () => {
			const chosen = box.value;
			const {count} = await get(app.of("retained/count", {filter: chosen}));
			if (!count) throw new Error("No retained message matches.");
			const typed = input({inputMode: "numeric", required: true});
			ask({title: `Clear ${number(count)} retained messages?`, text: ["All that match ", id(chosen), ". Clients that subscribe to them get an empty message for each. They cannot be brought back."],
				fields: [["typed", `Type the number, ${count}, to confirm`, typed]], button: "Clear them", bad: true,
				act: async () => {
					if (typed.value.trim() !== String(count)) throw new Error(`Type ${count}.`);
					const done = await post(app.of("clear-retained"), {filter: chosen, count});
					say(`${number(done.count)} were cleared.`);
					app.reload();
				}});
		}});
}

/** seen is the page of the topics that messages pass by. It looks again with each sample of the broker. */
export async function seen(app) {
	const list = el("div"), state = el("span.quiet.small", {role: "status"}, "Looking ...");
	let busy = false;
	const look = async () => {
		if (busy) return;
		busy = true;
		try {
			const {items} = await get(app.of("seen", {limit: 500}));
			list.replaceChildren(table([
				["Topic", x => el("a", {href: app.link("who", {topic: x.topic})}, id(x.topic))],
				["Last", x => age(x.at), "when"], ["From", x => x.from && el("a", {href: app.link("client", {id: x.from})}, id(x.from))],
				["Packets seen", x => number(x.packets), "num"], ["QoS", x => x.qos, "num"], ["Size", x => bytes(x.bytes), "num"],
			], items, "No message has passed while somebody looked."));
			state.textContent = items.length === 1 ? "1 topic" : `${number(items.length)} topics`;
		} catch (err) {
			state.textContent = err.message;
		}
		busy = false;
	};
	app.onSample = look;
	look().catch(() => {});
	return el("div", el("div.top", el("h1", "Topics seen lately"), state),
		el("p.quiet", "A sample of what passes, taken every few seconds while this page is open: at most 5,000 packets each time, to and from clients. Rare topics may be missed."), list);
}

function publish(app) {
	const topic = input({required: true}), text = el("textarea", {rows: 4}), qos = select([["0", "0"], ["1", "1"], ["2", "2"]]);
	const retain = el("input", {type: "checkbox"});
	ask({title: "Publish", fields: [["topic", "Topic", topic], ["text", "Payload", text], ["qos", "QoS", qos], ["retain", "Retain", retain]], button: "Publish",
		act: async () => {
			await post(app.of("publish"), {topic: topic.value, text: text.value, qos: Number(qos.value), retain: retain.checked});
			say("It was published.");
			app.reload();
		}});
}
