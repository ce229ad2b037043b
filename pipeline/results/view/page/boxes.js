/* The boxes: which are shown, which are at a point, and how they are drawn.

   Boxes are parallel to the picture's axes, so their lines are runs of pixels, written directly
   into an image. The cost depends on the pixels on screen, and needs no graphics card. */

const DOT_PX = 3; // smaller boxes are dots
const DOT_ALPHA = 0xa0000000; // the ground stays visible under many of them
const HALO_PX = 8; // larger boxes have a dark edge, for contrast on bright ground
const HALO = 0x8c000000;

class Boxes {
  constructor(columns, colours) {
    this.columns = columns;
    this.colours = Uint32Array.from(colours, packedColour);
    this.enabled = new Uint8Array(colours.length).fill(1);
    this.first = 0;
    this.longest = 0; // side of any box
    const { xyxy } = columns;
    for (let b = 0; b < xyxy.length; b += 4) {
      this.longest = Math.max(this.longest, xyxy[b + 2] - xyxy[b], xyxy[b + 3] - xyxy[b + 1]);
    }
  }

  get length() {
    return this.columns.score.length;
  }

  /* Show scores of at least `least`, rounded to float32 as the scores are. */
  setLeast(least) {
    this.first = firstAtLeast(this.columns.score, Math.fround(least));
  }

  isShown(i) {
    return i >= this.first && this.enabled[this.columns.label[i]] === 1;
  }

  /* Numbers of detections at or above the score, of every class, enabled or not. */
  counts() {
    const { label } = this.columns;
    const counts = new Uint32Array(this.enabled.length);
    for (let i = this.first; i < this.length; i++) counts[label[i]]++;
    return counts;
  }

  /* Numbers of detections of the enabled classes per bin of score, from `low` to 1. */
  histogram(bins, low) {
    const { score, label } = this.columns;
    const counts = new Uint32Array(bins);
    for (let i = 0; i < this.length; i++) {
      if (!this.enabled[label[i]]) continue;
      const bin = Math.floor(((score[i] - low) / (1 - low)) * bins);
      counts[Math.min(Math.max(bin, 0), bins - 1)]++;
    }
    return counts;
  }

  /* Shown detections at a point of the scene, the smallest first; each box is widened by `reach`
     scene pixels, so that small boxes can be clicked. */
  at(x, y, reach) {
    const { xyxy } = this.columns;
    const hits = [];
    for (let i = this.first; i < this.length; i++) {
      const b = 4 * i;
      if (x < xyxy[b] - reach || x > xyxy[b + 2] + reach) continue;
      if (y < xyxy[b + 1] - reach || y > xyxy[b + 3] + reach) continue;
      if (this.isShown(i)) hits.push(i);
    }
    return hits.sort((i, j) => this.area(i) - this.area(j) || j - i);
  }

  area(i) {
    const { xyxy } = this.columns;
    return (xyxy[4 * i + 2] - xyxy[4 * i]) * (xyxy[4 * i + 3] - xyxy[4 * i + 1]);
  }

  /* The shown detection whose centre is nearest to a point, or -1. */
  nearest(x, y) {
    let best = -1;
    let least = Infinity;
    for (let i = this.first; i < this.length; i++) {
      if (!this.isShown(i)) continue;
      const [cx, cy] = this.centre(i);
      const distance = (cx - x) ** 2 + (cy - y) ** 2;
      if (distance < least) [best, least] = [i, distance];
    }
    return best;
  }

  centre(i) {
    const { xyxy } = this.columns;
    return [(xyxy[4 * i] + xyxy[4 * i + 2]) / 2, (xyxy[4 * i + 1] + xyxy[4 * i + 3]) / 2];
  }

  /* The next shown detection after `i`, with a higher (+1) or lower (-1) score, or -1. With i = -1
     it starts at the lowest or the highest score. */
  step(i, by) {
    let next = i < 0 ? (by < 0 ? this.length - 1 : this.first) : i + by;
    while (next >= this.first && next < this.length && !this.isShown(next)) next += by;
    return next >= this.first && next < this.length ? next : -1;
  }

  /* Draw into `pixels` (width x height, 0xAABBGGRR). The scene's pixel (left, top) is at the
     corner. A scene pixel is `scale` canvas pixels wide, a CSS pixel `density` canvas pixels. */
  draw(pixels, width, height, view) {
    const canvas = { pixels, width, height };
    // All dark edges first, so that no edge covers the colour of another box.
    if (this.longest * view.scale >= HALO_PX * view.density) this.pass(canvas, view, true);
    this.pass(canvas, view, false);
  }

  pass(canvas, { left, top, scale, density }, halo) {
    const { width, height } = canvas;
    const { xyxy, label } = this.columns;
    const { enabled, colours, length } = this;
    const line = density >= 1.5 ? 2 : 1;
    const dot = Math.max(2, Math.round(1.6 * density));
    for (let i = this.first; i < length; i++) {
      const x1 = (xyxy[4 * i + 2] - left) * scale;
      const y1 = (xyxy[4 * i + 3] - top) * scale;
      if (x1 < 0 || y1 < 0) continue;
      const x0 = (xyxy[4 * i] - left) * scale;
      const y0 = (xyxy[4 * i + 1] - top) * scale;
      if (x0 > width || y0 > height || enabled[label[i]] === 0) continue;
      const longest = Math.max(x1 - x0, y1 - y0) / density;
      if (halo) {
        if (longest >= HALO_PX) outline(canvas, x0 - 1, y0 - 1, x1 + 1, y1 + 1, line + 2, HALO);
      } else if (longest < DOT_PX) {
        const x = (x0 + x1 - dot) / 2;
        const y = (y0 + y1 - dot) / 2;
        fill(canvas, x, y, x + dot, y + dot, (colours[label[i]] & 0xffffff) | DOT_ALPHA);
      } else {
        outline(canvas, x0, y0, x1, y1, longest > 24 ? line + 1 : line, colours[label[i]]);
      }
    }
  }
}

/* Draw the edge of a rectangle, `line` pixels wide, on its inside. */
function outline(canvas, x0, y0, x1, y1, line, colour) {
  const l = rounded(x0);
  const t = rounded(y0);
  const r = rounded(x1);
  const b = rounded(y1);
  if (r - l <= 2 * line || b - t <= 2 * line) {
    fill(canvas, l, t, Math.max(r, l + 1), Math.max(b, t + 1), colour);
    return;
  }
  fill(canvas, l, t, r, t + line, colour);
  fill(canvas, l, b - line, r, b, colour);
  fill(canvas, l, t + line, l + line, b - line, colour);
  fill(canvas, r - line, t + line, r, b - line, colour);
}

function fill(canvas, x0, y0, x1, y1, colour) {
  const { pixels, width } = canvas;
  const l = Math.max(rounded(x0), 0);
  const r = Math.min(rounded(x1), width);
  const b = Math.min(rounded(y1), canvas.height);
  for (let y = Math.max(rounded(y0), 0); y < b; y++) {
    for (let at = y * width + l, end = y * width + r; at < end; at++) pixels[at] = colour;
  }
}

/* The nearest integer; faster than Math.round. */
function rounded(value) {
  return Math.floor(value + 0.5);
}

function packedColour(hex) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
}
