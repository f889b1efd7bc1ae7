"use strict";
// A click on a heading sorts its table: numbers by value, other cells as text; a second click turns the order round.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => ({ row, cell: row.cells[column] }));
      rows.sort((a, b) => compare(a.cell, b.cell, down ? -1 : 1));
      body.append(...rows.map((item) => item.row));
    });
  });
}

function compare(a, b, sign) {
  const [x, y] = [a.dataset.value, b.dataset.value];
  if (x === undefined && y === undefined) return sign * a.textContent.localeCompare(b.textContent, "en", { numeric: true });
  if (x === undefined) return 1; // what has no number stands last, in either order
  if (y === undefined) return -1;
  return sign * (Number(x) - Number(y));
}
