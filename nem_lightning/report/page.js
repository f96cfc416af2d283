"use strict";

// A click on a heading sorts its table's rows: numbers by size, text by alphabet, empty cells last.
for (const heading of document.querySelectorAll(".sortable th button")) {
  heading.addEventListener("click", () => {
    const th = heading.parentElement;
    const body = th.closest("table").tBodies[0];
    const ascending = th.getAttribute("aria-sort") !== "ascending";
    const key = (row) => row.cells[th.cellIndex].dataset.value ?? row.cells[th.cellIndex].textContent.trim();
    const compare = (a, b) => {
      if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
      const order = key(a).localeCompare(key(b), "en", { numeric: true });
      const numbers = key(a) - key(b);
      return (Number.isNaN(numbers) ? order : numbers) * (ascending ? 1 : -1);
    };
    body.append(...[...body.rows].sort(compare));
    for (const other of th.parentElement.cells) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  });
}

// Pointing at a configuration, in the legend or in the table, fades the lines of the others.
const lines = document.querySelectorAll(".charts .line[class*=' c']");
for (const source of document.querySelectorAll("[data-line]")) {
  const show = (name) => lines.forEach((line) => line.classList.toggle("faded", name !== null && !line.classList.contains(name)));
  for (const event of ["pointerenter", "focus"]) source.addEventListener(event, () => show(source.dataset.line));
  for (const event of ["pointerleave", "blur"]) source.addEventListener(event, () => show(null));
}

const enlarged = document.getElementById("enlarged");
for (const picture of document.querySelectorAll(".picture")) {
  picture.addEventListener("click", () => {
    enlarged.firstElementChild.src = picture.firstElementChild.src;
    enlarged.firstElementChild.alt = picture.firstElementChild.alt;
    enlarged.showModal();
  });
}
enlarged?.addEventListener("click", () => enlarged.close());
