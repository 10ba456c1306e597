/* Draws a landscape, as gradscope.reporting.surfaces describes it, into the elements of `root` that hold the choice of a
   view (select), the scenes (.scenes) and the sentence that says what is shown (.sentence). */
"use strict";

function drawSurfaces(root, landscape) {
  const select = root.querySelector("select");
  let camera = landscape.layout.scene.camera;
  let turning = false;
  const plots = landscape.scenes.map((name) => {
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    const plot = document.createElement("div");
    caption.textContent = name;
    plot.className = "plot";
    figure.append(caption, plot);
    root.querySelector(".scenes").append(figure);
    return plot;
  });

  function values(plane) {
    const bytes = Uint8Array.from(atob(plane.values), (letter) => letter.charCodeAt(0));
    const numbers = new DataView(bytes.buffer);
    const width = plane.a.length;
    return plane.b.map((_, row) => plane.a.map((_, column) => numbers.getFloat32(4 * (row * width + column), true)));
  }

  function height(value, threshold) {
    if (Number.isNaN(value)) return null;
    if (threshold === null) return value;
    const size = Math.abs(value) / threshold;
    return Math.sign(value) * (size <= 1 ? size : 1 + Math.log10(size));
  }

  function draw(plot, plane, view) {
    if (plane === null) {
      Plotly.purge(plot);
      plot.textContent = "not measured here";
      plot.classList.add("none");
      return undefined;
    }
    if (plot.classList.contains("none")) plot.textContent = "";
    plot.classList.remove("none");
    const grid = values(plane);
    const ends = view.ends.map((value) => height(value, view.threshold));
    const marks = {
      tickmode: "array",
      tickvals: view.ticks.map((value) => height(value, view.threshold)),
      ticktext: view.ticks.map((value) => String(Number(value.toPrecision(6)))),
    };
    const bar = landscape.trace.colorbar;
    const trace = {
      ...landscape.trace,
      x: plane.a,
      y: plane.b,
      z: grid.map((row) => row.map((value) => height(value, view.threshold))),
      text: grid.map((row) => row.map((value) => value.toPrecision(4))),
      cmin: ends[0],
      cmax: ends[1],
      hovertemplate: "a %{x:.3g}<br>b %{y:.3g}<br>" + view.words + " %{text}<extra></extra>",
      colorbar: { ...bar, ...marks, title: { ...bar.title, text: view.words } },
    };
    const scene = landscape.layout.scene;
    const range = [ends[0] - 0.04 * (ends[1] - ends[0]), ends[1]];
    const zaxis = { ...scene.zaxis, ...marks, range, title: { ...scene.zaxis.title, text: view.title } };
    const layout = { ...landscape.layout, scene: { ...structuredClone(scene), zaxis, camera: structuredClone(camera) } };
    return Plotly.react(plot, [trace], layout, landscape.config);
  }

  function turnTogether(plot) {
    plot.on("plotly_relayout", async () => {
      if (turning) return;
      turning = true;
      camera = structuredClone(plot.layout.scene.camera);
      const others = plots.filter((other) => other !== plot && other.layout);
      await Promise.all(others.map((other) => Plotly.relayout(other, { "scene.camera": structuredClone(camera) })));
      turning = false;
    });
  }

  async function show() {
    const view = landscape.views[select.selectedIndex];
    root.querySelector(".sentence").textContent = view.sentence;
    for (const [index, plot] of plots.entries()) {
      const isNew = !plot.layout;
      await draw(plot, view.planes[index], view);
      if (isNew && plot.layout) turnTogether(plot);
    }
  }

  for (const view of landscape.views) select.add(new Option(view.name));
  select.addEventListener("change", show);
  return { show, clear: () => plots.forEach((plot) => Plotly.purge(plot)) };
}
