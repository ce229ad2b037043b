/* The index as a map: creates the map and the panel from the page's data. */

const night = JSON.parse(byId("data").textContent);
byId("data").remove();
const STRIDE_PX = 80;

async function showNight() {
  const columns = {};
  for (const [name, column] of Object.entries(night.points.columns)) {
    columns[name] = await unpackSqueezed(column, night.points.rows);
    column.data = ""; // the text is as large as the column
  }
  const map = new NightMap(byId("map"), night, new Ground(night), new Points(columns, night));
  const panel = new NightPanel(night, map);
  map.onPick = (i, scene) => {
    panel.showPicked(i, scene);
    const address = scene < 0 ? location.pathname + location.search : `#${encodeURIComponent(night.scenes[scene].id)}`;
    history.replaceState(null, "", address);
  };
  map.onHover = (i, px, py, over) => showTip(panel, i, px, py, over);
  map.onView = () => drawBar(map);
  map.onDrawn = (drawn) => showLegend(drawn);
  listen(map);
  drawBar(map);
  followLink(map, panel);
  addEventListener("hashchange", () => followLink(map, panel));
  window.scenesweep = { night, map, panel, points: map.boxes, ground: map.picture };
}

function showTip(panel, i, px, py, over) {
  const { map } = panel;
  const tip = byId("tip");
  const scene = over?.scene ?? -1;
  tip.hidden = scene < 0;
  if (scene >= 0) {
    const { label, score } = map.boxes.columns;
    const { id, date } = night.scenes[scene];
    tip.textContent =
      i >= 0
        ? `${night.classes[label[i]]} ≥ ${decimals(score[i] / 100, 2)}`
        : `${id} · ${plural(map.boxes.countOf(scene), "detection")}${panel.onMap}${date === "unknown" ? "" : ` · ${date}`}`;
    tip.style.left = `${Math.min(px + 14, map.width - tip.offsetWidth - 4)}px`;
    tip.style.top = `${py + 14 + tip.offsetHeight > map.height ? py - tip.offsetHeight - 8 : py + 14}px`;
  }
  if (!over) byId("cursor").textContent = "";
  else {
    const [lon, lat] = over.lonlat;
    byId("cursor").textContent = `lat ${lat.toFixed(5)}, lon ${(lon - 360 * Math.round(lon / 360)).toFixed(5)}`;
  }
}

/* What the map shows of the detections: boxes, or cells with the colours of a ramp. */
function showLegend({ kind, total, most }) {
  const key = byId("key");
  key.hidden = kind !== "density";
  if (kind !== "density") return;
  const text = `1 to ${integers.format(most)} detections per cell; ${integers.format(total)} in view`;
  if (key.textContent === text) return;
  const ramp = element("i", { className: "ramp" });
  ramp.style.setProperty("background", `linear-gradient(90deg, ${RAMP.join(", ")})`);
  key.replaceChildren(ramp, text);
}

/* The scale bar: the longest round length of at most 120 pixels on screen. */
function drawBar(map) {
  const per = map.metresPerPixel();
  const power = 10 ** Math.floor(Math.log10(per * 120));
  const length = [5, 2, 1].map((n) => n * power).find((n) => n <= per * 120) ?? power;
  byId("bar").hidden = false;
  byId("bar-length").textContent = length >= 1000 ? `${length / 1000} km` : `${Number(length.toPrecision(3))} m`;
  byId("bar-line").style.width = `${length / per}px`;
}

function listen(map) {
  const toggle = () => {
    map.boxesShown = !map.boxesShown;
    byId("hide").setAttribute("aria-pressed", String(map.boxesShown));
    map.requestDraw();
  };
  const fold = () => {
    const folded = document.body.classList.toggle("folded");
    byId("fold").setAttribute("aria-expanded", String(!folded));
  };
  const keys = {
    "+": () => map.zoom(1.5),
    "=": () => map.zoom(1.5),
    "-": () => map.zoom(1 / 1.5),
    "0": () => map.fit(),
    ArrowLeft: () => map.pan(-STRIDE_PX, 0),
    ArrowRight: () => map.pan(STRIDE_PX, 0),
    ArrowUp: () => map.pan(0, -STRIDE_PX),
    ArrowDown: () => map.pan(0, STRIDE_PX),
    Escape: () => map.pickScene(-1),
    b: toggle,
    p: fold,
    t: () => byId("theme").click(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const onMap = event.target === document.body || event.target === byId("map");
    const act = keys[event.key] ?? keys[event.key.toLowerCase()];
    if (!act || event.target.matches("input[type=search]") || (event.key.startsWith("Arrow") && !onMap)) return;
    event.preventDefault();
    act();
  });
  byId("zoom-in").addEventListener("click", () => map.zoom(1.5));
  byId("zoom-out").addEventListener("click", () => map.zoom(1 / 1.5));
  byId("fit").addEventListener("click", () => map.fit());
  byId("hide").addEventListener("click", toggle);
  byId("fold").addEventListener("click", fold);
}

/* The text after # in the address; "" if it is no valid text, for example "100%". */
function namedInLink() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

/* A link may name a scene: index.html#scene-id */
function followLink(map, panel) {
  const number = panel.numbers.get(namedInLink());
  if (number === undefined || number === map.pickedScene) return;
  map.pickScene(number);
  map.showScene(number);
}

showNight();
