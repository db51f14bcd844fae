// A table that sorts on a click, filters by text, and shows a page of rows at a time.
// columns: [{name, text: bool}]; rows: [[cell text]]; the cells are those of the CSV, unrounded, as
// their titles; what is shown is rounded for people.
const PAGE_ROWS = 50;

function showTable(parent, columns, rows, onRow) {
  const isNumber = columns.map((_, c) =>
    rows.some((row) => row[c] !== "") && rows.every((row) => row[c] === "" || !Number.isNaN(Number(row[c]))));
  const show = columns.map((name, c) => (isNumber[c] && !name.startsWith("set.") ? formatterOf(name) : null));
  let order = rows.map((_, r) => r);
  let sorted = null;  // {column, ascending}
  let needle = "";
  let page = 0;

  const count = element("span", { class: "note" });
  const filter = element("input", {
    type: "search", placeholder: "filter rows", "aria-label": "filter rows",
    oninput: () => { needle = filter.value.toLowerCase(); page = 0; draw(); },
  });
  const previous = element("button", { onclick: () => { --page; draw(); } }, "previous");
  const next = element("button", { onclick: () => { ++page; draw(); } }, "next");
  const head = element("tr");
  const body = element("tbody");
  const headers = columns.map((name, c) => {
    const cell = element("th", { class: isNumber[c] ? "sortable" : "sortable text", title: "sort", onclick: () => sort(c) }, name);
    head.append(cell);
    return cell;
  });
  parent.append(
    element("div", { class: "controls" }, filter, previous, next, count),
    element("div", { class: "scroll" }, element("table", {}, element("thead", {}, head), body)));

  function sort(column) {
    const ascending = sorted && sorted.column === column ? !sorted.ascending : true;
    sorted = { column, ascending };
    const value = (r) => (isNumber[column] ? (rows[r][column] === "" ? Infinity : Number(rows[r][column])) : rows[r][column]);
    order = rows.map((_, r) => r).sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      return (x < y ? -1 : x > y ? 1 : a - b) * (ascending ? 1 : -1);
    });
    page = 0;
    draw();
  }

  function draw() {
    const found = needle === "" ? order : order.filter((r) => rows[r].some((cell) => cell.toLowerCase().includes(needle)));
    const pages = Math.max(1, Math.ceil(found.length / PAGE_ROWS));
    page = Math.min(Math.max(page, 0), pages - 1);
    previous.disabled = page === 0;
    next.disabled = page === pages - 1;
    count.textContent = `${found.length} of ${rows.length} rows` + (pages > 1 ? `, page ${page + 1} of ${pages}` : "");
    headers.forEach((cell, c) => {
      cell.textContent = columns[c] + (sorted && sorted.column === c ? (sorted.ascending ? " ▲" : " ▼") : "");
    });
    body.replaceChildren(...found.slice(page * PAGE_ROWS, (page + 1) * PAGE_ROWS).map((r) => {
      const line = element("tr", onRow ? { onclick: () => onRow(r), style: "cursor:pointer" } : {});
      rows[r].forEach((cell, c) => {
        const text = cell !== "" && show[c] ? show[c](Number(cell)) : cell;
        line.append(element("td", { class: isNumber[c] ? null : "text", title: cell, "data-column": columns[c] }, text));
      });
      return line;
    }));
  }
  draw();
}
