"use strict";
(function () {
  document.documentElement.classList.add("scripted");

  // A button in each header cell, so that keyboard and screen reader find what a click on the cell does.
  for (const cell of document.querySelectorAll("table.sortable thead th")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...cell.childNodes);
    cell.append(button);
  }

  const written = (table) => [...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent.trim()));

  function csv(table) {
    const quoted = (text) => /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    return written(table).map((row) => row.map(quoted).join(",")).join("\n") + "\n";
  }

  function latex(table) {
    const words = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "\u2212": "$-$",
                    "\u2192": "$\\to$", "\u2013": "--", "\u00b2": "$^2$" };
    const escaped = (text) => text.replace(/[\\~^\u2212\u2192\u2013\u00b2&%$#_{}]/g, (one) => words[one] ?? `\\${one}`);
    const [head, ...rows] = written(table).map((row) => row.map(escaped).join(" & ") + " \\\\");
    const columns = "l" + "r".repeat(table.rows[0].cells.length - 1);
    return [`\\begin{tabular}{${columns}}`, "\\hline", head, "\\hline", ...rows, "\\hline", "\\end{tabular}", ""].join("\n");
  }

  // Where the browser lends no clipboard, as to some pages opened from a file, by a field that is selected and copied.
  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch (error) {
      const field = document.createElement("textarea");
      field.value = text;
      document.body.append(field);
      field.select();
      document.execCommand("copy");
      field.remove();
    }
  }

  function tool(bar, name, act) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", act);
    bar.append(button);
    return button;
  }

  for (const table of document.querySelectorAll(".scroll > table:not(.facts)")) {
    const bar = document.createElement("div");
    bar.className = "tools";
    table.parentElement.after(bar);
    for (const [name, form] of [["Copy as CSV", csv], ["Copy as LaTeX", latex]]) {
      const button = tool(bar, name, async () => {
        await copy(form(table));
        button.textContent = "Copied";
        setTimeout(() => { button.textContent = name; }, 1500);
      });
    }
    if (table.classList.contains("sortable")) {
      const rows = [...table.tBodies[0].rows];
      tool(bar, "First order", () => {
        table.tBodies[0].append(...rows);
        for (const cell of table.querySelectorAll("th[aria-sort]")) {
          cell.removeAttribute("aria-sort");
        }
      });
    }
  }

  const views = [];
  const buttons = [...document.querySelectorAll("button[data-setting]")];

  function choose(name) {
    for (const button of buttons) {
      button.setAttribute("aria-pressed", String(button.dataset.setting === name));
    }
    for (const view of views) {
      view.signal("chosen", name ?? "").runAsync();
    }
  }

  for (const button of buttons) {
    button.addEventListener("click", () =>
      choose(button.getAttribute("aria-pressed") === "true" ? null : button.dataset.setting));
  }

  async function draw(container) {
    const spec = JSON.parse(document.getElementById(container.dataset.spec).textContent);
    // `ast`: expressions are interpreted, which the page's policy allows, rather than evaluated, which it forbids.
    const options = { mode: "vega-lite", renderer: "svg", actions: false, ast: true, defaultStyle: false,
                      tooltip: { disableDefaultStyle: true } };
    const drawn = await vegaEmbed(container, spec, options);
    views.push(drawn.view);
  }

  async function drawAll() {
    for (const container of document.querySelectorAll(".chart")) {
      try {
        await draw(container);
      } catch (error) {  // the others are drawn all the same
        console.error(error);
        container.textContent = "This chart could not be drawn; the tables have its numbers.";
      }
    }
    document.documentElement.dataset.drawn = String(views.length);
  }

  drawAll();
})();
