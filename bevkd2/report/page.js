"use strict";
// Two of a frame's pictures lie on each other; the left one is cut off at the divider.
for (const box of document.querySelectorAll(".compare")) {
  const pictures = [...box.querySelectorAll("figure")];
  const [left, right] = box.querySelectorAll("select");
  const range = box.querySelector("input");
  const output = box.querySelector("output");
  const stage = box.querySelector(".stage");
  const show = () => {
    pictures.forEach((picture, i) => {
      picture.classList.toggle("left", i === left.selectedIndex);
      picture.classList.toggle("right", i === right.selectedIndex);
    });
    box.style.setProperty("--at", `${range.value}%`);
    output.textContent = `${range.value} %`;
    range.setAttribute("aria-valuetext", `${range.value} % ${left.value}, the rest ${right.value}`);
  };
  const follow = (event) => {
    if (event.buttons) {
      const place = stage.getBoundingClientRect();
      range.value = Math.round((100 * (event.clientX - place.left)) / place.width);
      show();
    }
  };
  right.selectedIndex = pictures.length - 1;
  for (const input of [left, right, range]) input.addEventListener("input", show);
  for (const kind of ["pointerdown", "pointermove"]) stage.addEventListener(kind, follow);
  box.querySelector(".controls").hidden = pictures.length < 2;
  box.classList.toggle("ready", pictures.length > 1);
  show();
}
