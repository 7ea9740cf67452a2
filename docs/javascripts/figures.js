// Draws the figures of tutorials in the colours of the page, again when its scheme is changed.
const colours = (place) => {
  const ink = getComputedStyle(place).color;
  const line = ink.replace(/rgba?\((.*?,.*?,[^,]*).*\)/, "rgba($1, 0.15)");
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line };
  return {
    paper_bgcolor: "rgba(0, 0, 0, 0)",
    plot_bgcolor: "rgba(0, 0, 0, 0)",
    font: { color: ink },
    xaxis: axis,
    yaxis: axis,
  };
};

const draw = (place) => {
  const { data, layout, frames } = JSON.parse(place.querySelector("script").textContent);
  const template = { ...layout.template, layout: { ...layout.template?.layout } };
  for (const [name, value] of Object.entries(colours(place))) {
    const former = template.layout[name];
    template.layout[name] = typeof value === "object" ? { ...former, ...value } : value;
  }
  const canvas = place.querySelector("div") ?? place.appendChild(document.createElement("div"));
  const config = { responsive: true, displayModeBar: false };
  Plotly.newPlot(canvas, { data, layout: { ...layout, template }, frames, config });
};

const drawAll = () => document.querySelectorAll(".plotly-figure").forEach(draw);

drawAll();
new MutationObserver(drawAll).observe(document.body, {
  attributeFilter: ["data-md-color-scheme"],
});
