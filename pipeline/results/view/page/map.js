/* The map: which part of the scene is visible, and how mouse, touch and keys move it. */

const WIDEST = 0.5; // smallest scale, relative to the scale at which the scene fits
const CLOSEST = 48; // largest scale, in screen pixels per scene pixel
const CLICK_PX = 4;
const SHOWN_PX = 72; // smallest side of a box after the map moved to it

class SceneMap {
  constructor(element, scene, picture, boxes) {
    Object.assign(this, { element, scene, picture, boxes });
    this.base = element.querySelector("#picture").getContext("2d");
    this.overlay = element.querySelector("#boxes").getContext("2d");
    this.x = scene.width / 2;
    this.y = scene.height / 2;
    this.scale = 1; // screen pixels per scene pixel
    this.picked = -1;
    this.boxesShown = true;
    this.pointers = new Map();
    this.onPick = this.onHover = this.onView = () => {};
    this.listen();
    new ResizeObserver(() => this.resize()).observe(element);
    this.resize();
    this.fit();
  }

  resize() {
    const { clientWidth, clientHeight } = this.element;
    if (!clientWidth || !clientHeight) return;
    const wasFit = this.width && Math.abs(this.scale / this.fitScale() - 1) < 0.01;
    this.density = window.devicePixelRatio || 1;
    this.width = clientWidth;
    this.height = clientHeight;
    for (const { canvas } of [this.base, this.overlay]) {
      canvas.width = Math.round(clientWidth * this.density);
      canvas.height = Math.round(clientHeight * this.density);
    }
    this.image = this.overlay.createImageData(this.overlay.canvas.width, this.overlay.canvas.height);
    this.pixels = new Uint32Array(this.image.data.buffer);
    if (wasFit) this.fit();
    this.move();
    this.render(); // immediately: resizing empties a canvas
  }

  fitScale() {
    return Math.min(this.width / this.scene.width, this.height / this.scene.height) * 0.96;
  }

  fit() {
    this.x = this.scene.width / 2;
    this.y = this.scene.height / 2;
    this.scale = this.fitScale();
    this.move();
  }

  /* Keep the centre of the view inside the scene and the scale within limits, and draw. */
  move() {
    const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
    this.scale = this.limited(this.scale);
    this.x = clamp(this.x, 0, this.scene.width);
    this.y = clamp(this.y, 0, this.scene.height);
    this.onView();
    this.requestDraw();
  }

  /* A scale within the limits. */
  limited(scale) {
    const fit = this.fitScale();
    return Math.min(Math.max(scale, Math.min(fit * WIDEST, 1)), Math.max(this.closest, fit));
  }

  /* The largest scale. */
  get closest() {
    return CLOSEST;
  }

  pan(dx, dy) {
    this.x += dx / this.scale;
    this.y += dy / this.scale;
    this.move();
  }

  /* Zoom by a factor; the point of the scene under (px, py) of the map stays in place. */
  zoom(factor, px = this.width / 2, py = this.height / 2) {
    const [x, y] = this.toScene(px, py);
    this.scale = this.limited(this.scale * factor);
    this.x = x - (px - this.width / 2) / this.scale;
    this.y = y - (py - this.height / 2) / this.scale;
    this.move();
  }

  toScene(px, py) {
    return [
      this.x + (px - this.width / 2) / this.scale,
      this.y + (py - this.height / 2) / this.scale,
    ];
  }

  /* Move the map to a detection, at a scale at which it is visible. */
  show(i) {
    const [x, y] = this.boxes.centre(i);
    const { xyxy } = this.boxes.columns;
    const side = Math.max(xyxy[4 * i + 2] - xyxy[4 * i], xyxy[4 * i + 3] - xyxy[4 * i + 1], 1);
    const most = (0.6 * Math.min(this.width, this.height)) / side;
    this.scale = Math.min(Math.max(this.scale, Math.min(SHOWN_PX / side, 12)), most);
    this.x = x;
    this.y = y;
    this.move();
  }

  requestDraw() {
    if (this.due) return;
    this.due = true;
    requestAnimationFrame(() => this.render());
  }

  render() {
    this.due = false;
    const scale = this.scale * this.density;
    const { width, height } = this.base.canvas;
    const view = {
      width: this.scene.width,
      left: this.x - width / 2 / scale,
      top: this.y - height / 2 / scale,
      scale,
      density: this.density,
    };
    this.base.clearRect(0, 0, width, height);
    if (this.picture.levels.length) this.picture.draw(this.base, view);
    else this.drawExtent(view);
    this.pixels.fill(0);
    if (this.boxesShown) this.boxes.draw(this.pixels, width, height, view);
    this.overlay.putImageData(this.image, 0, 0);
    if (this.scene.area.length) this.drawArea(view);
    if (this.picked >= 0) this.drawPicked(view);
  }

  /* Draw the scene's extent when there is no picture. */
  drawExtent({ left, top, scale }) {
    this.base.fillStyle = "#6b7280";
    const { width, height } = this.scene;
    this.base.fillRect(-left * scale, -top * scale, width * scale, height * scale);
  }

  /* Draw the area of interest, rings in scene pixels. Outside it nothing was detected. */
  drawArea({ left, top, scale, density }) {
    const rings = new Path2D();
    for (const ring of this.scene.area) {
      const [[x0, y0], ...rest] = ring.map(([x, y]) => [(x - left) * scale, (y - top) * scale]);
      rings.moveTo(x0, y0);
      for (const [x, y] of rest) rings.lineTo(x, y);
      rings.closePath();
    }
    for (const [colour, line] of [["#000a", 4], ["#ffd166", 2]]) {
      this.overlay.strokeStyle = colour;
      this.overlay.lineWidth = line * density;
      this.overlay.stroke(rings);
    }
  }

  drawPicked({ left, top, scale, density }) {
    const { xyxy } = this.boxes.columns;
    const [x0, y0, x1, y1] = [0, 1, 2, 3].map((k) =>
      Math.round((xyxy[4 * this.picked + k] - (k % 2 ? top : left)) * scale),
    );
    const gap = 4 * density;
    const box = [x0 - gap, y0 - gap, x1 - x0 + 2 * gap, y1 - y0 + 2 * gap];
    for (const [colour, line] of [["#000c", 5], ["#fff", 2.5]]) {
      this.overlay.strokeStyle = colour;
      this.overlay.lineWidth = line * density;
      this.overlay.beginPath();
      this.overlay.roundRect(...box, 3 * density);
      this.overlay.stroke();
    }
  }

  pick(i) {
    this.picked = i;
    this.onPick(i);
    this.requestDraw();
  }

  /* Select the detection at a point; a second click there selects the next one. */
  pickAt(px, py) {
    const [x, y] = this.toScene(px, py);
    const hits = this.boxesShown ? this.boxes.at(x, y, CLICK_PX / this.scale) : [];
    const at = hits.indexOf(this.picked);
    this.pick(hits.length ? hits[(at + 1) % hits.length] : -1);
  }

  listen() {
    const on = (kind, handle) =>
      this.element.addEventListener(kind, handle, { passive: false });
    on("wheel", (event) => this.wheel(event));
    on("pointerdown", (event) => this.press(event));
    on("pointermove", (event) => this.drag(event));
    on("pointerup", (event) => this.release(event, true));
    on("pointercancel", (event) => this.release(event, false));
    on("pointerleave", () => this.onHover(-1));
    on("dblclick", (event) => {
      if (this.isOwn(event)) this.zoom(2, ...this.position(event));
    });
  }

  /* Buttons lie over the map, and their events are not for the map. */
  isOwn(event) {
    return !event.target.closest("button");
  }

  position(event) {
    const bounds = this.element.getBoundingClientRect();
    return [event.clientX - bounds.left, event.clientY - bounds.top];
  }

  wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 18 : event.deltaMode === 2 ? this.height : 1;
    const turn = Math.min(Math.max(event.deltaY * lines, -240), 240);
    // Browsers report a pinch on a touchpad as a wheel with ctrl, in smaller steps.
    this.zoom(Math.exp(-turn * (event.ctrlKey ? 0.01 : 0.0022)), ...this.position(event));
  }

  press(event) {
    if (event.button || !this.isOwn(event)) return;
    this.element.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.position(event));
    this.moved = this.pointers.size > 1 ? Infinity : 0;
  }

  drag(event) {
    const [px, py] = this.position(event);
    const before = this.pointers.get(event.pointerId);
    if (!before) {
      if (event.pointerType === "mouse") this.hover(event, px, py);
      return;
    }
    if (this.pointers.size === 2) {
      const [other] = [...this.pointers].filter(([id]) => id !== event.pointerId);
      const apart = ([x, y]) => Math.hypot(x - other[1][0], y - other[1][1]);
      this.zoom(apart([px, py]) / Math.max(apart(before), 1), (px + other[1][0]) / 2, (py + other[1][1]) / 2);
      this.pan((before[0] - px) / 2, (before[1] - py) / 2);
    } else {
      this.moved += Math.hypot(px - before[0], py - before[1]);
      if (this.moved > CLICK_PX) {
        this.element.classList.add("dragging");
        this.onHover(-1);
        this.pan(before[0] - px, before[1] - py);
      }
    }
    this.pointers.set(event.pointerId, [px, py]);
  }

  release(event, ended) {
    if (!this.pointers.delete(event.pointerId)) return;
    this.element.classList.remove("dragging");
    if (ended && this.moved <= CLICK_PX) this.pickAt(...this.position(event));
  }

  hover(event, px, py) {
    const own = this.isOwn(event);
    const [x, y] = this.toScene(px, py);
    const hits = own && this.boxesShown ? this.boxes.at(x, y, CLICK_PX / 2 / this.scale) : [];
    this.element.classList.toggle("over", hits.length > 0);
    // Over the selected box, the tip names it and not a smaller box inside it.
    const named = hits.includes(this.picked) ? this.picked : (hits[0] ?? -1);
    this.onHover(named, px, py, own ? [x, y] : null);
  }
}
