/* Draw a chip with its boxes, and say which box is under the pointer. */

const COLOURS = { [UNDECIDED]: "#ffd60a", [ACCEPTED]: "#00e05a", [REJECTED]: "#ff3b30" };
const EDGE_PX = 6;

class ChipView {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.boxesShown = true;
    this.image = null;
  }

  /* Load the picture of a chip; the promise is kept when it is drawn. */
  async show(chip) {
    this.chip = chip;
    const image = new Image();
    image.src = `data:image/webp;base64,${chip.picture}`;
    await image.decode();
    if (this.chip === chip) this.image = image;
  }

  draw(boxes, picked) {
    const { canvas, context, chip } = this;
    if (!chip) return;
    const room = canvas.parentElement;
    const density = devicePixelRatio || 1;
    this.scale = Math.max(1, Math.min(room.clientWidth / chip.width, room.clientHeight / chip.height) * 0.96);
    canvas.width = Math.round(chip.width * this.scale * density);
    canvas.height = Math.round(chip.height * this.scale * density);
    canvas.style.width = `${chip.width * this.scale}px`;
    canvas.style.height = `${chip.height * this.scale}px`;
    context.setTransform(this.scale * density, 0, 0, this.scale * density, 0, 0);
    context.imageSmoothingEnabled = false;
    if (this.image) context.drawImage(this.image, 0, 0, chip.width, chip.height);
    if (!this.boxesShown) return;
    for (const box of boxes) if (box !== picked) this.outline(box, 2);
    if (picked) this.outline(picked, 4);
  }

  outline(box, width) {
    const { context, scale } = this;
    const [x, y, w, h] = this.onChip(box);
    const lines = [
      ["#000c", width + 2],
      [width > 2 ? "#fff" : COLOURS[box.decision], width],
      ...(width > 2 ? [[COLOURS[box.decision], 2]] : []),
    ];
    context.setLineDash(box.decision === REJECTED ? [6 / scale, 4 / scale] : []);
    for (const [colour, thickness] of lines) {
      context.strokeStyle = colour;
      context.lineWidth = thickness / scale;
      context.strokeRect(x, y, w, h);
    }
    context.setLineDash([]);
  }

  onChip({ xyxy: [x0, y0, x1, y1] }) {
    return [x0 - this.chip.left, y0 - this.chip.top, x1 - x0, y1 - y0];
  }

  /* The position of a pointer in pixels of the scene's grid. */
  at(event) {
    const frame = this.canvas.getBoundingClientRect();
    return [
      (event.clientX - frame.left) / this.scale + this.chip.left,
      (event.clientY - frame.top) / this.scale + this.chip.top,
    ];
  }

  /* The smallest box at a point. */
  boxAt(boxes, [x, y]) {
    const edge = EDGE_PX / this.scale;
    const area = ({ xyxy: [x0, y0, x1, y1] }) => (x1 - x0) * (y1 - y0);
    const inside = ({ xyxy: [x0, y0, x1, y1] }) =>
      x >= x0 - edge && x <= x1 + edge && y >= y0 - edge && y <= y1 + edge;
    return boxes.filter(inside).sort((a, b) => area(a) - area(b))[0] ?? null;
  }

  /* Which sides of a box a pointer drags: those that it is near, or all four. */
  sidesAt({ xyxy: [x0, y0, x1, y1] }, [x, y]) {
    const edge = EDGE_PX / this.scale;
    const near = [x0 - x, y0 - y, x1 - x, y1 - y].map((gap) => Math.abs(gap) <= edge);
    return near.some(Boolean) ? near : [true, true, true, true];
  }
}
