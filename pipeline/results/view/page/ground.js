/* The ground of the scenes: outlines, and what of them was observed. */

const SMALL_PX = 5; // smaller scenes are squares of this size
const DETAIL_PX = 40; // smaller scenes are shown without the parts that were not observed
const SIDE_POINTS = 16; // of an outline's side, which is curved on the map
const LABEL_PX = 110; // wider scenes have their name
const MOST_LABELS = 60;

class Ground {
  constructor(night) {
    this.vertices = unpackColumn(night.vertices);
    this.scenes = [];
    const lengths = unpackColumn(night.rings);
    const counts = unpackColumn(night.rings_of);
    let [at, ring] = [0, 0];
    counts.forEach((count) => {
      const rings = [];
      for (const end = ring + count; ring < end; ring++) {
        rings.push(this.vertices.subarray(2 * at, 2 * (at + lengths[ring])));
        at += lengths[ring];
      }
      const [outline, ...observed] = rings;
      this.scenes.push({ outline, observed, bounds: boundsOf(outline), shown: true, colour: RAMP[0] });
    });
  }

  /* Scenes that contain a point, or whose square on screen is within `margin` units of it; the
     smallest first. */
  at(x, y, margin) {
    const hits = [];
    this.scenes.forEach(({ outline, bounds: [left, top, right, bottom], shown }, number) => {
      if (!shown || x < left - margin || x > right + margin || y < top - margin || y > bottom + margin) return;
      const small = Math.max(right - left, bottom - top) < 2 * margin;
      if (small || isInside(outline, x, y)) hits.push(number);
    });
    const area = (number) => {
      const [left, top, right, bottom] = this.scenes[number].bounds;
      return (right - left) * (bottom - top);
    };
    return hits.sort((a, b) => area(a) - area(b) || a - b);
  }

  draw(context, view, names) {
    const { left, top, scale, density } = view;
    const [right, bottom] = [left + context.canvas.width / scale, top + context.canvas.height / scale];
    const groups = new Map(); // paths of small scenes by colour: few calls draw all of them
    const labels = [];
    this.scenes.forEach((scene, number) => {
      const { bounds, colour, shown } = scene;
      if (!shown || bounds[0] > right || bounds[1] > bottom || bounds[2] < left || bounds[3] < top) return;
      const size = (Math.max(bounds[2] - bounds[0], bounds[3] - bounds[1]) * scale) / density;
      if (!groups.has(colour)) groups.set(colour, { squares: new Path2D(), areas: new Path2D() });
      const group = groups.get(colour);
      if (size < SMALL_PX) this.addSquare(group.squares, bounds, view);
      else if (size < DETAIL_PX) addRing(group.areas, scene.outline, view, SIDE_POINTS);
      else this.drawScene(context, scene, view);
      if (((bounds[2] - bounds[0]) * scale) / density > LABEL_PX) labels.push([names[number], bounds]);
    });
    for (const [colour, { squares, areas }] of groups) {
      context.fillStyle = colour;
      context.fill(squares);
      this.paint(context, areas, areas, colour, density, "nonzero");
    }
    if (labels.length <= MOST_LABELS) drawLabels(context, labels, view);
  }

  addSquare(path, bounds, { left, top, scale, density }) {
    const side = SMALL_PX * density;
    const x = ((bounds[0] + bounds[2]) / 2 - left) * scale;
    const y = ((bounds[1] + bounds[3]) / 2 - top) * scale;
    path.rect(Math.round(x - side / 2), Math.round(y - side / 2), side, side);
  }

  drawScene(context, { outline, observed, colour }, view) {
    const [edge, area] = [new Path2D(), new Path2D()];
    addRing(edge, outline, view);
    for (const ring of observed) addRing(area, ring, view);
    this.paint(context, area, edge, colour, view.density, "evenodd");
  }

  paint(context, area, edge, colour, density, rule) {
    context.globalAlpha = 0.28;
    context.fillStyle = colour;
    context.fill(area, rule);
    context.globalAlpha = 1;
    context.strokeStyle = colour;
    context.lineWidth = 1.2 * density;
    context.stroke(edge);
  }

  /* Draw the outline of a selected scene. */
  drawSelected(context, number, view) {
    const path = new Path2D();
    const { outline, bounds } = this.scenes[number];
    addRing(path, outline, view);
    this.addSquare(path, bounds, view);
    for (const [colour, line] of [["#000c", 5], ["#fff", 2.5]]) {
      context.strokeStyle = colour;
      context.lineWidth = line * view.density;
      context.stroke(path);
    }
  }
}

/* Add a closed ring to a path; of its points only every `step`-th. */
function addRing(path, ring, { left, top, scale }, step = 1) {
  path.moveTo((ring[0] - left) * scale, (ring[1] - top) * scale);
  for (let k = 2 * step; k < ring.length - 2; k += 2 * step) path.lineTo((ring[k] - left) * scale, (ring[k + 1] - top) * scale);
  path.closePath();
}

function boundsOf(ring) {
  const bounds = [Infinity, Infinity, -Infinity, -Infinity];
  for (let k = 0; k < ring.length; k += 2) {
    bounds[0] = Math.min(bounds[0], ring[k]);
    bounds[1] = Math.min(bounds[1], ring[k + 1]);
    bounds[2] = Math.max(bounds[2], ring[k]);
    bounds[3] = Math.max(bounds[3], ring[k + 1]);
  }
  return bounds;
}

/* Whether a point is inside a ring, by the even-odd rule. */
function isInside(ring, x, y) {
  let odd = false;
  for (let k = 2; k < ring.length; k += 2) {
    const [x0, y0, x1, y1] = [ring[k - 2], ring[k - 1], ring[k], ring[k + 1]];
    if (y0 > y !== y1 > y && x < x0 + ((y - y0) / (y1 - y0)) * (x1 - x0)) odd = !odd;
  }
  return odd;
}

function drawLabels(context, labels, { left, top, scale, density }) {
  context.font = `${12 * density}px system-ui, sans-serif`;
  context.textBaseline = "top";
  context.lineWidth = 3 * density;
  context.strokeStyle = "#000b";
  context.fillStyle = "#fff";
  for (const [text, bounds] of labels) {
    const x = Math.max((bounds[0] - left) * scale, 0) + 5 * density;
    const y = Math.max((bounds[1] - top) * scale, 0) + 5 * density;
    const width = Math.min(bounds[2] - left, context.canvas.width / scale) * scale - x - 5 * density;
    if (width < 40 * density) continue;
    const fitting = fitted(context, text, width);
    context.strokeText(fitting, x, y);
    context.fillText(fitting, x, y);
  }
}

function fitted(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let length = text.length;
  while (length > 1 && context.measureText(`${text.slice(0, length)}…`).width > width) length--;
  return `${text.slice(0, length)}…`;
}
