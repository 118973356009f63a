// Makes elements. Open it to change how anything is put on the page.
//
// What comes from outside is only ever text or the value of a listed attribute: nothing here, or in any other file of
// the page, reads HTML. The page's policy (Trusted Types) has the browser refuse it besides.

const LISTENERS = new Set(["click", "submit", "change", "input", "close", "cancel", "keydown", "toggle"]);

/** Make an element. `given` holds attributes, listeners (`click: f`), `class`, `text`; children are elements or text. */
export function el(name, given = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "text") made.textContent = value;
    else if (LISTENERS.has(key)) made.addEventListener(key, value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((one) => one !== null && one !== undefined && one !== false));
  return made;
}

/** Set an element's text, but only where it differs: what is selected stays selected. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A word with a colour: `tone` is good, bad, warn, busy or quiet. The word alone says everything. */
export function badge(word, tone = "quiet") {
  return el("span", { class: `badge ${tone}`, text: word });
}

export function button(text, click, given = {}) {
  return el("button", { type: "button", text, click, ...given });
}

export function link(text, href, given = {}) {
  return el("a", { href, text, ...given });
}

/** A text on one line; what does not fit shows under the pointer. */
export function clipped(text) {
  return el("span", { class: "clip", title: text, text });
}

/** A panel with a heading; `content` stands below it. */
export function panel(title, content, { wide = false, id, actions } = {}) {
  const name = id ?? `p-${++panels}`;
  return el("section", { class: wide ? "panel wide" : "panel", "aria-labelledby": name },
    el("div", { class: "panel-head" }, el("h2", { id: name, text: title }), actions),
    content);
}
let panels = 0;

/** What stands where there is nothing: what that means, and what to do. */
export function empty(text) {
  return el("p", { class: "empty", text });
}

/** Names and values, in pairs; a value that is null is left out. */
export function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return el("dl", { class: "facts" },
    shown.map(([name, value]) => el("div", {}, el("dt", { text: name }), el("dd", {}, value))));
}

/**
 * A table that is filled again and again. `columns` are `{head, cell(row), number}`; `cell` returns text or an element.
 * Cells of text are changed in place.
 */
export function table(caption, columns, none, { tall = false } = {}) {
  const body = el("tbody");
  const heads = columns.map((one) => el("th", { scope: "col", class: one.number ? "number" : null, text: one.head }));
  const grid = el("table", {}, el("caption", { class: "unseen", text: caption }),
    el("thead", {}, el("tr", {}, heads)), body);
  // A wide one scrolls inside its own box; with a tab stop, because the keyboard has to reach what is to the right.
  const scroller = el("div", { class: tall ? "scroll tall" : "scroll", tabindex: "0", role: "group", "aria-label": caption }, grid);
  const whole = el("div", { class: "table" }, scroller);
  whole.fill = (rows) => {
    while (body.rows.length > rows.length) body.lastChild.remove();
    rows.forEach((row, at) => fillRow(body.rows[at] ?? body.appendChild(el("tr")), columns, row));
    scroller.hidden = !rows.length && Boolean(none);
    if (none) {
      if (rows.length) whole.querySelector(".empty")?.remove();
      else if (!whole.querySelector(".empty")) whole.append(empty(none));
    }
    return whole;
  };
  return whole;
}

function fillRow(place, columns, row) {
  columns.forEach((one, at) => {
    const cell = place.cells[at] ?? place.appendChild(el(one.first ? "th" : "td",
      { class: [one.number && "number", one.wrap && "wrap"].filter(Boolean).join(" ") || null, scope: one.first ? "row" : null }));
    const value = one.cell(row);
    if (value instanceof Node) {
      if (!cell.firstChild?.isEqualNode?.(value) || cell.childNodes.length !== 1 || value.querySelector?.("button")
        || value.nodeName === "BUTTON") cell.replaceChildren(value);
    } else setText(cell, value ?? "");
  });
}

/** Read a text out, to whoever listens to the page; it is not shown. */
export function announce(text) {
  document.getElementById("announce").textContent = text;
}

/** Show a message at the top of a place, in the place of the one before; null removes it. */
export function notice(place, text, tone = "bad") {
  place.querySelector(":scope > .notice")?.remove();
  if (text) place.prepend(el("p", { class: `notice ${tone}`, role: tone === "bad" ? "alert" : "status", text }));
}
