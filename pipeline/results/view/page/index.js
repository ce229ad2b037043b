/* The list of scenes: filter and sort the cards. */

const list = byId("cards");
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
const filters = { date: null, onChange: () => {} };

for (const square of list.querySelectorAll(".swatch")) {
  square.style.setProperty("--c", square.dataset.colour);
}

/* Show the cards that match the words and the date; tell their names to the map, if there is one. */
function filterCards() {
  const words = byId("find").value.toLowerCase().split(/\s+/);
  const names = new Set();
  for (const { item, text, name, date } of cards) {
    const matches = words.every((word) => text.includes(word));
    item.hidden = !matches || (filters.date !== null && date !== filters.date);
    if (!item.hidden) names.add(name);
  }
  byId("none").hidden = names.size > 0;
  filters.onChange(names);
}

byId("find").addEventListener("input", filterCards);
byId("order").addEventListener("change", (event) => {
  list.append(...cards.sort(ORDERS[event.target.value]).map(({ item }) => item));
});

setUpTheme(byId("theme"), () => {});
