"use strict";
// the value under the pointer, of every line of a chart
const show = (value) => {
  const size = Math.abs(value);
  if (size >= 1e4) return Math.round(value).toLocaleString("en");
  return size >= 1e-3 || size === 0 ? String(+value.toPrecision(4)) : value.toExponential(2);
};
const nearest = (steps, step) => {
  let low = 0, high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] < step) low = middle; else high = middle;
  }
  return Math.abs(steps[low] - step) <= Math.abs(steps[high] - step) ? low : high;
};
for (const figure of document.querySelectorAll("[data-chart]")) {
  const data = JSON.parse(figure.dataset.chart);
  const plot = figure.querySelector(".plot"), tip = figure.querySelector(".tip"), cursor = figure.querySelector(".cursor");
  const hide = () => { tip.hidden = cursor.hidden = true; };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const share = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
    const step = share * data.right;
    tip.replaceChildren();
    let at = step, best = Infinity;
    for (const series of data.series) {
      const index = nearest(series.steps, step), distance = Math.abs(series.steps[index] - step);
      if (distance < best) [at, best] = [series.steps[index], distance];
      const row = document.createElement("div"), swatch = document.createElement("span");
      swatch.className = "swatch " + series.colour;
      const spread = series.low ? ` (${show(series.low[index])} to ${show(series.high[index])})` : "";
      const name = data.series.length > 1 ? " " + series.label : "";
      row.append(swatch, ` ${show(series.mean[index])}${spread}${name}`);
      tip.append(row);
    }
    const head = document.createElement("div");
    head.textContent = `${Math.round(at).toLocaleString("en")} steps`;
    tip.prepend(head);
    const left = data.right ? at / data.right : 0;
    cursor.style.left = `${100 * left}%`;
    tip.style.left = left < 0.5 ? `calc(${100 * left}% + 10px)` : "auto";
    tip.style.right = left < 0.5 ? "auto" : `calc(${100 * (1 - left)}% + 10px)`;
    tip.hidden = cursor.hidden = false;
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("pointercancel", hide);
}
