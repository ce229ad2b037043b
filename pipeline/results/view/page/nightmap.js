/* The map of all scenes: moves as the map of a scene does, and draws ground and detections. */

const CLOSEST_UNIT = 1.5; // largest scale, in screen pixels per unit: 40 pixels a metre
const EARTH_M = 40075016.686; // length of the equator in web Mercator
const GRATICULE = "#ffffff1c";
const BACKGROUND = "#10161c"; // dark in both themes: the colours of classes are for imagery
const LINES_PX = 160; // distance of the graticule's lines, about
const NICE = [90, 45, 30, 15, 10, 5, 2, 1];

class NightMap extends SceneMap {
  constructor(element, night, ground, points) {
    const [left, top, right, bottom] = night.bounds;
    super(element, { width: right - left, height: bottom - top, area: [] }, ground, points);
    Object.assign(this, { night, left, top, names: night.scenes.map(({ id }) => id) });
    this.pickedScene = -1;
    this.onPick = () => {};
    this.onDrawn = () => {};
    this.requestDraw();
  }

  get closest() {
    return CLOSEST_UNIT;
  }

  render() {
    this.due = false;
    if (!this.night) return; // the map is not set up yet
    const scale = this.scale * this.density;
    const { width, height } = this.base.canvas;
    const view = {
      left: this.left + this.x - width / 2 / scale,
      top: this.top + this.y - height / 2 / scale,
      scale,
      density: this.density,
    };
    this.base.fillStyle = BACKGROUND;
    this.base.fillRect(0, 0, width, height);
    this.drawGraticule(view);
    this.picture.draw(this.base, view, this.names);
    this.pixels.fill(0);
    this.drawn = this.boxesShown ? this.boxes.draw(this.pixels, width, height, view) : { kind: "none" };
    this.overlay.putImageData(this.image, 0, 0);
    if (this.pickedScene >= 0) this.picture.drawSelected(this.overlay, this.pickedScene, view);
    if (this.picked >= 0) this.drawPicked(view);
    this.onDrawn(this.drawn);
  }

  drawPicked({ left, top, scale, density }) {
    const { x, y } = this.boxes.columns;
    const corners = new Float64Array(8);
    this.boxes.corners(this.picked, corners);
    const [px, py] = [(x[this.picked] - left) * scale, (y[this.picked] - top) * scale];
    const path = new Path2D();
    for (let k = 0; k < 8; k += 2) {
      const stretched = Math.hypot(corners[k], corners[k + 1]) * scale;
      const by = scale * (1 + (6 * density) / Math.max(stretched, 1));
      path.lineTo(px + corners[k] * by, py + corners[k + 1] * by);
    }
    path.closePath();
    for (const [colour, line] of [["#000c", 5], ["#fff", 2.5]]) {
      this.overlay.strokeStyle = colour;
      this.overlay.lineWidth = line * density;
      this.overlay.stroke(path);
    }
  }

  drawGraticule({ left, top, scale, density }) {
    const { base } = this;
    const { width, height } = base.canvas;
    const degrees = (LINES_PX * density * 360) / 2 ** this.night.bits / scale;
    const step = niceStep(degrees);
    const [west, north] = this.lonLat(left, top);
    const [east, south] = this.lonLat(left + width / scale, top + height / scale);
    base.strokeStyle = GRATICULE;
    base.fillStyle = "#ffffff8c";
    base.lineWidth = 1;
    base.font = `${11 * density}px system-ui, sans-serif`;
    base.textBaseline = "bottom";
    base.beginPath();
    for (let lon = Math.ceil(west / step) * step; lon <= east; lon += step) {
      const x = Math.round((this.unitsOf(lon, 0)[0] - left) * scale) + 0.5;
      base.moveTo(x, 0);
      base.lineTo(x, height);
      base.fillText(degreesText(lon - 360 * Math.round(lon / 360), step, "E", "W"), x + 3 * density, 14 * density);
    }
    for (let lat = Math.ceil(south / step) * step; lat <= north; lat += step) {
      const y = Math.round((this.unitsOf(0, lat)[1] - top) * scale) + 0.5;
      base.moveTo(0, y);
      base.lineTo(width, y);
      base.fillText(degreesText(lat, step, "N", "S"), 60 * density, y - 2 * density);
    }
    base.stroke();
  }

  /* Longitude (east of the map's left edge, so perhaps above 180) and latitude of units. */
  lonLat(x, y) {
    const units = 2 ** this.night.bits;
    const lat = (Math.atan(Math.sinh(Math.PI * (1 - (2 * y) / units))) * 180) / Math.PI;
    return [this.night.west + (x / units) * 360, lat];
  }

  unitsOf(lon, lat) {
    const units = 2 ** this.night.bits;
    const y = 0.5 - Math.asinh(Math.tan((lat * Math.PI) / 180)) / (2 * Math.PI);
    return [((lon - this.night.west) / 360) * units, y * units];
  }

  /* Metres of a screen pixel at the middle of the map. */
  metresPerPixel() {
    const [, lat] = this.lonLat(this.left + this.x, this.top + this.y);
    return (EARTH_M / 2 ** this.night.bits / this.scale) * Math.cos((lat * Math.PI) / 180);
  }

  /* Select the detection or scene at a point; a second click there selects the next one. */
  pickAt(px, py) {
    const [x, y] = this.toMap(px, py);
    const next = (hits, picked) => hits[(hits.indexOf(picked) + 1) % hits.length];
    const hits = this.detectionsAt(x, y, CLICK_PX);
    if (hits.length) return this.pick(next(hits, this.picked));
    const scenes = this.picture.at(x, y, CLICK_PX / this.scale);
    return this.pickScene(scenes.length ? next(scenes, this.pickedScene) : -1);
  }

  pick(i) {
    this.picked = i;
    this.pickedScene = i < 0 ? -1 : this.boxes.columns.scene[i];
    this.onPick(i, this.pickedScene);
    this.requestDraw();
  }

  pickScene(number) {
    this.picked = -1;
    this.pickedScene = number;
    this.onPick(-1, number);
    this.requestDraw();
  }

  /* Move the map to a scene. */
  showScene(number) {
    const [left, top, right, bottom] = this.picture.scenes[number].bounds;
    this.scale = this.limited(Math.min(this.width / (right - left), this.height / (bottom - top)) * 0.85);
    this.x = (left + right) / 2 - this.left;
    this.y = (top + bottom) / 2 - this.top;
    this.move();
  }

  hover(event, px, py) {
    if (!this.isOwn(event)) return this.onHover(-1);
    const [x, y] = this.toMap(px, py);
    const [i = -1] = this.detectionsAt(x, y, CLICK_PX / 2);
    const [scene = -1] = i < 0 ? this.picture.at(x, y, CLICK_PX / this.scale) : [this.boxes.columns.scene[i]];
    this.element.classList.toggle("over", scene >= 0);
    return this.onHover(i, px, py, { lonlat: this.lonLat(x, y), scene });
  }

  /* Detections at units of the map; none where the map shows density. */
  detectionsAt(x, y, reachPx) {
    return this.drawn?.kind === "boxes" ? this.boxes.at(x, y, reachPx / this.scale) : [];
  }

  toMap(px, py) {
    const [x, y] = this.toScene(px, py);
    return [x + this.left, y + this.top];
  }
}

/* The next larger round number of degrees. */
function niceStep(degrees) {
  if (degrees >= 1) return NICE.findLast((nice) => nice >= degrees) ?? NICE[0];
  const power = 10 ** Math.ceil(Math.log10(degrees));
  return [0.2, 0.5, 1].map((part) => part * power).find((nice) => nice >= degrees) ?? power;
}

function degreesText(value, step, positive, negative) {
  const digits = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));
  const letter = Math.abs(value) < step / 2 ? "" : value > 0 ? positive : negative;
  return `${Math.abs(value).toFixed(digits)}° ${letter}`;
}
