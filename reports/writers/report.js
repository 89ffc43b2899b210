"use strict";

const WORDS = new Intl.Collator("en", {numeric: true});
const NUMBER = 0, WORD = 1, MISSING = 2;

function keyOf(cell) {
  const {missing, number, text} = cell.dataset;
  if (missing !== undefined) return {kind: MISSING, value: 0};
  if (number !== undefined) return {kind: NUMBER, value: Number(number)};
  return {kind: WORD, value: text ?? cell.textContent};
}

// Numbers before words; what is missing comes last in both directions.
function compare(a, b, direction) {
  if (a.kind === MISSING || b.kind === MISSING) return (a.kind === MISSING) - (b.kind === MISSING);
  if (a.kind !== b.kind) return direction * (a.kind - b.kind);
  return direction * (a.kind === NUMBER ? a.value - b.value : WORDS.compare(a.value, b.value));
}

// What a filter asks: each word is in the row, or a column compares as it says (rank>8, eval_loss<=2.5, quantizer=int4).
function asks(text, headers) {
  const names = headers.map((header) => header.textContent.trim().toLowerCase().replaceAll(" ", "_"));
  return text.toLowerCase().split(/\s+/).filter(Boolean).map((word) => {
    const [, name, sign, wanted] = /^(.+?)(<=|>=|<|>|=)(.+)$/.exec(word) ?? [];
    const column = names.indexOf(name);
    if (column < 0) return (row) => row.textContent.toLowerCase().includes(word);
    return (row) => {
      const {kind, value} = keyOf(row.cells[column]);
      if (sign === "=" && kind !== NUMBER) return row.cells[column].textContent.trim().toLowerCase() === wanted;
      if (kind !== NUMBER || wanted === "" || Number.isNaN(Number(wanted))) return false;
      const by = value - Number(wanted);
      return {"<": by < 0, ">": by > 0, "<=": by <= 0, ">=": by >= 0, "=": by === 0}[sign];
    };
  });
}

for (const box of document.querySelectorAll(".table")) {
  const body = box.querySelector("tbody");
  const headers = [...box.querySelectorAll("th")];
  const more = box.querySelector(".more");
  const filter = box.querySelector(".filter");
  const shown = Number(box.dataset.shown);
  const given = [...body.rows];
  let order = given;
  let folded = more !== null;
  let tests = [];

  function arrange() {
    let found = 0;
    for (const row of order) {
      const fits = tests.every((test) => test(row));
      row.classList.toggle("out", !fits);
      row.classList.toggle("beyond", fits && folded && found >= shown);
      found += fits;
    }
    body.append(...order);
    if (more !== null) more.hidden = found <= shown;
    if (filter !== null) {
      const words = `${found.toLocaleString("en")} of ${given.length.toLocaleString("en")} rows`;
      filter.querySelector("output").textContent = tests.length ? words : "";
    }
  }

  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const next = {ascending: "descending", descending: null}[header.getAttribute("aria-sort")];
      const way = next === undefined ? "ascending" : next;
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      order = given;
      if (way !== null) {
        header.setAttribute("aria-sort", way);
        const direction = way === "ascending" ? 1 : -1;
        const keyed = given.map((row) => [keyOf(row.cells[column]), row]);
        keyed.sort(([a], [b]) => compare(a, b, direction));
        order = keyed.map(([, row]) => row);
      }
      arrange();
    });
  });

  if (filter !== null) {
    filter.hidden = false;
    const input = filter.querySelector("input");
    input.addEventListener("input", () => {
      tests = asks(input.value, headers);
      arrange();
    });
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || input.value === "") return;
      event.preventDefault();
      input.value = "";
      tests = [];
      arrange();
    });
  }

  if (more !== null) {
    const unfold = more.textContent;
    more.setAttribute("aria-expanded", "false");
    more.addEventListener("click", () => {
      folded = !folded;
      more.textContent = folded ? unfold : "Show fewer rows";
      more.setAttribute("aria-expanded", String(!folded));
      arrange();
    });
    arrange();
  }
}

// Whose curve is under the pointer, or chosen by the arrow keys.
const NEAR = 40; // pixels

for (const plot of document.querySelectorAll(".plot[data-curves]")) {
  const {plane, lines} = JSON.parse(document.getElementById(plot.dataset.curves).textContent);
  const image = plot.querySelector("img");
  const [svg, line, dot, tip] = ["svg", "polyline", "circle", ".tip"].map((name) => plot.querySelector(name));
  plot.tabIndex = 0;
  plot.setAttribute("role", "group");
  plot.setAttribute("aria-label", `${image.alt} Up and down choose a trial by its last value, left and right a step.`);
  for (const hint of plot.closest("figure").querySelectorAll(".hint")) hint.hidden = false;

  // In pixels of the image as it stands on the page now.
  const [left, top, right, bottom, [x0, x1], [y0, y1]] = plane;
  function place([step, loss]) {
    const {width, height} = image.getBoundingClientRect();
    const x = left + (right - left) * (step - x0) / (x1 - x0);
    const y = bottom - (bottom - top) * (loss - y0) / (y1 - y0);
    return [x * width, y * height];
  }
  const curves = lines.map(([trial, about, steps, losses]) => ({trial, about, points: steps.map((step, at) => [step, losses[at]])}));
  // By what they end in; the highest first, as they lie on the page.
  const ranked = [...curves].sort((a, b) => b.points.at(-1)[1] - a.points.at(-1)[1]);
  let chosen = null;

  function show(curve, at) {
    chosen = curve === null ? null : {curve, at};
    svg.toggleAttribute("hidden", curve === null);
    tip.replaceChildren();
    if (curve === null) return;
    const {width, height} = image.getBoundingClientRect();
    const spots = curve.points.map(place);
    svg.setAttribute("width", width);
    svg.setAttribute("height", height);
    line.setAttribute("points", spots.map((spot) => spot.join()).join(" "));
    const [x, y] = spots[at];
    dot.setAttribute("cx", x);
    dot.setAttribute("cy", y);
    const [step, loss] = curve.points[at];
    const name = document.createElement("strong");
    name.textContent = `${curve.trial}: ${loss.toFixed(4)} at step ${step.toLocaleString("en")}`;
    tip.append(name, curve.about);
    const aside = x > width / 2 ? x - tip.offsetWidth - 12 : x + 12;
    tip.style.left = `${Math.max(0, Math.min(width - tip.offsetWidth, aside))}px`;
    tip.style.top = `${Math.max(0, y > height / 2 ? y - tip.offsetHeight - 12 : y + 12)}px`;
  }

  function toSegment([px, py], [ax, ay], [bx, by]) {
    const length = (bx - ax) ** 2 + (by - ay) ** 2;
    const along = length === 0 ? 0 : Math.max(0, Math.min(1, ((px - ax) * (bx - ax) + (py - ay) * (by - ay)) / length));
    return Math.hypot(px - ax - along * (bx - ax), py - ay - along * (by - ay));
  }

  plot.addEventListener("pointermove", (event) => {
    const box = image.getBoundingClientRect();
    const pointer = [event.clientX - box.left, event.clientY - box.top];
    let best = {far: NEAR, curve: null, at: 0};
    for (const curve of curves) {
      const spots = curve.points.map(place);
      const far = Math.min(...spots.map((spot, index) => toSegment(pointer, spots[Math.max(0, index - 1)], spot)));
      if (far >= best.far) continue;
      const away = spots.map(([x, y]) => Math.hypot(pointer[0] - x, pointer[1] - y));
      best = {far, curve, at: away.indexOf(Math.min(...away))};
    }
    if (best.curve !== chosen?.curve || best.at !== chosen?.at) show(best.curve, best.at);
  });
  plot.addEventListener("pointerleave", () => show(null));
  plot.addEventListener("keydown", (event) => {
    const now = chosen ?? {curve: ranked.at(-1), at: ranked.at(-1).points.length - 1};
    const index = ranked.indexOf(now.curve);
    const to = (rank) => {
      const curve = ranked[Math.max(0, Math.min(ranked.length - 1, rank))];
      show(curve, chosen === null ? curve.points.length - 1 : Math.min(now.at, curve.points.length - 1));
    };
    const keys = {
      ArrowUp: () => to(chosen === null ? index : index - 1),
      ArrowDown: () => to(chosen === null ? index : index + 1),
      ArrowLeft: () => show(now.curve, Math.max(0, now.at - 1)),
      ArrowRight: () => show(now.curve, Math.min(now.curve.points.length - 1, now.at + 1)),
      Home: () => to(0),
      End: () => to(ranked.length - 1),
      Escape: () => show(null),
    };
    if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  plot.addEventListener("blur", () => show(null));
}

// Paper is light, whatever the screen is; Chromium does not choose a drawing again by itself.
const dark = [...document.querySelectorAll("picture source")].map((source) => [source, source.media]);
// What is folded away is printed too.
const folds = [...document.querySelectorAll("details")];
let shut = [];
addEventListener("beforeprint", () => {
  dark.forEach(([source]) => { source.media = "not all"; });
  shut = folds.filter((fold) => !fold.open);
  shut.forEach((fold) => { fold.open = true; });
});
addEventListener("afterprint", () => {
  dark.forEach(([source, media]) => { source.media = media; });
  shut.forEach((fold) => { fold.open = false; });
});

if (navigator.clipboard) {
  for (const listing of document.querySelectorAll(".listing")) {
    const button = listing.querySelector(".copy");
    const say = (word) => {
      button.textContent = word;
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    };
    button.hidden = false;
    button.addEventListener("click", () => {
      navigator.clipboard.writeText(listing.querySelector("code").textContent).then(() => say("Copied"), () => say("Not copied"));
    });
  }
}
