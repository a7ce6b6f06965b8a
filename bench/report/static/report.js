"use strict";
// Tables that sort and filter, their state in the address, and the figures. Nothing is fetched.

(function () {
  // A cell's number in full, or what it says where that is the same.
  function value(row, place) {
    const cell = row.cells[place];
    const text = "value" in cell.dataset ? cell.dataset.value : cell.textContent.trim();
    return text === "–" ? "" : text;
  }

  function order(place, numeric, descending) {
    return function (a, b) {
      let x = value(a, place), y = value(b, place);
      // What has no value stays last either way.
      if (x === "" || y === "") return (x === "") - (y === "");
      if (numeric) { x = parseFloat(x); y = parseFloat(y); }
      const sign = numeric ? x - y : x.localeCompare(y, "en", { numeric: true });
      return descending ? -sign : sign;
    };
  }

  function setUp(grid) {
    const body = grid.querySelector("tbody");
    const given = Array.from(body.rows);
    const heads = Array.from(grid.querySelectorAll("th[data-key]"));
    const form = grid.querySelector("form.tools");
    const state = { sort: "" };
    const isNumber = (head) => head.classList.contains("number");
    const place = (key) => heads.findIndex((one) => one.dataset.key === key);

    function sort(wanted) {
      const key = wanted.replace(/^-/, "");
      const head = heads.find((one) => one.dataset.key === key);
      state.sort = head ? wanted : "";
      const rows = given.slice();
      const descending = wanted.startsWith("-");
      if (head) rows.sort(order(heads.indexOf(head), isNumber(head), descending));
      heads.forEach((one) => one.removeAttribute("aria-sort"));
      if (head) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      body.append(...rows);
      if (form) form.elements.sort.value = state.sort;
    }

    function filter() {
      if (!form) return;
      const words = form.elements.q.value.toLowerCase().split(/\s+/).filter(Boolean);
      const chosen = Array.from(form.querySelectorAll("select"))
        .filter((one) => one.name !== "sort" && one.value !== "");
      let shown = 0;
      given.forEach((row) => {
        const text = row.textContent.toLowerCase();
        const fits = words.every((word) => text.includes(word)) &&
          chosen.every((one) => value(row, place(one.name)) === one.value);
        row.hidden = !fits;
        shown += fits;
      });
      form.querySelector("output").textContent = shown + " of " + given.length + " rows";
    }

    function save() {
      if (!form) return;
      const found = new URLSearchParams();
      if (state.sort) found.set("sort", state.sort);
      for (const one of form.elements) {
        if (one.name && one.name !== "sort" && one.value) found.set(one.name, one.value);
      }
      const text = found.toString();
      history.replaceState(null, "", text ? "#" + text : location.pathname + location.search);
    }

    function load() {
      const text = location.hash.slice(1);
      if (!form || (text && !text.includes("="))) return;
      const found = new URLSearchParams(text);
      for (const one of form.elements) if (one.name) one.value = found.get(one.name) || "";
      sort(found.get("sort") || "");
      filter();
    }

    heads.forEach((head) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      button.addEventListener("click", () => {
        const key = head.dataset.key;
        // Numbers are first wanted from the top, names from A.
        const first = isNumber(head) ? "-" + key : key;
        const second = first === key ? "-" + key : key;
        sort(state.sort === first ? second : state.sort === second ? "" : first);
        save();
      });
      head.replaceChildren(button);
    });
    if (form) {
      form.addEventListener("submit", (event) => event.preventDefault());
      form.addEventListener("input", (event) => {
        if (event.target.name === "sort") sort(event.target.value);
        filter();
        save();
      });
      window.addEventListener("hashchange", load);
      load();
    }
  }

  // On a narrow screen a wide table stands as one block a row, each value under the name of its column.
  const narrow = window.matchMedia("(max-width: 640px)");
  const roles = { table: "table", thead: "rowgroup", tbody: "rowgroup", tr: "row", th: "columnheader", td: "cell" };

  function stack(grid) {
    const heads = Array.from(grid.querySelectorAll("th"));
    const scroll = grid.querySelector(".scroll");
    const wide = heads.length > 3 || scroll.scrollWidth > scroll.clientWidth;
    if (!wide || grid.matches(".cards, .stacked")) return;
    const names = heads.map((head) => head.textContent);
    // Blocks are no table to whoever is read to, unless it is said.
    for (const [name, role] of Object.entries(roles)) {
      grid.querySelectorAll(name).forEach((one) => one.setAttribute("role", role));
    }
    for (const row of grid.querySelector("tbody").rows) {
      Array.from(row.cells).forEach((cell, place) => {
        cell.dataset.label = names[place];
        const words = cell.textContent.trim().split(/\s+/);
        cell.classList.toggle("long", words.length > 6 || words.some((word) => word.length > 12));
      });
    }
    grid.classList.add("stacked");
  }

  function stackAll() {
    if (narrow.matches) document.querySelectorAll(".grid").forEach(stack);
  }

  // The figure's own text says what it shows; its hundred marks need not be read out one by one.
  function hush(place) {
    place.querySelector("svg").setAttribute("aria-hidden", "true");
    for (const name of ["role", "aria-roledescription", "aria-label"]) {
      place.querySelectorAll("svg [" + name + "]").forEach((one) => one.removeAttribute(name));
    }
  }

  // A figure that is no file of the site can be saved from the page.
  function offer(place, view) {
    const caption = place.closest("figure").querySelector("figcaption");
    if (caption.querySelector(".downloads")) return;
    const group = document.createElement("span");
    group.className = "downloads";
    for (const kind of ["svg", "png"]) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = "Save as " + kind.toUpperCase();
      button.addEventListener("click", () => view.toImageURL(kind, 2).then((address) => {
        const link = document.createElement("a");
        link.href = address;
        link.download = place.dataset.spec.replace(/^spec-/, "") + "." + kind;
        link.click();
      }));
      group.append(button, " ");
    }
    caption.append(" ", group);
  }

  function draw(places) {
    const next = places.shift();
    if (!next) { document.documentElement.dataset.drawn = "yes"; return; }
    const spec = JSON.parse(document.getElementById(next.dataset.spec).textContent);
    spec.config = JSON.parse(document.getElementById("theme").textContent);
    if (next.clientWidth < 520) spec.config.axis.labelLimit = 130;
    // Vega-Lite fits single charts to their place, charts above one another it does not.
    (spec.vconcat || []).forEach((one) => { one.width = Math.max(next.clientWidth - 90, 120); });
    const options = { renderer: "svg", actions: false, mode: "vega-lite" };
    window.vegaEmbed(next, spec, options)
      .then((made) => { hush(next); offer(next, made.view); })
      .catch((error) => console.error(error))
      .then(() => setTimeout(draw, 0, places));
  }

  document.querySelectorAll(".grid").forEach(setUp);
  stackAll();
  narrow.addEventListener("change", stackAll);
  document.documentElement.dataset.ready = "yes";
  draw(Array.from(document.querySelectorAll(".chart[data-spec]")));
})();
