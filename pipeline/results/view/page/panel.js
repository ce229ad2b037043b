/* The panel: counts, the score slider with its histogram, classes, and the selected detection. */

const BINS = 60;
const STEP = 0.01;

class Panel {
  constructor(data, map) {
    Object.assign(this, { data, map, boxes: map.boxes, columns: map.boxes.columns });
    const { score } = this.columns;
    const lowest = score.length ? score[0] : 0;
    // The run dropped scores below its threshold, so the slider must not offer them.
    const kept = data.scene.kept_from ?? Math.floor(lowest * 20 + 1e-4) / 20;
    this.low = Math.min(Math.max(kept, 0), 0.95);
    this.setUpAbout();
    this.setUpScores();
    this.setUpClasses();
    this.setUpPicked();
    this.refresh();
  }

  setUpAbout() {
    const { scene, base } = this.data;
    const date = scene.date === "unknown" ? "date unknown" : scene.date;
    const centre = lonLatAt(scene, scene.width / 2, scene.height / 2);
    byId("subtitle").textContent = [date, scene.model].filter(Boolean).join(" · ");
    const size = ([width, height]) => `${integers.format(width)} × ${integers.format(height)} px`;
    facts(byId("about"), [
      ["Source", scene.source],
      ["Size", size([scene.width, scene.height])],
      ["Searched", scene.area.length && "only inside the outline"],
      ["Pixel", scene.gsd_m && `${scene.gsd_m} m`],
      ["Coordinates", scene.crs],
      ["Centre", centre && `${centre[1].toFixed(5)}, ${centre[0].toFixed(5)} (lat, lon)`],
      ["Extent", centre && extentText(scene)],
      ["Acquired", scene.date],
      ["Model", scene.model],
      ["Description", scene.about_model.description],
      ["Accuracy", scene.about_model.figures],
      ["Sizes", !scene.sizes_meaningful && "of boxes say nothing about the objects; use their centres"],
      ["Threshold", scene.threshold === null ? null : `score ${scene.threshold}`],
      ["Model SHA-256", scene.model_sha256 && `${scene.model_sha256.slice(0, 16)}…`],
      ["Fingerprint", scene.fingerprint],
      ["Picture", scene.picture ? `${size(scene.picture)}, from the ${base}` : "none"],
    ]);
    const left = scene.total - this.boxes.length;
    this.notes = [
      left && `This page does not include the ${integers.format(left)} detections with the lowest scores; the table has them.`,
      base === "none" && `There is no picture: the scene has no quicklook, and its source file was not available. To get one, ${scene.finer}`,
      scene.coarse,
    ].filter(Boolean);
    this.showMessage("");
  }

  /* Show a message above the notes of the page; an empty message shows only the notes. */
  showMessage(message) {
    const lines = [message, ...this.notes].filter(Boolean);
    const spans = lines.map((textContent) =>
      Object.assign(document.createElement("span"), { textContent }),
    );
    byId("note").replaceChildren(...spans);
    byId("note").hidden = !lines.length;
  }

  setUpScores() {
    const slider = byId("score");
    byId("scores").hidden = !this.boxes.length;
    Object.assign(slider, { min: this.low, max: 1, step: STEP });
    slider.value = this.low;
    byId("low").textContent = decimals(this.low, 2);
    const { threshold } = this.data.scene;
    this.mark = threshold !== null && threshold < 1 && threshold >= this.low ? threshold : null;
    byId("mark").textContent = this.mark === null ? "" : `${decimals(this.mark, 2)} is the model's threshold`;
    slider.addEventListener("input", () => {
      this.boxes.setLeast(Number(slider.value) <= this.low ? 0 : Number(slider.value));
      this.refresh();
    });
    new ResizeObserver(() => this.drawHistogram()).observe(byId("histogram"));
  }

  setUpClasses() {
    const { classes } = this.data;
    byId("class-section").hidden = !classes.length;
    this.rows = classes.map((name, label) => {
      const item = document.createElement("li");
      const row = document.createElement("label");
      const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
      const text = Object.assign(document.createElement("span"), { className: "name", textContent: name });
      const count = Object.assign(document.createElement("span"), { className: "n" });
      box.addEventListener("change", () => {
        this.boxes.enabled[label] = Number(box.checked);
        this.refresh();
      });
      row.append(box, swatch(this.data.colours[label]), text, count);
      item.append(row);
      byId("classes").append(item);
      return { row, box, count };
    });
    const all = byId("all");
    all.hidden = classes.length < 2;
    all.addEventListener("click", () => {
      const on = this.boxes.enabled.includes(0);
      this.boxes.enabled.fill(Number(on));
      for (const { box } of this.rows) box.checked = on;
      this.refresh();
    });
  }

  setUpPicked() {
    byId("before").addEventListener("click", () => this.step(1));
    byId("after").addEventListener("click", () => this.step(-1));
    byId("close").addEventListener("click", () => this.map.pick(-1));
    byId("copy").addEventListener("click", () => this.copy());
    byId("unpicked").hidden = !this.boxes.length;
  }

  /* Select the detection with the next higher (1) or lower (-1) score. */
  step(by) {
    const next = this.boxes.step(this.map.picked, this.map.picked < 0 ? -1 : by);
    if (next < 0) return;
    this.map.pick(next);
    this.map.show(next);
  }

  refresh() {
    const counts = this.boxes.counts();
    const { enabled, length } = this.boxes;
    const shown = counts.reduce((sum, count, label) => sum + count * enabled[label], 0);
    byId("shown").textContent = integers.format(shown);
    byId("of").textContent =
      shown === length ? (shown === 1 ? "detection" : "detections") : `of ${integers.format(length)}`;
    byId("least").textContent = `≥ ${decimals(Number(byId("score").value), 2)}`;
    byId("all").textContent = enabled.includes(0) ? "All" : "None";
    this.rows.forEach(({ row, count }, label) => {
      count.textContent = integers.format(counts[label]);
      row.classList.toggle("off", !enabled[label]);
    });
    if (this.map.picked >= 0 && !this.boxes.isShown(this.map.picked)) this.map.pick(-1);
    this.drawHistogram();
    this.map.requestDraw();
  }

  drawHistogram() {
    const canvas = byId("histogram");
    const density = window.devicePixelRatio || 1;
    canvas.width = Math.round(canvas.clientWidth * density);
    canvas.height = Math.round(canvas.clientHeight * density);
    const context = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    const counts = this.boxes.histogram(BINS, this.low);
    const highest = Math.max(...counts, 1);
    const inset = 8 * density; // half of the slider's thumb, so that bars stand over their scores
    const step = (canvas.width - 2 * inset) / BINS;
    const least = (Number(byId("score").value) - this.low) / (1 - this.low);
    counts.forEach((count, bin) => {
      const tall = count ? Math.max((count / highest) * (canvas.height - density), density) : 0;
      const on = (bin + 0.5) / BINS >= least;
      context.fillStyle = style.getPropertyValue(on ? "--bar" : "--bar-off");
      const x = Math.round(inset + bin * step);
      const wide = Math.max(Math.round(inset + (bin + 1) * step) - x - density, 1);
      context.fillRect(x, canvas.height - tall, wide, tall);
    });
    if (this.mark !== null) {
      const x = inset + ((this.mark - this.low) / (1 - this.low)) * (canvas.width - 2 * inset);
      context.fillStyle = style.getPropertyValue("--ink");
      context.fillRect(Math.round(x - density / 2), 0, Math.max(Math.round(density), 1), canvas.height);
    }
    context.fillStyle = style.getPropertyValue("--line");
    context.fillRect(inset, canvas.height - density, canvas.width - 2 * inset, density);
  }

  showPicked(i) {
    byId("picked").hidden = i < 0;
    byId("unpicked").hidden = i >= 0 || !this.boxes.length;
    if (i < 0) return;
    const { columns, data } = this;
    const label = columns.label[i];
    byId("picked-title").replaceChildren(swatch(data.colours[label]), data.classes[label]);
    const [x0, y0, x1, y1] = columns.xyxy.subarray(4 * i, 4 * i + 4);
    const lonlat = lonLat(columns, i);
    const size = data.scene.sizes_meaningful && columns.size_m?.subarray(2 * i, 2 * i + 2);
    facts(byId("facts"), [
      ["Score", decimals(columns.score[i], 3)],
      ["Lat, lon", lonlat && this.positionText(i)],
      ["On the ground", size && `${decimals(size[0], 1)} × ${decimals(size[1], 1)} m`],
      ["Area", size && `${decimals(size[0] * size[1], 1)} m²`],
      ["Columns", `${x0.toFixed(1)} – ${x1.toFixed(1)}`],
      ["Rows", `${y0.toFixed(1)} – ${y1.toFixed(1)}`],
      ["Truncated", columns.truncated[i] ? "yes, at the edge of a window" : null],
      ["Id", idOf(columns, i)],
    ]);
    byId("copy").textContent = "Copy";
    for (const link of [byId("osm"), byId("geo")]) link.hidden = !lonlat;
    if (lonlat) {
      const [lon, lat] = lonlat.map((degrees) => degrees.toFixed(6));
      byId("osm").href = `https://www.openstreetmap.org/?mlat=${lat}&mlon=${lon}#map=18/${lat}/${lon}`;
      byId("geo").href = `geo:${lat},${lon}`;
    }
    byId("before").disabled = this.boxes.step(i, 1) < 0;
    byId("after").disabled = this.boxes.step(i, -1) < 0;
  }

  /* Latitude and longitude, or column and row without georeference. */
  positionText(i) {
    const lonlat = lonLat(this.columns, i);
    if (lonlat) return `${lonlat[1].toFixed(6)}, ${lonlat[0].toFixed(6)}`;
    return this.boxes.centre(i).map((at) => at.toFixed(1)).join(", ");
  }

  async copy() {
    const done = await copyText(this.positionText(this.map.picked));
    byId("copy").textContent = done ? "Copied" : "Copying is not allowed";
  }
}

/* The range of the scene's latitudes and longitudes, as text. */
function extentText({ lattice }) {
  const span = (k) => {
    const every = Array.from(lattice).filter((_, at) => at % 2 === k);
    return `${Math.min(...every).toFixed(5)} to ${Math.max(...every).toFixed(5)}`;
  };
  return `lat ${span(1)}, lon ${span(0)}`;
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy"); // browsers refuse the clipboard to pages opened from a folder
    area.remove();
    return done;
  }
}
