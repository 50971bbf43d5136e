"use strict";
(() => {
  const holders = [...document.querySelectorAll("[data-figure]")];

  // Text and lines of a chart follow the page's colours, in print too.
  const theme = () => {
    const colours = getComputedStyle(document.documentElement);
    const colour = (name) => colours.getPropertyValue(name).trim();
    return { paper: colour("--paper"), ink: colour("--ink"), line: colour("--line"), panel: colour("--panel") };
  };

  const themed = (layout) => {
    const { ink, line, panel } = theme();
    const lines = { gridcolor: line, linecolor: line, tickcolor: line, zerolinecolor: line };
    return {
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, size: 12, family: "system-ui, sans-serif" },
      margin: { l: 60, r: 16, t: 10, b: 50 },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: line, activecolor: ink },
      hoverlabel: { bgcolor: panel, bordercolor: line, font: { color: ink }, align: "left" },
      xaxis: { ...layout.xaxis, ...lines },
      yaxis: { ...layout.yaxis, ...lines },
    };
  };

  const draw = (holder) => {
    const figure = JSON.parse(document.getElementById(holder.dataset.figure).textContent);
    const buttons = [["zoom2d", "pan2d", "resetScale2d", "toImage"]];
    const options = { responsive: true, displaylogo: false, modeBarButtons: buttons };
    return Plotly.react(holder, figure.data, themed(figure.layout), options).then(() => {
      holder.dataset.drawn = "true";
    });
  };

  const drawAll = () => holders.forEach(draw);
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  matchMedia("print").addEventListener("change", drawAll);
})();
