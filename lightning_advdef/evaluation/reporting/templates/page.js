"use strict";
(() => {
  const PAGE = 50;
  const models = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const state = { model: 0, column: 0, ascending: true, start: 0 };
  let shown = [];

  const columns = () => models[state.model].columns;
  const verdicts = () => columns().filter((column) => column.kind === "verdict");
  const norms = () => columns().filter((column) => column.kind === "norm"); // null where the attack broke nothing

  function option(text, value) {
    const made = document.createElement("option");
    made.textContent = text;
    made.value = value;
    return made;
  }

  const FILTERS = [
    ["all images", () => true],
    ["wrong without attack", (row) => columns()[2].values[row] === 0],
    ["right under every attack", (row) =>
      verdicts().every((column) => column.values[row] === 1) && norms().every((column) => column.values[row] === null)],
  ];

  function filters() {
    const broken = verdicts().slice(1).map((column) =>
      [`broken by ${column.title}`, (row) => columns()[2].values[row] > 0 && column.values[row] < columns()[2].values[row]]);
    const moved = norms().map((column) =>
      [`broken by ${column.title}`, (row) => columns()[2].values[row] > 0 && column.values[row] !== null]);
    return [...FILTERS, ...broken, ...moved];
  }

  // images without a value, which an attack did not break, come last in either order
  function compare(one, other) {
    const values = columns()[state.column].values;
    const [a, b] = [values[one], values[other]];
    if (a === b) return one - other;
    if (a === null || b === null) return a === null ? 1 : -1;
    return state.ascending ? a - b : b - a;
  }

  function select() {
    const [, wanted] = filters()[find("verdict").value || 0];
    const label = find("label").value;
    const labels = columns()[1].values;
    shown = [...labels.keys()].filter((row) => wanted(row) && (label === "" || labels[row] === Number(label)));
    shown.sort(compare);
    state.start = 0;
    draw();
  }

  function cell(column, row) {
    const made = document.createElement("td");
    const value = column.values[row];
    if (column.kind === "verdict") {
      const all = value === 1 ? "right" : value === 0 ? `wrong, ${column.classes[row]}` : `${(100 * value).toFixed(0)}%`;
      made.textContent = all;
      made.className = value === 1 ? "good" : value === 0 ? "bad" : "";
    } else {
      made.textContent = value === null ? "-" : value;
    }
    return made;
  }

  function draw() {
    const body = find("rows").tBodies[0];
    body.replaceChildren(...shown.slice(state.start, state.start + PAGE).map((row) => {
      const made = document.createElement("tr");
      made.append(...columns().map((column) => cell(column, row)));
      return made;
    }));
    const end = Math.min(state.start + PAGE, shown.length);
    find("place").textContent = shown.length ? `${state.start + 1} to ${end} of ${shown.length}` : "no image";
    find("first").disabled = find("back").disabled = state.start === 0;
    find("next").disabled = find("last").disabled = end === shown.length;
    [...find("rows").tHead.rows[0].cells].forEach((head, number) => {
      if (number === state.column) head.setAttribute("aria-sort", state.ascending ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
  }

  function head(column, number) {
    const made = document.createElement("th");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = column.title;
    button.addEventListener("click", () => {
      state.ascending = state.column === number ? !state.ascending : true;
      state.column = number;
      select();
    });
    made.append(button);
    return made;
  }

  function open() {
    state.model = Number(find("model").value);
    state.column = 0;
    state.ascending = true;
    const row = document.createElement("tr");
    row.append(...columns().map(head));
    find("rows").tHead.replaceChildren(row);
    find("verdict").replaceChildren(...filters().map(([text], number) => option(text, number)));
    select();
  }

  function turn(where) {
    state.start = where;
    draw();
  }

  find("model").append(...models.map((model, number) => option(`${model.title} (${model.images} images)`, number)));
  find("model").addEventListener("change", open);
  find("verdict").addEventListener("change", select);
  find("label").addEventListener("input", select);
  find("first").addEventListener("click", () => turn(0));
  find("back").addEventListener("click", () => turn(state.start - PAGE));
  find("next").addEventListener("click", () => turn(state.start + PAGE));
  find("last").addEventListener("click", () => turn(Math.floor((shown.length - 1) / PAGE) * PAGE));
  open();
})();
