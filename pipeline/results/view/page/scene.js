/* The page of a scene: creates the map and the panel from the page's data. */

const data = JSON.parse(byId("data").textContent);
byId("data").remove();
if (data.scene.lattice) data.scene.lattice = unpackColumn(data.scene.lattice);
data.colours = data.classes.map((_, label) => data.palette[label % data.palette.length]);

const boxes = new Boxes(unpack(data.columns), data.colours);
const picture = new Picture(data.levels, () => map.requestDraw());
const map = new SceneMap(byId("map"), data.scene, picture, boxes);
const panel = new Panel(data, map);

map.onPick = (i) => {
  panel.showPicked(i);
  if (i >= 0) panel.showMessage("");
  history.replaceState(null, "", i < 0 ? location.pathname + location.search : `#${idOf(boxes.columns, i)}`);
};
map.onHover = (i, px, py, at) => {
  const tip = byId("tip");
  tip.hidden = i < 0;
  if (i >= 0) {
    tip.textContent = `${data.classes[boxes.columns.label[i]]} ${decimals(boxes.columns.score[i], 2)}`;
    tip.style.left = `${Math.min(px + 14, map.width - tip.offsetWidth - 4)}px`;
    tip.style.top = `${py + 14 + tip.offsetHeight > map.height ? py - tip.offsetHeight - 8 : py + 14}px`;
  }
  const [x, y] = at ?? [-1, -1];
  const inside = x >= 0 && y >= 0 && x < data.scene.width && y < data.scene.height;
  byId("cursor").textContent = inside ? cursorText(x, y) : "";
};
map.onView = () => drawBar();
drawBar();

function cursorText(x, y) {
  const lonlat = lonLatAt(data.scene, x, y);
  const degrees = lonlat ? `lat ${lonlat[1].toFixed(5)}, lon ${lonlat[0].toFixed(5)} · ` : "";
  return `${degrees}column ${Math.floor(x)}, row ${Math.floor(y)}`;
}

/* The scale bar: the longest round length of at most 120 pixels on screen. */
function drawBar() {
  const per = (data.scene.gsd_m ?? 1) / map.scale;
  const power = 10 ** Math.floor(Math.log10(per * 120));
  const length = [5, 2, 1].map((n) => n * power).find((n) => n <= per * 120) ?? power;
  const metres = length >= 1000 ? `${length / 1000} km` : `${Number(length.toPrecision(3))} m`;
  byId("bar").hidden = false;
  byId("bar-length").textContent = data.scene.gsd_m ? metres : `${Number(length.toPrecision(3))} px`;
  byId("bar-line").style.width = `${length / per}px`;
}

function toggleBoxes() {
  map.boxesShown = !map.boxesShown;
  byId("hide").setAttribute("aria-pressed", String(map.boxesShown));
  map.requestDraw();
}

function foldPanel() {
  const folded = document.body.classList.toggle("folded");
  byId("fold").setAttribute("aria-expanded", String(!folded));
}

const STRIDE_PX = 80;
const KEYS = {
  "+": () => map.zoom(1.5),
  "=": () => map.zoom(1.5),
  "-": () => map.zoom(1 / 1.5),
  "0": () => map.fit(),
  ArrowLeft: () => map.pan(-STRIDE_PX, 0),
  ArrowRight: () => map.pan(STRIDE_PX, 0),
  ArrowUp: () => map.pan(0, -STRIDE_PX),
  ArrowDown: () => map.pan(0, STRIDE_PX),
  "[": () => panel.step(1),
  "]": () => panel.step(-1),
  Enter: () => map.pick(boxes.nearest(map.x, map.y)),
  Escape: () => map.pick(-1),
  b: toggleBoxes,
  p: foldPanel,
  t: () => byId("theme").click(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const onMap = event.target === document.body || event.target === byId("map");
  const moves = event.key.startsWith("Arrow") || event.key === "Enter";
  const act = KEYS[event.key] ?? KEYS[event.key.toLowerCase()];
  // Sliders, buttons and links handle these keys themselves.
  if (!act || (moves && !onMap)) return;
  event.preventDefault();
  act();
});

setUpTheme(byId("theme"), () => panel.drawHistogram());
byId("zoom-in").addEventListener("click", () => map.zoom(1.5));
byId("zoom-out").addEventListener("click", () => map.zoom(1 / 1.5));
byId("fit").addEventListener("click", () => map.fit());
byId("hide").addEventListener("click", toggleBoxes);
byId("fold").addEventListener("click", foldPanel);

/* A link may name a detection, scene.html#0123456789abcdef, or its latitude and longitude,
   scene.html#at=34.112,-117.76 */
function followLink() {
  const id = location.hash.slice(1);
  const at = /^at=(-?[\d.]+),(-?[\d.]+)$/.exec(id);
  const i = at ? indexOfPoint(boxes.columns, Number(at[2]), Number(at[1])) : indexOfId(boxes.columns, id);
  const unknown = id && i < 0;
  panel.showMessage(unknown ? `This page has no detection ${id.slice(0, 40)}, which its address names.` : "");
  if (i < 0) return;
  map.pick(i);
  map.show(i);
}
addEventListener("hashchange", followLink);
followLink();

window.scenesweep = { data, boxes, map, panel, picture, firstAtLeast, idOf, lonLat };
