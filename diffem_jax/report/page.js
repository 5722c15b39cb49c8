(() => {
  "use strict";
  // Errors are counted on the root element, where a person, or a test, can read them.
  const root = document.documentElement;
  root.dataset.errors = "0";
  const note = (message) => {
    root.dataset.errors = String(Number(root.dataset.errors) + 1);
    root.dataset.lastError = String(message).slice(0, 300);
  };
  window.addEventListener("error", (e) => note(e.message || `${e.target.tagName} was not loaded`), true);
  window.addEventListener("unhandledrejection", (e) => note(e.reason));
  document.addEventListener("securitypolicyviolation", (e) => note(`${e.violatedDirective}: ${e.blockedURI}`));

  const all = (selector, from = document) => [...from.querySelectorAll(selector)];

  function mark(card, round) {
    let label = null;
    for (const point of all("circle[data-round]", card)) {
      const here = Number(point.dataset.round) === round;
      point.classList.toggle("now", here);
      if (here) label = point.dataset.label;
    }
    card.querySelector(".readout").textContent = label === null ? "" : label;
  }

  function nearest(svg, event) {
    let best = null, least = Infinity;
    for (const point of all("circle[data-round]", svg)) {
      const box = point.getBoundingClientRect();
      const distance = Math.abs(box.left + box.width / 2 - event.clientX);
      if (distance < least) { least = distance; best = Number(point.dataset.round); }
    }
    return best;
  }

  function ready() {
    const figures = all("figure[data-round]");
    const rounds = figures.map((f) => Number(f.dataset.round));
    const cards = all(".card");
    const box = document.getElementById("slider");
    const slider = document.getElementById("round");
    let now = null;

    const closest = (round) => rounds.reduce((best, r, i) =>
      Math.abs(r - round) < Math.abs(rounds[best] - round) ? i : best, 0);

    function show(index, remember) {
      now = rounds[index];
      figures.forEach((f, i) => { f.hidden = i !== index; });
      const name = figures[index].dataset.name;
      slider.value = String(index);
      slider.setAttribute("aria-valuetext", name);
      document.getElementById("shown").textContent = name;
      root.dataset.round = String(now);
      cards.forEach((card) => mark(card, now));
      if (remember) {
        try { history.replaceState(null, "", `#round=${now}`); } catch (refused) { /* a frame without an address */ }
      }
    }

    function fromAddress() {
      const wanted = /^#round=(\d+)$/.exec(location.hash);
      return wanted ? closest(Number(wanted[1])) : null;
    }

    if (figures.length && slider) {
      box.hidden = false;
      box.parentElement.classList.add("live");
      slider.addEventListener("input", () => show(Number(slider.value), true));
      window.addEventListener("hashchange", () => { const i = fromAddress(); if (i !== null) show(i, false); });
      const first = fromAddress();
      show(first === null ? rounds.length - 1 : first, false);
    }

    for (const card of cards) {
      for (const svg of all("svg", card)) {
        svg.addEventListener("pointermove", (e) => mark(card, nearest(svg, e)));
        svg.addEventListener("pointerleave", () => mark(card, now));
        svg.addEventListener("click", (e) => { if (figures.length) show(closest(nearest(svg, e)), true); });
      }
      if (now === null) {
        const points = all("circle[data-round]", card);
        if (points.length) mark(card, Number(points[points.length - 1].dataset.round));
      }
    }

    root.dataset.ready = "1";
  }

  document.addEventListener("DOMContentLoaded", ready);
})();
