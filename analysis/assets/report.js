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
