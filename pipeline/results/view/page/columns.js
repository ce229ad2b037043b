/* The detections as typed arrays, in ascending order of score. */

const TYPES = {
  float64: Float64Array,
  float32: Float32Array,
  int32: Int32Array,
  uint32: Uint32Array,
  uint16: Uint16Array,
  uint8: Uint8Array,
};
const DEGREE = 1e7;

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

function unpack(columns) {
  const arrays = {};
  for (const [name, column] of Object.entries(columns)) arrays[name] = unpackColumn(column);
  return arrays;
}

function unpackColumn({ type, data }) {
  return new TYPES[type](bytesOf(data).buffer);
}

/* Longitude and latitude of a point of the scene, interpolated between the points of its
   lattice; null without georeference. */
function lonLatAt({ lattice, width, height }, x, y) {
  if (!lattice) return null;
  const side = Math.round(Math.sqrt(lattice.length / 2));
  const cell = (at, length) => {
    const position = Math.min(Math.max(at / length, 0), 1) * (side - 1);
    const first = Math.min(Math.floor(position), side - 2);
    return [first, position - first];
  };
  const [c, u] = cell(x, width);
  const [r, v] = cell(y, height);
  const at = (row, column, k) => lattice[2 * (row * side + column) + k];
  const [lon, lat] = [0, 1].map(
    (k) =>
      (at(r, c, k) * (1 - u) + at(r, c + 1, k) * u) * (1 - v) +
      (at(r + 1, c, k) * (1 - u) + at(r + 1, c + 1, k) * u) * v,
  );
  return [lon - 360 * Math.round(lon / 360), lat];
}

/* The first index in `ascending` whose value is at least `least`, by binary search. */
function firstAtLeast(ascending, least) {
  let low = 0;
  let high = ascending.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ascending[middle] < least) low = middle + 1;
    else high = middle;
  }
  return low;
}

/* Longitude and latitude of a detection's centre in degrees, or null without georeference. */
function lonLat(columns, i) {
  if (!columns.lonlat) return null;
  return [columns.lonlat[2 * i] / DEGREE, columns.lonlat[2 * i + 1] / DEGREE];
}

function idOf(columns, i) {
  const bytes = columns.identity.subarray(8 * i, 8 * i + 8);
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function indexOfId(columns, id) {
  if (!/^[0-9a-f]{16}$/.test(id)) return -1;
  for (let i = 0; i < columns.score.length; i++) if (idOf(columns, i) === id) return i;
  return -1;
}

/* The detection whose centre is nearest to a point in degrees, within a metre or so; else -1. */
function indexOfPoint({ lonlat }, lon, lat) {
  if (!lonlat) return -1;
  const [x, y] = [lon * DEGREE, lat * DEGREE];
  let best = -1;
  let least = 100 ** 2;
  for (let i = 0; 2 * i < lonlat.length; i++) {
    const distance = (lonlat[2 * i] - x) ** 2 + (lonlat[2 * i + 1] - y) ** 2;
    if (distance < least) [best, least] = [i, distance];
  }
  return best;
}

/* A column that was compressed: all first bytes before all second ones, perhaps of differences. */
async function unpackSqueezed({ type, differences, data }, rows) {
  const stream = new Blob([bytesOf(data)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const values = new TYPES[type](rows);
  const width = values.BYTES_PER_ELEMENT;
  const bytes = new Uint8Array(values.buffer);
  for (let plane = 0; plane < width; plane++) {
    const at = plane * rows;
    for (let i = 0; i < rows; i++) bytes[i * width + plane] = planes[at + i];
  }
  if (differences) for (let i = 1; i < rows; i++) values[i] += values[i - 1];
  return values;
}
