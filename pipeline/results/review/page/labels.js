/* The decisions of a person about boxes, and the labels that follow from them.

   A box is in pixels of its scene's grid, so a box on two chips that overlap is one box. */

const byId = (id) => document.getElementById(id);
const UNDECIDED = 0;
const ACCEPTED = 1;
const REJECTED = 2;
const LEAST_PROBABILITY = 0.5; // of a box that begins as a label
const LEAST_PX = 2;
const LEAST_VISIBLE = 0.3; // of a label's area, as in `scenesweep train`

class Review {
  constructor(data) {
    Object.assign(this, { data, seen: new Set(), kept: true, unsaved: false });
    this.scenes = data.scenes.map((scene) => scene.boxes.map(fresh));
    this.load();
  }

  /* The boxes that touch a chip: uncertain ones first, then by position. */
  boxesOn({ scene, left, top, width, height }) {
    const touches = ({ xyxy: [x0, y0, x1, y1] }) =>
      x0 < left + width && x1 > left && y0 < top + height && y1 > top;
    return this.scenes[scene].filter(touches);
  }

  undecidedOn(chip) {
    return this.boxesOn(chip).filter((box) => box.decision === UNDECIDED);
  }

  isDone(chip) {
    return this.seen.has(chip.name) && this.undecidedOn(chip).length === 0;
  }

  decide(box, decision) {
    box.decision = decision;
    this.store();
  }

  /* Move the four sides of a box by so many pixels each; it keeps an area. The caller stores it. */
  shift(box, [left, top, right, bottom]) {
    const [x0, y0, x1, y1] = box.xyxy;
    const moved = [x0 + left, y0 + top, x1 + right, y1 + bottom];
    if (moved[2] - moved[0] < LEAST_PX || moved[3] - moved[1] < LEAST_PX) return;
    box.xyxy = moved;
  }

  reset(box) {
    Object.assign(box, fresh(box.first), { decision: UNDECIDED });
    this.store();
  }

  /* A new box of the size of the others, around a point of the grid. */
  add(scene, x, y) {
    const sides = this.data.scenes.flatMap(({ boxes }) =>
      boxes.map(({ xyxy: [x0, y0, x1, y1] }) => [x1 - x0, y1 - y0]),
    );
    const [width, height] = [0, 1].map((axis) => median(sides.map((side) => side[axis])) || 12);
    const xyxy = [x - width / 2, y - height / 2, x + width / 2, y + height / 2];
    const box = fresh({ id: "", xyxy, label: 0, score: null, probability: null, uncertain: false });
    this.scenes[scene].push(box);
    this.store();
    return box;
  }

  /* A box that a person added is removed, instead of rejected. */
  remove(scene, box) {
    this.scenes[scene] = this.scenes[scene].filter((other) => other !== box);
    this.store();
  }

  /* COCO: only chips that are done are among the images, each with all its labels. */
  labels() {
    const done = this.data.chips.filter((chip) => this.isDone(chip));
    const annotations = done.flatMap((chip, index) =>
      this.boxesOn(chip)
        .filter((box) => box.decision === ACCEPTED && visibleShare(chip, box) >= LEAST_VISIBLE)
        .map((box) => annotation(chip, index + 1, box)),
    );
    return {
      info: {
        description: `Detections of ${this.data.model}, reviewed by a person`,
        version: this.data.version,
      },
      images: done.map((chip, index) => ({
        id: index + 1,
        file_name: chip.name,
        width: chip.width,
        height: chip.height,
      })),
      annotations: annotations.map((one, index) => ({ id: index + 1, ...one })),
      categories: this.data.classes.map((name, label) => ({ id: label + 1, name })),
    };
  }

  /* The browser keeps the decisions, so that a review can go on after the page was closed. If it
     refuses, they are unsaved until the labels are downloaded. */
  store() {
    const boxes = this.scenes.map((scene) => scene.map(({ first, ...rest }) => rest));
    this.kept = remember(this.name(), JSON.stringify({ seen: [...this.seen], boxes }));
    this.unsaved = !this.kept;
  }

  load() {
    let kept = null;
    try {
      kept = JSON.parse(recall(this.name()) ?? "null");
    } catch {
      /* not our text: begin anew */
    }
    if (!kept?.boxes || kept.boxes.length !== this.scenes.length) return;
    this.seen = new Set(kept.seen);
    this.scenes = kept.boxes.map((boxes, scene) =>
      boxes.map((box, number) => ({ ...box, first: this.scenes[scene][number]?.first ?? box })),
    );
  }

  name() {
    return `scenesweep-review-${this.data.key}`;
  }
}

/* A box as the model gave it. Of those that it is sure of, the ones that are probably correct begin
   as labels, the others as rejected. Without a probability a box begins as a label. */
function fresh(first) {
  const likely = first.probability === null || first.probability >= LEAST_PROBABILITY;
  const decision = first.uncertain ? UNDECIDED : likely ? ACCEPTED : REJECTED;
  return { ...first, xyxy: [...first.xyxy], decision, first };
}

/* The share of a box that lies on a chip. */
function visibleShare({ left, top, width, height }, { xyxy: [x0, y0, x1, y1] }) {
  const across = Math.min(x1, left + width) - Math.max(x0, left);
  const down = Math.min(y1, top + height) - Math.max(y0, top);
  return (Math.max(across, 0) * Math.max(down, 0)) / ((x1 - x0) * (y1 - y0));
}

function annotation({ left, top }, image, { xyxy: [x0, y0, x1, y1], label }) {
  const round = (value) => Math.round(value * 100) / 100;
  const [width, height] = [round(x1 - x0), round(y1 - y0)];
  return {
    image_id: image,
    category_id: label + 1,
    bbox: [round(x0 - left), round(y0 - top), width, height],
    area: round(width * height),
    iscrowd: 0,
  };
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[sorted.length >> 1];
}
