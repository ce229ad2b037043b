/* The detections of all scenes on the map, in Z-order: which are shown, and how they are drawn.

   Where few are in view they are boxes or dots. Where many are, the map shows their density: cells
   of some pixels, coloured by the number of detections in each. */

const BLOCK = 256; // rows whose bounds are kept, so that rows out of view cost nothing
const CELL_PX = 7; // smallest side of a cell of density on screen
const MOST_BOXES = 20000; // more detections in view are shown as density
const CROWDED = 3; // so are detections of which a cell has more than this, on average
const FEW = 200; // fewer are never shown as density
const MANY_ROWS = 50000; // of more rows in view, whole cells are counted once and kept
const RAMP = ["#31436b", "#2b6a8a", "#1f918a", "#4fbf6b", "#b5dc36", "#fff27a"];

class Points {
  constructor(columns, { classes, palette, scenes, side_steps: steps }) {
    Object.assign(this, { columns, steps });
    this.colours = classes.map((_, label) => palette[label % palette.length]);
    this.packedColours = Uint32Array.from(this.colours, packedColour);
    this.axes = Float64Array.from(scenes.flatMap(({ axes }) => axes));
    this.enabled = new Uint8Array(classes.length).fill(1);
    this.scenesOn = new Uint8Array(scenes.length).fill(1);
    this.least = 0;
    this.low = 0; // the lowest score that the page lets users choose, in hundredths
    this.totals = scenes.map(({ detections }) => detections); // also those that are not on the map
    this.shown = new Uint8Array(this.length);
    this.cells = new Uint32Array(0);
    this.setUpBlocks();
    this.filter();
  }

  get length() {
    return this.columns.x.length;
  }

  setUpBlocks() {
    const { x, y } = this.columns;
    const blocks = Math.ceil(this.length / BLOCK);
    this.bounds = new Int32Array(4 * blocks);
    for (let block = 0; block < blocks; block++) {
      const bounds = [Infinity, Infinity, -Infinity, -Infinity];
      const end = Math.min((block + 1) * BLOCK, this.length);
      for (let i = block * BLOCK; i < end; i++) {
        if (x[i] < bounds[0]) bounds[0] = x[i];
        if (y[i] < bounds[1]) bounds[1] = y[i];
        if (x[i] > bounds[2]) bounds[2] = x[i];
        if (y[i] > bounds[3]) bounds[3] = y[i];
      }
      this.bounds.set(bounds, 4 * block);
    }
    this.reach = this.longestReach();
  }

  /* Half the diagonal of the largest box, in units of the map. */
  longestReach() {
    const { width, height, scene } = this.columns;
    let longest = 0;
    for (let i = 0; i < this.length; i++) {
      const [ax, ay, bx, by] = this.axes.subarray(4 * scene[i], 4 * scene[i] + 4);
      const across = Math.hypot(width[i] * ax, width[i] * ay) + Math.hypot(height[i] * bx, height[i] * by);
      if (across > longest) longest = across;
    }
    return longest / this.steps / 2;
  }

  /* Decide which are shown, and count them: by class (whether or not it is enabled) and by scene. */
  filter() {
    const { score, label, scene } = this.columns;
    const { shown, enabled, scenesOn, least } = this;
    this.byClass = new Uint32Array(enabled.length);
    this.byScene = new Uint32Array(scenesOn.length);
    this.total = 0;
    for (let i = 0; i < shown.length; i++) {
      const passes = score[i] >= least && scenesOn[scene[i]] === 1;
      const visible = passes && enabled[label[i]] === 1;
      shown[i] = visible ? 1 : 0;
      if (passes) this.byClass[label[i]]++;
      if (visible) this.byScene[scene[i]]++;
      if (visible) this.total++;
    }
    this.counted = new Map(); // cells by their size
  }

  get filtered() {
    return this.least > this.low || this.enabled.includes(0);
  }

  /* The number of a scene's detections: all, unless a filter of score or class is on. Then it is
     known only of those on the map. */
  countOf(scene) {
    if (this.scenesOn[scene] === 0) return 0;
    return this.filtered ? this.byScene[scene] : this.totals[scene];
  }

  /* Call `act` with the first and last row of each run of blocks that a rectangle touches. */
  eachRun(left, top, right, bottom, act) {
    const { bounds } = this;
    for (let b = 0; b < bounds.length; b += 4) {
      if (bounds[b] > right || bounds[b + 1] > bottom) continue;
      if (bounds[b + 2] < left || bounds[b + 3] < top) continue;
      const first = (b / 4) * BLOCK;
      act(first, Math.min(first + BLOCK, this.length));
    }
  }

  /* Draw into `pixels` (width x height, 0xAABBGGRR). The unit (left, top) of the map is at the
     corner, a unit is `scale` canvas pixels wide. Return what was drawn, for the legend. */
  draw(pixels, width, height, view) {
    const grid = this.grid(width, height, view);
    const crowded = grid.total > FEW && grid.total > CROWDED * grid.occupied;
    if (crowded || grid.total > MOST_BOXES) {
      const { most } = this.cellsOf(grid.bits);
      this.drawCells({ pixels, width, height }, view, grid, most);
      return { kind: "density", total: grid.total, most };
    }
    this.drawBoxes({ pixels, width, height }, view);
    return { kind: "boxes", total: grid.total };
  }

  /* Count the shown detections in view in cells of 2 ** bits units. */
  grid(width, height, { left, top, scale, density }) {
    const bits = Math.min(Math.max(Math.ceil(Math.log2((CELL_PX * density) / scale)), 0), 30);
    const cell = 2 ** bits;
    const [right, bottom] = [left + width / scale, top + height / scale];
    const [column, row] = [Math.floor(left / cell), Math.floor(top / cell)];
    const columns = Math.floor(right / cell) - column + 1;
    const rows = Math.floor(bottom / cell) - row + 1;
    if (this.cells.length < columns * rows) this.cells = new Uint32Array(columns * rows);
    this.cells.fill(0, 0, columns * rows);
    const grid = { bits, column, row, columns, rows, total: 0, occupied: 0 };
    let inView = 0;
    this.eachRun(left, top, right, bottom, (first, end) => (inView += end - first));
    if (inView > MANY_ROWS) this.addCells(grid);
    else this.eachRun(left, top, right, bottom, (first, end) => this.addRows(grid, first, end));
    return grid;
  }

  addRows(grid, first, end) {
    const { bits, column, row, columns, rows } = grid;
    const { x, y } = this.columns;
    const { shown, cells } = this;
    for (let i = first; i < end; i++) {
      if (shown[i] === 0) continue;
      const c = (x[i] >> bits) - column;
      const r = (y[i] >> bits) - row;
      if (c < 0 || r < 0 || c >= columns || r >= rows) continue;
      grid.total++;
      if (cells[r * columns + c]++ === 0) grid.occupied++;
    }
  }

  addCells(grid) {
    const { column, row, columns, rows } = grid;
    const { cells } = this.cellsOf(grid.bits);
    for (let k = 0; k < cells.length; k += 3) {
      const c = cells[k] - column;
      const r = cells[k + 1] - row;
      if (c < 0 || r < 0 || c >= columns || r >= rows) continue;
      grid.total += cells[k + 2];
      grid.occupied++;
      this.cells[r * columns + c] = cells[k + 2];
    }
  }

  /* All cells of 2 ** bits units with shown detections: column, row and number in turn; and the
     largest number, so that colours do not change when the map moves. The detections of a cell
     follow each other in Z-order. They are counted again when the filter changes. */
  cellsOf(bits) {
    if (this.counted.has(bits)) return this.counted.get(bits);
    const { x, y } = this.columns;
    const { shown, length } = this;
    const cells = [];
    let most = 1;
    for (let i = 0; i < length; ) {
      const [column, row] = [x[i] >> bits, y[i] >> bits];
      let count = 0;
      for (; i < length && x[i] >> bits === column && y[i] >> bits === row; i++) count += shown[i];
      if (count) cells.push(column, row, count);
      if (count > most) most = count;
    }
    const counted = { cells: Int32Array.from(cells), most };
    this.counted.set(bits, counted);
    return counted;
  }

  drawCells(canvas, { left, top, scale }, { bits, column, row, columns, rows }, most) {
    const side = 2 ** bits * scale;
    const colours = Uint32Array.from({ length: 64 }, (_, step) => packedColour(rampColour(step / 63)));
    const full = Math.log(Math.max(most, 2));
    for (let r = 0; r < rows; r++) {
      const y = (row + r) * side - top * scale;
      for (let c = 0; c < columns; c++) {
        const count = this.cells[r * columns + c];
        if (count === 0) continue;
        const x = (column + c) * side - left * scale;
        const colour = colours[Math.round((Math.log(count) / full) * 63)];
        fill(canvas, x, y, x + side, y + side, colour);
      }
    }
  }

  drawBoxes(canvas, view) {
    const { left, top, scale, density } = view;
    const { x, y, label } = this.columns;
    const [right, bottom] = [left + canvas.width / scale, top + canvas.height / scale];
    const dot = Math.max(3, Math.round(2.6 * density));
    const corners = new Float64Array(8);
    const { reach } = this;
    this.eachRun(left - reach, top - reach, right + reach, bottom + reach, (first, end) => {
      for (let i = first; i < end; i++) {
        if (this.shown[i] === 0) continue;
        const [px, py] = [(x[i] - left) * scale, (y[i] - top) * scale];
        const colour = this.packedColours[label[i]];
        if (this.corners(i, corners) * scale < DOT_PX * density) {
          fill(canvas, px - dot / 2, py - dot / 2, px + dot / 2, py + dot / 2, colour);
        } else {
          quadrangle(canvas, corners, px, py, scale, density >= 1.5 ? 2 : 1, colour);
        }
      }
    });
  }

  /* Write the four corners of a box, relative to its centre, and return its longer side. */
  corners(i, into) {
    const { width, height, scene } = this.columns;
    const at = 4 * scene[i];
    const [w, h] = [width[i] / this.steps / 2, height[i] / this.steps / 2];
    const [ax, ay] = [this.axes[at] * w, this.axes[at + 1] * w];
    const [bx, by] = [this.axes[at + 2] * h, this.axes[at + 3] * h];
    into[0] = -ax - bx;
    into[1] = -ay - by;
    into[2] = ax - bx;
    into[3] = ay - by;
    into[4] = ax + bx;
    into[5] = ay + by;
    into[6] = bx - ax;
    into[7] = by - ay;
    return 2 * Math.max(Math.hypot(ax, ay), Math.hypot(bx, by));
  }

  /* Shown detections whose box, widened by `margin` units, contains a point; the smallest first. */
  at(px, py, margin) {
    const reach = this.reach + margin;
    const hits = [];
    this.eachRun(px - reach, py - reach, px + reach, py + reach, (first, end) => {
      for (let i = first; i < end; i++) {
        if (this.shown[i] && this.contains(i, px, py, margin)) hits.push(i);
      }
    });
    const area = (i) => this.columns.width[i] * this.columns.height[i];
    return hits.sort((i, j) => area(i) - area(j) || i - j);
  }

  contains(i, px, py, margin) {
    const { x, y, width, height, scene } = this.columns;
    const [ax, ay, bx, by] = this.axes.subarray(4 * scene[i], 4 * scene[i] + 4);
    const [dx, dy] = [px - x[i], py - y[i]];
    const turn = ax * by - ay * bx;
    const u = Math.abs((dx * by - dy * bx) / turn); // columns and rows of the scene
    const v = Math.abs((dy * ax - dx * ay) / turn);
    return (
      u <= width[i] / this.steps / 2 + margin / Math.hypot(ax, ay) &&
      v <= height[i] / this.steps / 2 + margin / Math.hypot(bx, by)
    );
  }
}

/* The colour of a share from 0 to 1. */
function rampColour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
  const first = Math.min(Math.floor(at), RAMP.length - 2);
  const [low, high] = [first, first + 1].map((k) =>
    [1, 3, 5].map((digit) => parseInt(RAMP[k].slice(digit, digit + 2), 16)),
  );
  const mixed = low.map((value, k) => Math.round(value + (high[k] - value) * (at - first)));
  return `#${mixed.map((value) => value.toString(16).padStart(2, "0")).join("")}`;
}

/* Draw the sides of a quadrangle whose corners are relative to the pixel (px, py). */
function quadrangle(canvas, corners, px, py, scale, line, colour) {
  for (let k = 0; k < 8; k += 2) {
    const next = (k + 2) % 8;
    stroke(
      canvas,
      px + corners[k] * scale,
      py + corners[k + 1] * scale,
      px + corners[next] * scale,
      py + corners[next + 1] * scale,
      line,
      colour,
    );
  }
}

/* Draw a line of `line` pixels, pixel by pixel along its longer direction, inside the canvas. */
function stroke(canvas, x0, y0, x1, y1, line, colour) {
  const steps = Math.max(Math.abs(x1 - x0), Math.abs(y1 - y0), 1);
  const [dx, dy] = [(x1 - x0) / steps, (y1 - y0) / steps];
  const [first, last] = inside(canvas, x0, y0, dx, dy, steps);
  for (let k = first; k <= last; k++) {
    const x = rounded(x0 + k * dx);
    const y = rounded(y0 + k * dy);
    fill(canvas, x, y, x + line, y + line, colour);
  }
}

/* The first and last step of a line that is inside the canvas. */
function inside({ width, height }, x0, y0, dx, dy, steps) {
  let [first, last] = [0, steps];
  for (const [at, by, size] of [[x0, dx, width], [y0, dy, height]]) {
    if (Math.abs(by) < 1e-9) {
      if (at < -4 || at > size + 4) return [1, 0];
      continue;
    }
    const [one, other] = [(-4 - at) / by, (size + 4 - at) / by];
    first = Math.max(first, Math.ceil(Math.min(one, other)));
    last = Math.min(last, Math.floor(Math.max(one, other)));
  }
  return [first, last];
}
