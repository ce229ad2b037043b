/* The page of a review: keys, pointer and panel. */

const data = JSON.parse(byId("data").textContent);
byId("data").remove();
const review = new Review(data);
const view = new ChipView(byId("canvas"));
let position = 0;
let picked = null;

const chip = () => data.chips[position];

async function open(number) {
  if (!data.chips.length) return;
  position = Math.min(Math.max(number, 0), data.chips.length - 1);
  review.seen.add(chip().name);
  review.store();
  picked = review.undecidedOn(chip())[0] ?? review.boxesOn(chip())[0] ?? null;
  await view.show(chip());
  refresh();
}

function refresh() {
  if (!data.chips.length) {
    byId("left").textContent = "No detections";
    return;
  }
  view.draw(review.boxesOn(chip()), picked);
  byId("unkept").hidden = review.kept;
  const done = data.chips.filter((one) => review.isDone(one)).length;
  byId("chip-name").textContent = `chip ${position + 1} of ${data.chips.length}: ${chip().name}`;
  byId("left").textContent = String(review.undecidedOn(chip()).length);
  byId("left-of").textContent = `undecided here; ${done} of ${data.chips.length} chips done`;
  Object.assign(byId("progress"), { value: done, max: data.chips.length });
  showPicked();
}

function showPicked() {
  byId("accept").disabled = byId("reject").disabled = !picked;
  byId("picked-title").textContent = picked ? data.classes[picked.label] : "No box is selected";
  const state = { [UNDECIDED]: "undecided", [ACCEPTED]: "a label", [REJECTED]: "rejected" };
  const share = (value) => (value === null ? "" : value.toFixed(2));
  const rows = picked
    ? [
        ["State", state[picked.decision]],
        ["Score", share(picked.score)],
        ["Probability", share(picked.probability)],
      ]
    : [];
  const cells = rows.filter(([, value]) => value).flatMap(([name, value]) => [element("dt", name), element("dd", value)]);
  byId("facts").replaceChildren(...cells);
}

function element(kind, text) {
  return Object.assign(document.createElement(kind), { textContent: text });
}

function decide(decision) {
  if (!picked) return undefined;
  if (decision === REJECTED && picked.id === "") {
    review.remove(chip().scene, picked);
    picked = null;
  } else review.decide(picked, decision);
  const left = review.undecidedOn(chip());
  if (left.length) {
    picked = left[0];
    return refresh();
  }
  const next = data.chips.findIndex((one, number) => number > position && !review.isDone(one));
  return next < 0 ? refresh() : open(next);
}

function acceptAll() {
  for (const box of review.undecidedOn(chip())) review.decide(box, ACCEPTED);
  return open(position + 1);
}

function step(by) {
  const boxes = review.boxesOn(chip());
  if (!boxes.length) return;
  const start = boxes.indexOf(picked);
  picked = boxes[(start + by + boxes.length) % boxes.length];
  refresh();
}

function shift(sides) {
  if (!picked) return;
  review.shift(picked, sides);
  refresh();
}

function addBox() {
  const { scene, left, top, width, height } = chip();
  picked = review.add(scene, left + width / 2, top + height / 2);
  refresh();
}

function nextClass() {
  if (!picked) return;
  picked.label = (picked.label + 1) % data.classes.length;
  review.store();
  refresh();
}

function undo() {
  if (!picked || picked.id === "") return;
  review.reset(picked);
  refresh();
}

function toggleBoxes() {
  view.boxesShown = !view.boxesShown;
  refresh();
}

/* Download the labels as a file: a page from a folder cannot write beside itself. */
function save() {
  const labels = review.labels();
  const blob = new Blob([JSON.stringify(labels, null, 1)], { type: "application/json" });
  const link = Object.assign(document.createElement("a"), {
    href: URL.createObjectURL(blob),
    download: "labels.json",
  });
  link.click();
  review.unsaved = false;
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  byId("saved").textContent =
    `labels.json: ${labels.annotations.length} labels on ${labels.images.length} of ${data.chips.length} chips`;
}

const MOVES = {
  ArrowLeft: [[-1, 0, -1, 0], [0, 0, -1, 0]],
  ArrowRight: [[1, 0, 1, 0], [0, 0, 1, 0]],
  ArrowUp: [[0, -1, 0, -1], [0, 0, 0, -1]],
  ArrowDown: [[0, 1, 0, 1], [0, 0, 0, 1]],
};
const KEYS = {
  a: () => decide(ACCEPTED),
  r: () => decide(REJECTED),
  Delete: () => decide(REJECTED),
  "[": () => step(-1),
  "]": () => step(1),
  n: addBox,
  c: nextClass,
  u: undo,
  b: toggleBoxes,
  s: save,
  t: () => byId("theme").click(),
  Enter: acceptAll,
  PageUp: () => open(position - 1),
  PageDown: () => open(position + 1),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !data.chips.length) return;
  const onStage = event.target === document.body || event.target === byId("stage");
  const move = MOVES[event.key];
  if (move && onStage) {
    event.preventDefault();
    shift(move[event.shiftKey ? 1 : 0]);
    review.store();
    refresh();
    return;
  }
  const act = KEYS[event.key] ?? KEYS[event.key.toLowerCase()];
  // Buttons handle Enter themselves.
  if (!act || (event.key === "Enter" && !onStage)) return;
  event.preventDefault();
  act();
});

/* A pointer selects a box, moves it, or drags the sides that it is near. */
let dragged = null;
view.canvas.addEventListener("pointerdown", (event) => {
  const at = view.at(event);
  const box = view.boxAt(review.boxesOn(chip()), at);
  if (box && box === picked) dragged = { at, sides: view.sidesAt(box, at) };
  if (dragged) view.canvas.setPointerCapture(event.pointerId);
  picked = box;
  refresh();
});
view.canvas.addEventListener("pointermove", (event) => {
  if (!dragged || !picked) return;
  const [x, y] = view.at(event);
  const [dx, dy] = [x - dragged.at[0], y - dragged.at[1]];
  dragged.at = [x, y];
  shift(dragged.sides.map((moves, side) => (moves ? [dx, dy][side % 2] : 0)));
});
for (const kind of ["pointerup", "pointercancel"])
  view.canvas.addEventListener(kind, () => {
    if (!dragged) return;
    dragged = null;
    review.store();
    refresh();
  });

/* Ask before the page is closed with decisions that are neither kept by the browser nor saved. */
addEventListener("beforeunload", (event) => {
  if (review.unsaved) event.preventDefault();
});

for (const [id, key] of [["accept", "a"], ["reject", "r"], ["add", "n"], ["save", "s"], ["previous", "PageUp"], ["next", "PageDown"]])
  byId(id).addEventListener("click", () => KEYS[key]());
setUpTheme(byId("theme"), refresh);
addEventListener("resize", refresh);
if (!data.chips.length) refresh();
const opened = open(0);

window.scenesweep = { data, review, view, opened, open, picked: () => picked, position: () => position };
