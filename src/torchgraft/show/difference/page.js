const folds = [...document.querySelectorAll("details")];
const first = folds.map((fold) => fold.open);
// What is inside something new or gone is new or gone itself: one stop is enough.
const inside = (row) => (row.tagName === "SUMMARY" ? row.parentElement : row).parentElement.closest("details");
const whole = (fold) => fold?.firstElementChild.matches(".added, .removed");
const marked = [...document.querySelectorAll(".row")].filter(
  (row) => row.matches(".added, .removed, .changed, .moved") && !(whole(inside(row)) && !row.matches(".moved"))
);
let at = -1;

function go(step) {
  if (!marked.length) return;
  at = (at + step + marked.length) % marked.length;
  const row = marked[at];
  for (let fold = inside(row); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  if (row.tagName !== "SUMMARY") row.tabIndex = -1;
  row.focus({ preventScroll: true });
  row.scrollIntoView({ block: "center" });
}

const doing = {
  next: () => go(1),
  open: () => folds.forEach((fold) => (fold.open = true)),
  fold: () => folds.forEach((fold, i) => (fold.open = first[i])),
};
const bar = document.querySelector("nav");
bar.hidden = false;
bar.querySelector("[data-do=next]").hidden = !marked.length;
bar.addEventListener("click", (event) => doing[event.target.closest("button")?.dataset.do]?.());
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "n") go(1);
  if (event.key === "p") go(at < 0 ? 0 : -1);
});
