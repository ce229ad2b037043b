/* The picture under the detections: a pyramid of tiles. A tile is decoded when it is first drawn. */

const TILE_PX = 512;
const KEPT_TILES = 256;

class Picture {
  constructor(levels, onLoad) {
    this.levels = levels;
    this.onLoad = onLoad;
    this.images = new Map(); // "level/tile" in order of use
  }

  /* Draw the visible part of a scene of `width` pixels, coarse to fine: where a fine tile is still
     being decoded, the coarser one is visible. */
  draw(context, { width, left, top, scale }) {
    const right = left + context.canvas.width / scale;
    const bottom = top + context.canvas.height / scale;
    const finest = this.levelFor(scale, width);
    for (let level = 0; level <= finest; level++) {
      const per = width / this.levels[level].width; // scene pixels per pixel of the level
      context.imageSmoothingEnabled = per * scale < 4;
      const view = { left, top, scale };
      const span = TILE_PX * per;
      const columns = Math.ceil(this.levels[level].width / TILE_PX);
      const rows = Math.ceil(this.levels[level].height / TILE_PX);
      const c1 = Math.min(columns - 1, Math.floor(right / span));
      const r1 = Math.min(rows - 1, Math.floor(bottom / span));
      for (let r = Math.max(0, Math.floor(top / span)); r <= r1; r++) {
        for (let c = Math.max(0, Math.floor(left / span)); c <= c1; c++) {
          this.drawTile(context, level, r * columns + c, c, r, per, view);
        }
      }
    }
  }

  /* The coarsest level with about one pixel for each pixel on screen. */
  levelFor(scale, width) {
    const onScreen = width * scale;
    const index = this.levels.findIndex((level) => level.width >= onScreen * 0.8);
    return index < 0 ? this.levels.length - 1 : index;
  }

  drawTile(context, level, tile, column, row, per, { left, top, scale }) {
    const image = this.image(level, tile);
    if (!image.complete || !image.naturalWidth) return;
    const onScreen = (at, origin) => Math.round((at * per - origin) * scale);
    // Integer pixels on screen, so that no seams are visible between tiles.
    const x0 = onScreen(column * TILE_PX, left);
    const y0 = onScreen(row * TILE_PX, top);
    const x1 = onScreen(column * TILE_PX + image.naturalWidth, left);
    const y1 = onScreen(row * TILE_PX + image.naturalHeight, top);
    context.drawImage(image, x0, y0, x1 - x0, y1 - y0);
  }

  image(level, tile) {
    const key = `${level}/${tile}`;
    let image = this.images.get(key);
    if (image) {
      this.images.delete(key);
    } else {
      image = new Image();
      image.decoding = "async";
      image.addEventListener("load", this.onLoad);
      image.src = `data:image/webp;base64,${this.levels[level].tiles[tile]}`;
      const [oldest] = this.images.keys();
      if (this.images.size >= KEPT_TILES) this.images.delete(oldest);
    }
    this.images.set(key, image);
    return image;
  }
}
