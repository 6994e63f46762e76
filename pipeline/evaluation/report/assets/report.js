"use strict";
// Everything shown is set as text or attributes, never as markup, so file names cannot inject any.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 20;
  const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a00", "#777777"];

  const element = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") made.className = value;
      else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  };
  const number = (value, digits = 3) => (value === null ? "–" : value.toFixed(digits));
  const percent = (value) => (value === null ? "–" : `${(100 * value).toFixed(1)} %`);
  // The first column names the rows, `text` is the index of another one that holds no numbers.
  const table = (caption, columns, rows, text = 0) => {
    const kind = (i) => (i && i !== text ? "number" : "");
    return element("div", { class: "scroll" }, element("table", {},
      element("caption", {}, caption),
      element("thead", {}, element("tr", {}, ...columns.map((name, i) => element("th", { scope: "col", class: kind(i) }, name)))),
      element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((cell, i) =>
        i ? element("td", { class: kind(i) }, cell) : element("th", { scope: "row" }, cell)))))));
  };

  // Charts
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = (title, more = {}) => ({
    title: { display: true, text: title, color: style("--muted") },
    ticks: { color: style("--muted") }, grid: { color: style("--line") }, ...more,
  });
  const drawMatrix = (chart) => {
    const shade = (value) => (value === null ? "transparent" : `color-mix(in srgb, var(--bar) ${Math.round(80 * value)}%, transparent)`);
    const rows = chart.rows.map((name, i) => element("tr", {}, element("th", { scope: "row" }, name),
      ...chart.values[i].map((value) => element("td", { style: `background:${shade(value)}` }, percent(value)))));
    return element("div", { class: "scroll" }, element("table", { class: "matrix" },
      element("caption", {}, chart.note),
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, chart.corner),
        ...chart.columns.map((name) => element("th", { scope: "col" }, name)))),
      element("tbody", {}, ...rows)));
  };
  const drawings = [];
  const drawChart = (chart) => {
    const card = element("section", { class: "chart", "aria-label": chart.title }, element("h3", {}, chart.title));
    if (chart.kind === "matrix") {
      card.append(drawMatrix(chart));
      return card;
    }
    const canvas = element("canvas", { role: "img", "aria-label": `${chart.title}. ${chart.note} The values are in the table below the chart.` });
    const rows = chart.kind === "bar"
      ? chart.labels.map((label, i) => [label, ...chart.series.map((one) => number(one.y[i]))])
      : chart.series.flatMap((one) => one.x.map((x, i) => [one.name, number(x), number(one.y[i])]));
    const columns = chart.kind === "bar" ? [chart.x, ...chart.series.map((one) => one.name)] : ["series", chart.x, chart.y];
    card.append(element("div", { class: "canvas" }, canvas), element("p", { class: "muted" }, chart.note),
      element("details", {}, element("summary", {}, "Values"), table(chart.title, columns, rows)));
    drawings.push(() => new Chart(canvas, {
      type: chart.kind,
      data: {
        labels: chart.kind === "bar" ? chart.labels : undefined,
        datasets: chart.series.map((one, i) => ({
          label: one.name,
          data: chart.kind === "bar" ? one.y : one.x.map((x, j) => ({ x, y: one.y[j] })),
          borderColor: PALETTE[i % PALETTE.length], backgroundColor: PALETTE[i % PALETTE.length],
          borderDash: i % 2 && chart.kind === "line" ? [6, 4] : [], borderWidth: 2, pointRadius: chart.points ? 3 : 0,
        })),
      },
      options: {
        animation: false, responsive: true, maintainAspectRatio: false, parsing: chart.kind === "bar" ? undefined : true,
        scales: {
          x: axis(chart.x, chart.kind === "bar" ? {} : { type: "linear" }),
          y: axis(chart.y, chart.unit ? { min: 0, max: 1 } : { beginAtZero: true }),
        },
        plugins: { legend: { display: chart.series.length > 1, labels: { color: style("--text"), usePointStyle: chart.kind === "line", pointStyle: "line" } } },
      },
    }));
    return card;
  };
  const showCharts = (test) => {
    while (drawings.length) drawings.pop();
    for (const canvas of document.querySelectorAll("#charts canvas")) Chart.getChart(canvas)?.destroy();
    document.querySelector("#charts .charts").replaceChildren(...test.charts.map(drawChart));
    drawings.forEach((draw) => draw());
  };

  // A pair: masks over both images, visibility, and what every part adds to the distance
  const maskOf = (index) => (index === null || !data.masks.length ? null : Uint8Array.from(atob(data.masks[index]), (char) => char.charCodeAt(0)));
  const drawSide = (label, entry, part) => {
    const canvas = element("canvas", { width: 128, height: 256, role: "img", "aria-label": `${label} ${entry.name}, part mask ${part}` });
    const context = canvas.getContext("2d");
    const paint = () => {
      const mask = maskOf(entry.image), channel = data.mask_parts.indexOf(part);
      if (mask === null || channel < 0) return;
      const [rows, columns] = data.mask_size, small = element("canvas", { width: columns, height: rows });
      const pixels = small.getContext("2d").createImageData(columns, rows);
      for (let i = 0; i < rows * columns; i += 1) pixels.data.set([255, 120, 0, 0.75 * mask[channel * rows * columns + i]], 4 * i);
      small.getContext("2d").putImageData(pixels, 0, 0);
      context.drawImage(small, 0, 0, 128, 256);
    };
    if (entry.image === null) paint();
    else {
      const image = new Image();
      image.onload = () => { context.drawImage(image, 0, 0, 128, 256); paint(); };
      image.src = data.images[entry.image];
    }
    return element("div", { class: "side" }, element("h4", {}, label), canvas, element("p", { class: "muted" }, entry.name));
  };
  const meter = (value, visible) => element("span", { class: visible ? "meter" : "meter hidden", role: "img", "aria-label": `${percent(value)}, ${visible ? "visible" : "hidden"}` },
    element("span", { style: `width:${Math.min(100, 100 * value)}%` }));
  const seen = (entry, i) => (i < entry.visibility.length ? element("span", {}, meter(entry.visibility[i], entry.visible[i]), ` ${number(entry.visibility[i], 2)}`) : "–");
  const drawPair = (query, hit) => {
    const sides = element("div", { class: "sides" });
    const choose = (part) => {
      sides.replaceChildren(drawSide("Query", query, part), drawSide("Gallery", hit, part));
      for (const button of tabs.children) button.setAttribute("aria-pressed", String(button.textContent === part));
    };
    const tabs = element("div", { class: "tabs", role: "group", "aria-label": "Part mask shown over the images" },
      ...data.mask_parts.map((part) => element("button", { type: "button", "aria-pressed": "false", onclick: () => choose(part) }, part)));
    const rows = data.parts.map((part, i) => {
      const [distance, weight, contribution] = hit.contributions[i];
      return [part, seen(query, i), seen(hit, i), number(distance, 4), number(weight, 3), number(contribution, 4)];
    }).filter((row, i) => row[0] !== "no shared part" || hit.contributions[i][1] > 0);
    const total = hit.contributions.reduce((sum, one) => sum + one[2], 0);
    rows.push(["sum", "", "", "", "", number(total, 4)]);
    choose(data.mask_parts[0] ?? "");
    return element("div", { class: "pair", tabindex: "-1" }, data.mask_parts.length ? tabs : null, sides,
      table(`Distance ${number(hit.distance, 4)} = sum of the contributions (weight × distance)`, ["part", "query visibility", "gallery visibility", "distance", "weight", "contribution"], rows));
  };

  // Queries
  const drawFigure = (entry, label, kind, onclick) => {
    const content = entry.image === null ? element("span", { class: "muted" }, "no image") : element("img", { src: data.images[entry.image], alt: label, loading: "lazy" });
    const frame = onclick ? element("button", { type: "button", class: "frame", "aria-expanded": "false", "aria-label": `${label}. Explain this pair.`, onclick }, content)
      : element("span", { class: "frame" }, content);
    return element("figure", { class: kind }, frame, element("figcaption", {}, entry.caption ?? ""));
  };
  const drawQuery = (query) => {
    const pair = element("div", { class: "explanation" });
    const own = drawFigure({ ...query, caption: `query, camera ${query.camid}` }, `Query ${query.name}`, "", null);
    const hits = query.hits.map((hit) => {
      const sign = hit.correct ? "✓" : "✗";
      const toggle = (event) => {
        const button = event.currentTarget, open = button.getAttribute("aria-expanded") === "true";
        for (const other of row.querySelectorAll("button.frame")) other.setAttribute("aria-expanded", "false");
        button.setAttribute("aria-expanded", String(!open));
        pair.replaceChildren(...(open ? [] : [drawPair(query, hit)]));
      };
      const figure = drawFigure(hit, `Rank ${hit.rank}, ${hit.correct ? "same identity" : "another identity"}: ${hit.name}`, hit.correct ? "correct" : "wrong", toggle);
      figure.lastChild.append(element("span", { class: "sign" }, `${sign} ${hit.rank}`), ` id ${hit.pid}, camera ${hit.camid}`, element("br"), number(hit.distance), element("br"), element("span", { class: "muted" }, hit.shared || "no shared part"));
      return figure;
    });
    const row = element("div", { class: "row" }, own, ...hits);
    return element("article", { class: "query", "data-ap": query.ap ?? "" },
      element("h3", {}, query.name),
      element("p", { class: "muted" }, `id ${query.pid}, camera ${query.camid}, AP ${number(query.ap)}, first match at rank ${query.first_hit ?? "–"}, visible fraction ${percent(query.fraction)}${query.group ? `, ${query.group}` : ""}`),
      row, pair);
  };
  const SORTS = {
    "worst AP first": (a, b) => (a.ap ?? 2) - (b.ap ?? 2),
    "best AP first": (a, b) => (b.ap ?? -1) - (a.ap ?? -1),
    "least visible first": (a, b) => (a.fraction ?? 2) - (b.fraction ?? 2),
    "largest distance first": (a, b) => (b.hits[0]?.distance ?? 0) - (a.hits[0]?.distance ?? 0),
    "name": (a, b) => (a.name < b.name ? -1 : 1),
  };
  const select = (label, name, options) => element("label", {}, label, element("select", { name, onchange: () => showQueries(true) }, ...options.map((text) => element("option", {}, text))));
  const form = document.querySelector("#queries form");
  let test = data.tests[0], shown = PAGE;
  const buildControls = () => {
    const cameras = [...new Set(test.queries.map((query) => query.camid))].sort((a, b) => a - b).map((camid) => `camera ${camid}`);
    const parts = data.parts.slice(0, test.queries[0]?.visible.length ?? 0);
    form.replaceChildren(
      select("Sort", "sort", Object.keys(SORTS)),
      select("Rank 1", "rank1", ["all", "wrong at rank 1", "correct at rank 1"]),
      select("Part", "part", ["any", ...parts.flatMap((part) => [`${part} visible`, `${part} hidden`])]),
      select("Camera", "camera", ["all", ...cameras]),
      select("Visible fraction", "fraction", ["any", "below 25 %", "25 to 50 %", "50 to 75 %", "above 75 %"]),
      select("Failure group", "group", ["all", ...test.groups.map((group) => group.reason)]));
    form.addEventListener("submit", (event) => event.preventDefault());
  };
  const accepts = (query) => {
    const chosen = Object.fromEntries(new FormData(form));
    const correct = query.hits[0]?.correct ?? false;
    if (chosen.rank1 !== "all" && correct !== chosen.rank1.startsWith("correct")) return false;
    if (chosen.camera !== "all" && chosen.camera !== `camera ${query.camid}`) return false;
    if (chosen.group !== "all" && chosen.group !== query.group) return false;
    if (chosen.part !== "any") {
      const [part, state] = chosen.part.split(" ");
      if (query.visible[data.parts.indexOf(part)] !== (state === "visible")) return false;
    }
    const quarter = ["below 25 %", "25 to 50 %", "50 to 75 %", "above 75 %"].indexOf(chosen.fraction);
    return quarter < 0 || (query.fraction !== null && Math.min(3, Math.floor(4 * query.fraction)) === quarter);
  };
  const showQueries = (restart) => {
    if (restart) shown = PAGE;
    const chosen = test.queries.filter(accepts).sort(SORTS[new FormData(form).get("sort")]);
    const more = element("button", { type: "button", onclick: () => { shown += PAGE; showQueries(false); } }, "Show more");
    document.querySelector("#queries .count").textContent =
      `${chosen.length.toLocaleString("en")} of ${test.queries.length.toLocaleString("en")} stored queries match; the test set has ${test.num_queries.toLocaleString("en")}.`;
    document.querySelector("#queries .list").replaceChildren(...chosen.slice(0, shown).map(drawQuery), ...(chosen.length > shown ? [more] : []));
  };
  const showGroups = () => {
    const only = (reason) => {
      form.elements.group.value = reason;
      showQueries(true);
      document.getElementById("queries").scrollIntoView();
    };
    const rows = test.groups.map((group) => [element("button", { type: "button", onclick: () => only(group.reason) }, group.reason), String(group.count), percent(group.share), group.explanation]);
    document.querySelector("#failures .list").replaceChildren(rows.length ? table(`${test.name}: all queries that fail`, ["reason", "queries", "share of failures", "meaning"], rows, 3) : element("p", {}, "No query fails at rank 1."));
  };
  const showTest = (name) => {
    test = data.tests.find((one) => one.name === name);
    buildControls();
    showCharts(test);
    showGroups();
    showQueries(true);
  };
  if (data.tests.length > 1) {
    document.querySelector("header").append(element("label", {}, "Test set ", element("select", { onchange: (event) => showTest(event.target.value) }, ...data.tests.map((one) => element("option", {}, one.name)))));
  }
  if (data.tests.length) showTest(data.tests[0].name);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => data.tests.length && showCharts(test));
})();
