"use strict";

/* Dark and light: what the system prefers until the button says otherwise. */
{
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);
  const name = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  const stored = (write) => { try { return write(localStorage); } catch { return null; } };
  const kept = stored((storage) => storage.getItem("gradscope-theme"));
  if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    stored((storage) => storage.setItem("gradscope-theme", root.dataset.theme));
    name();
  });
  prefersDark.addEventListener("change", name);
  name();
}

/* Tables sort by the column that is pressed: numbers by their value, text by its letters, what is missing last. */
function sortTable(head) {
  const row = head.parentElement;
  const column = [...row.children].indexOf(head);
  const isNumber = head.classList.contains("number");
  const descending = head.getAttribute("aria-sort") === "ascending";
  const letters = new Intl.Collator(undefined, { numeric: true });
  const keys = new Map();
  const body = head.closest("table").tBodies[0];
  for (const line of body.rows) {
    const cell = line.cells[column];
    keys.set(line, isNumber ? parseFloat(cell.dataset.key) : cell.textContent);
  }
  const compare = (one, other) => {
    const [a, b] = [keys.get(one), keys.get(other)];
    if (isNumber && (Number.isNaN(a) || Number.isNaN(b))) return Number.isNaN(a) - Number.isNaN(b);
    const order = isNumber ? a - b : letters.compare(a, b);
    return descending ? -order : order;
  };
  body.append(...[...body.rows].sort(compare));
  for (const other of row.children) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
}
for (const head of document.querySelectorAll("th[aria-sort]")) {
  head.querySelector("button").addEventListener("click", () => sortTable(head));
}

/* A link to a code opens what it is folded in. */
function unfold() {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let around = target; around; around = around.parentElement) if (around.tagName === "DETAILS") around.open = true;
  target.scrollIntoView();
}
addEventListener("hashchange", unfold);
unfold();

/* What is kept compressed in the page. */
async function unpacked(id) {
  const packed = document.getElementById(id).textContent.trim();
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).blob();
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function asCsv(table) {
  const quoted = (cell) => `"${cell.innerText.replace(/\s+/g, " ").trim().replaceAll('"', '""')}"`;
  return [...table.rows].map((row) => [...row.cells].map(quoted).join(",") + "\r\n").join("");
}

for (const button of document.querySelectorAll("button.save")) {
  button.addEventListener("click", async () => {
    if (button.dataset.file) {
      save(await unpacked(button.dataset.file), button.dataset.name);
    } else {
      const table = button.closest(".table").querySelector("table");
      save(new Blob([asCsv(table)], { type: "text/csv" }), button.dataset.name);
    }
  });
}

/* Surfaces are drawn when they are opened, one landscape at a time: a browser has few scenes to give. */
let plotting = null;
function loadPlotly() {
  plotting ??= unpacked("plotly").then((blob) => blob.text()).then((text) => { (0, eval)(text); });
  return plotting;
}
const landscapes = new Map();
for (const root of document.querySelectorAll("details.surfaces")) {
  root.addEventListener("toggle", async () => {
    if (!root.open) {
      landscapes.get(root)?.clear();
      return;
    }
    for (const other of document.querySelectorAll("details.surfaces[open]")) if (other !== root) other.open = false;
    const message = root.querySelector(".message");
    try {
      message.textContent = "Loading";
      await loadPlotly();
      if (!landscapes.has(root)) {
        landscapes.set(root, drawSurfaces(root, JSON.parse(root.querySelector("script").textContent)));
      }
      await landscapes.get(root).show();
      message.textContent = "";
    } catch (error) {
      message.textContent = `This browser cannot draw it (${error.message}); the figure above shows the same.`;
    }
  });
}
