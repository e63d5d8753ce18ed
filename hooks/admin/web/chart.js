// Lines over the last hour, drawn by uPlot.

import {bytes, el} from "./lib.js";

// Steps of an axis of bytes.
const powers = Array.from({length: 50}, (_, i) => 2 ** i);

// A colour of the style sheet, which has one for the light and one for the dark.
function color(name) {
	const probe = el("i");
	probe.style.color = `var(${name})`;
	document.body.append(probe);
	const c = getComputedStyle(probe).color;
	probe.remove();
	return c;
}

const inks = ["--accent", "--rust", "--bad", "--quiet"];

/** chart makes a card with lines. Each is [name, function of a history to values]. */
export function chart(title, lines, write, signal) {
	const keys = lines.map(([name], i) => el("span.key", el(`i.s${i + 1}`), name, " ", el("span")));
	const place = el("div");
	const card = el("section.card.chart", el("h2", title, keys), place);
	let plot, data;
	const legend = at => lines.forEach((_, i) => {
		const v = data?.[i + 1][at ?? data[0].length - 1];
		keys[i].lastChild.textContent = v === null || v === undefined ? "" : write(v);
	});
	const draw = () => {
		plot?.destroy();
		const quiet = color("--quiet"), line = color("--line");
		const axis = {stroke: quiet, grid: {stroke: line, width: 1}, ticks: {show: false}, font: "12px system-ui, sans-serif"};
		plot = new uPlot({
			width: Math.max(place.clientWidth, 200), height: 170,
			cursor: {y: false, points: {size: 6}, drag: {x: false, y: false}},
			legend: {show: false},
			scales: {y: {range: (u, min, max) => [0, max > 0 ? max * 1.15 : 1]}},
			axes: [{...axis, space: 70, size: 30, values: [[60, "{HH}:{mm}", null, null, null, null, null, null, 0], [1, "{HH}:{mm}:{ss}", null, null, null, null, null, null, 0]]},
				{...axis, size: 62, space: 34, values: (u, at) => at.map(write), ...(write === bytes ? {incrs: powers} : {})}],
			series: [{}, ...lines.map((_, i) => ({
				stroke: color(inks[i]), width: 1.6, points: {show: false},
				fill: i === 0 ? color(inks[0]).replace("rgb(", "rgba(").replace(")", ", 0.09)") : undefined,
			}))],
			hooks: {setCursor: [u => legend(u.cursor.idx)]},
		}, data, place);
	};
	const sizes = new ResizeObserver(() => plot?.setSize({width: Math.max(place.clientWidth, 200), height: 170}));
	sizes.observe(place);
	const scheme = matchMedia("(prefers-color-scheme: dark)");
	const redraw = () => data && draw();
	scheme.addEventListener("change", redraw);
	signal.addEventListener("abort", () => {
		sizes.disconnect();
		scheme.removeEventListener("change", redraw);
		plot?.destroy();
	});
	card.show = history => {
		data = [history.at, ...lines.map(([, f]) => f(history))];
		if (plot) plot.setData(data);
		else if (place.isConnected) draw();
		else requestAnimationFrame(() => { if (!signal.aborted) draw(); });
		legend();
	};
	return card;
}

/** rate returns how much a counter has grown in a second. */
export const rate = name => h => h.columns[name].map((v, i, all) => {
	if (i === 0) return null;
	const dt = h.at[i] - h.at[i - 1], grown = v - all[i - 1];
	return dt > 0 && grown >= 0 ? grown / dt : null;
});

/** mean returns what a sum has grown for each one that its count has grown. */
export const mean = (sum, count) => h => h.columns[sum].map((v, i, all) => {
	if (i === 0) return null;
	const n = h.columns[count][i] - h.columns[count][i - 1];
	return n > 0 ? (v - all[i - 1]) / n : null;
});

export const level = name => h => h.columns[name];
