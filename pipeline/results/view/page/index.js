/* The index: filter and sort the scenes. */

const list = document.getElementById("cards");
const cards = [...list.children].map((item) => ({
  item,
  text: item.textContent.toLowerCase(),
  ...item.dataset,
}));
const ORDERS = {
  name: (a, b) => (a.name < b.name ? -1 : 1),
  count: (a, b) => b.count - a.count,
  date: (a, b) => (a.date === b.date ? ORDERS.name(a, b) : a.date < b.date ? 1 : -1),
};

for (const swatch of list.querySelectorAll(".swatch")) {
  swatch.style.setProperty("--c", swatch.dataset.colour);
}

document.getElementById("find").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/);
  let matches = 0;
  for (const { item, text } of cards) {
    item.hidden = !words.every((word) => text.includes(word));
    matches += Number(!item.hidden);
  }
  document.getElementById("none").hidden = matches > 0;
});

document.getElementById("order").addEventListener("change", (event) => {
  list.append(...cards.sort(ORDERS[event.target.value]).map(({ item }) => item));
});

setUpTheme(document.getElementById("theme"), () => {});
