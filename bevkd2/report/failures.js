"use strict";
// Frames are sorted and filtered by what the chosen model loses of the chosen class.
const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 40; // frames that are shown at first, and by each press of the button
const NOTHING = { loss: 0, missed: 0, far: 0, false: 0, gained: 0, error: 0 };
const [model, sort, kind, label, drawn] = ["model", "sort", "kind", "class", "drawn"].map((id) => document.getElementById(id));
const [count, list, more] = ["count", "list", "more"].map((id) => document.getElementById(id));
let shown = PAGE;

const element = (tag, kind, ...content) => {
  const made = document.createElement(tag);
  made.className = kind;
  made.append(...content);
  return made;
};
const metres = (value) => `${value > 0 ? "+" : ""}${value.toFixed(2)} m`;

const lossOf = (frame) => {
  const all = frame.losses[model.value];
  if (!label.value) return all;
  return Object.hasOwn(all.per_class, label.value) ? all.per_class[label.value] : NOTHING;
};
const isWanted = (frame) => {
  const loss = lossOf(frame);
  if (drawn.checked && !frame.picture) return false;
  return kind.value ? loss[kind.value] > 0 : !label.value || loss !== NOTHING;
};
const comesFirst = (a, b) => {
  const [of, other] = [lossOf(a), lossOf(b)];
  const keys = sort.value ? [sort.value, "loss", "error"] : [];
  for (const key of keys) if (of[key] !== other[key]) return other[key] - of[key];
  return a.place - b.place;
};

// What was lost, such as "2 car missed, 1 pedestrian far (3.10 m), 1 car false".
const lostObjects = (frame) => {
  const all = frame.losses[model.value];
  const groups = new Map();
  for (const object of all.objects) {
    if (label.value && object.class !== label.value) continue;
    const name = `${object.class} ${object.state}`;
    groups.set(name, [...(groups.get(name) ?? []), object.error]);
  }
  const told = [...groups].map(([name, errors]) => {
    const far = errors.filter((error) => error !== null).map((error) => `${error.toFixed(2)} m`);
    return `${errors.length} ${name}${far.length ? ` (${far.join(", ")})` : ""}`;
  });
  for (const [name, loss] of Object.entries(all.per_class)) {
    if (loss.false && (!label.value || name === label.value)) told.push(`${loss.false} ${name} false`);
  }
  return told.join(", ");
};

const pictureOf = (frame) => {
  if (!frame.picture) return element("p", "note", "No picture: --num draws more frames.");
  const address = encodeURIComponent(frame.picture);
  const image = element("img", "");
  Object.assign(image, { loading: "lazy", src: address, width: frame.width, height: frame.height });
  image.alt = `Frame ${frame.frame}: objects and detections of each model, in the cameras and from above`;
  const link = element("a", "", image);
  Object.assign(link, { href: address, target: "_blank", rel: "noopener", title: "The picture alone" });
  const scroll = element("div", "scroll", link);
  scroll.tabIndex = 0;
  return scroll;
};

const cardOf = (frame, place) => {
  const loss = lossOf(frame);
  const counts = element("dl", "counts");
  for (const name of ["loss", "missed", "far", "false", "gained"]) {
    const key = ["missed", "far", "false"].includes(name) ? [element("span", `key ${name}`)] : [];
    const box = element("div", loss[name] ? "" : "zero", ...key, element("dt", "", name), element("dd", name, `${loss[name]}`));
    counts.append(box);
  }
  counts.append(element("div", loss.error ? "" : "zero", element("dt", "", "error"), element("dd", "error", metres(loss.error))));
  const card = element("li", "", element("h3", "", `${place + 1}. ${frame.frame}`), counts);
  const lost = lostObjects(frame);
  if (lost) card.append(element("p", "objects", lost));
  card.append(pictureOf(frame));
  return card;
};

const show = () => {
  const wanted = data.frames.filter(isWanted).sort(comesFirst);
  list.replaceChildren(...wanted.slice(0, shown).map(cardOf));
  const sums = ["missed", "far", "false", "gained"].map(
    (name) => `${wanted.reduce((sum, frame) => sum + lossOf(frame)[name], 0)} ${name}`,
  );
  const seen = wanted.length > shown ? `, the first ${shown} shown` : "";
  count.textContent = `${wanted.length} of ${data.frames.length} frames${seen}: ${sums.join(", ")}`;
  more.hidden = wanted.length <= shown;
};

for (const input of [model, sort, kind, label, drawn]) {
  input.addEventListener("change", () => {
    shown = PAGE;
    show();
  });
}
more.addEventListener("click", () => {
  shown += PAGE;
  show();
});
document.querySelector(".controls").hidden = false;
show();
