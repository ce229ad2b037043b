/* The panel of the map of all scenes: date, colours, score, classes, and what is selected. */

const STATES = {
  complete: ["complete", "#4fd1c5"],
  warned: ["with warnings", "#ffd166"],
  failed: ["failed; shown is an earlier result", "#ff6161"],
  unknown: ["not in a run report", "#a0abb7"],
};
const NO_DETECTIONS = "#8b96a3";

class NightPanel {
  constructor(night, map) {
    Object.assign(this, { night, map, points: map.boxes, ground: map.picture });
    this.numbers = new Map(night.scenes.map(({ id }, number) => [id, number]));
    this.setUpDates();
    this.setUpScores();
    this.setUpClasses();
    this.setUpCards();
    byId("colour").addEventListener("change", () => this.refresh());
    byId("close").addEventListener("click", () => map.pickScene(-1));
    byId("zoom-to").addEventListener("click", () => map.showScene(map.pickedScene));
    this.setUpNote();
    this.refresh();
  }

  /* Say which detections are not on the map. */
  setUpNote() {
    const { total, beyond } = this.night.points;
    const left = total - beyond - this.points.length;
    const parts = [
      ...(left ? [`the ${integers.format(left)} detections with the lowest scores`] : []),
      ...(beyond ? [`${plural(beyond, "detection")} beyond 85° of latitude`] : []),
    ];
    byId("note").hidden = !parts.length;
    byId("note").textContent = `The map does not include ${parts.join(" and ")}; the tables have them.`;
  }

  /* What to add to counts that may not include all detections. */
  get onMap() {
    return this.points.filtered && this.night.points.total > this.points.length ? " on this map" : "";
  }

  setUpDates() {
    const dates = [...new Set(this.night.scenes.map(({ date }) => date))].sort();
    byId("date-row").hidden = dates.length < 2;
    const options = dates.map((date) => new Option(date === "unknown" ? "unknown" : date, date));
    byId("date").replaceChildren(new Option("all dates", ""), ...options);
    byId("date").addEventListener("change", (event) => {
      const date = event.target.value;
      filters.date = date === "" ? null : date === "unknown" ? "" : date;
      filterCards();
    });
    filters.onChange = (names) => {
      this.night.scenes.forEach(({ id }, number) => {
        this.points.scenesOn[number] = Number(names.has(id));
        this.ground.scenes[number].shown = names.has(id);
      });
      this.filter();
    };
  }

  setUpScores() {
    const { score } = this.points.columns;
    byId("scores").hidden = !score.length;
    this.low = score.reduce((least, value) => Math.min(least, value), 100);
    if (!score.length) this.low = 0;
    this.points.low = this.low;
    const slider = byId("score");
    Object.assign(slider, { min: Math.min(this.low, 99) / 100, max: 1, step: 0.01 });
    slider.value = slider.min;
    byId("low").textContent = decimals(Number(slider.min), 2);
    slider.addEventListener("input", () => {
      this.points.least = Math.round(Number(slider.value) * 100);
      this.filter();
    });
  }

  setUpClasses() {
    const { classes } = this.night;
    byId("class-section").hidden = !classes.length;
    this.rows = classes.map((name, label) => {
      const box = element("input", { type: "checkbox", checked: true });
      const count = element("span", { className: "n" });
      const text = element("span", { className: "name", textContent: name });
      const row = element("label", {}, box, swatch(this.points.colours[label]), text, count);
      box.addEventListener("change", () => {
        this.points.enabled[label] = Number(box.checked);
        this.filter();
      });
      byId("classes").append(element("li", {}, row));
      return { row, box, count };
    });
    byId("all").hidden = classes.length < 2;
    byId("all").addEventListener("click", () => {
      const on = this.points.enabled.includes(0);
      this.points.enabled.fill(Number(on));
      for (const { box } of this.rows) box.checked = on;
      this.filter();
    });
  }

  /* Each card gets a button that moves the map to its scene. */
  setUpCards() {
    for (const { item, name } of cards) {
      const number = this.numbers.get(name);
      if (number === undefined) continue;
      const button = element("button", { type: "button", className: "locate", title: "Show on the map", textContent: "Map" });
      button.setAttribute("aria-label", `Show ${name} on the map`);
      button.addEventListener("click", () => {
        this.map.pickScene(number);
        this.map.showScene(number);
      });
      item.append(button);
    }
  }

  filter() {
    this.points.filter();
    const { picked, pickedScene } = this.map;
    const hidden = picked >= 0 ? !this.points.shown[picked] : pickedScene >= 0 && !this.ground.scenes[pickedScene].shown;
    if (hidden) this.map.pickScene(-1);
    this.refresh();
  }

  refresh() {
    const { total, length, byClass, enabled, least } = this.points;
    byId("shown").textContent =
      total === length ? "" : `${integers.format(total)} of ${plural(length, "detection")} shown`;
    byId("least").textContent = `≥ ${decimals(Math.max(least, this.low) / 100, 2)}`;
    byId("all").textContent = enabled.includes(0) ? "All" : "None";
    this.rows.forEach(({ row, count }, label) => {
      count.textContent = integers.format(byClass[label]);
      row.classList.toggle("off", !enabled[label]);
    });
    this.colourScenes();
    this.map.requestDraw();
  }

  colourScenes() {
    const kind = byId("colour").value;
    if (kind === "state") return this.colourByState();
    const values = this.night.scenes.map(({ km2 }, number) => {
      const count = this.points.countOf(number);
      return kind === "count" ? count : km2 > 0 ? count / km2 : 0;
    });
    const positive = values.filter((value) => value > 0);
    const [low, high] = positive.length ? rangeOf(positive) : [1, 1];
    values.forEach((value, number) => {
      const share = high > low ? Math.log(value / low) / Math.log(high / low) : 1;
      // In steps, so that many scenes have one colour and are drawn together.
      this.ground.scenes[number].colour = value > 0 ? rampColour(Math.round(share * 12) / 12) : NO_DETECTIONS;
    });
    const unit = (kind === "count" ? "" : " per km²") + this.onMap;
    this.showKey([
      ...(positive.length < values.length ? [[`none${this.onMap}`, NO_DETECTIONS]] : []),
      ...(positive.length ? [[short(low) + unit, rampColour(high > low ? 0 : 1)]] : []),
      ...(high > low ? [[short(high) + unit, rampColour(1)]] : []),
    ]);
  }

  colourByState() {
    const counts = new Map();
    this.night.scenes.forEach(({ state }, number) => {
      this.ground.scenes[number].colour = STATES[state][1];
      if (this.ground.scenes[number].shown) counts.set(state, (counts.get(state) ?? 0) + 1);
    });
    const present = Object.keys(STATES).filter((state) => counts.has(state));
    this.showKey(present.map((state) => [`${STATES[state][0]}: ${integers.format(counts.get(state))}`, STATES[state][1]]));
  }

  showKey(entries) {
    byId("ramp").replaceChildren(...entries.map(([text, colour]) => element("li", {}, swatch(colour), text)));
  }

  showPicked(i, number) {
    byId("picked").hidden = number < 0;
    if (number < 0) return;
    const scene = this.night.scenes[number];
    if (i >= 0) this.showDetection(i, scene);
    else this.showScene(number, scene);
    byId("picked").scrollIntoView({ block: "nearest" });
  }

  showScene(number, scene) {
    byId("picked-title").replaceChildren(scene.id);
    facts(byId("facts"), [
      ["Detections", integers.format(this.points.countOf(number)) + this.onMap],
      [scene.estimated ? "Ground" : "Observed", `${short(scene.km2)} km²${scene.estimated ? ", not all need be observed" : ""}`],
      ["Date", scene.date],
      ["State", STATES[scene.state][0]],
      ["Reason", scene.reason],
    ]);
    this.linkTo(scene, "Open the scene", "");
  }

  showDetection(i, scene) {
    const { x, y, label, score } = this.points.columns;
    const [lon, lat] = this.map.lonLat(x[i] + 0.5, y[i] + 0.5);
    const at = `${lat.toFixed(6)},${(lon - 360 * Math.round(lon / 360)).toFixed(6)}`;
    byId("picked-title").replaceChildren(swatch(this.points.colours[label[i]]), this.night.classes[label[i]]);
    facts(byId("facts"), [
      ["Score", `${decimals(score[i] / 100, 2)} or more`],
      ["Lat, lon", at.replace(",", ", ")],
      ["Scene", scene.id],
      ["Date", scene.date],
    ]);
    this.linkTo(scene, "Open it in its scene", `#at=${at}`);
  }

  linkTo(scene, text, fragment) {
    byId("open").hidden = !scene.page;
    byId("open").textContent = text;
    byId("open").href = `${encodeURIComponent(scene.id)}.html${fragment}`;
  }
}

function rangeOf(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, 0]);
}

function short(value) {
  return value >= 100 ? integers.format(Math.round(value)) : String(Number(value.toPrecision(3)));
}
