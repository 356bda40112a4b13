"""Draws a small data set for PhotoBoxes: cars and persons as boxes of their size on a plain ground."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

FOCAL, WIDTH, HEIGHT = 200.0, 320, 96
KINDS = {"car": ((4.0, 1.5, 1.8), (200, 40, 40)), "person": ((0.6, 1.7, 0.6), (40, 40, 220))}
FACES = [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5)]


def draw(pen: ImageDraw.ImageDraw, box: list[float], color: tuple[int, int, int]) -> None:
    """Draws the six faces, the farthest first; each direction has its own brightness."""
    x, y, z, length, height, width, yaw = box
    signs = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)])
    along, up, across = (signs * np.array([length, height, width]) / 2).T
    cos, sin = np.cos(yaw), np.sin(yaw)
    corners = np.stack([x + cos * along + sin * across, y + up, z - sin * along + cos * across], axis=1)
    pixels = FOCAL * corners[:, :2] / corners[:, 2:] + (WIDTH / 2, HEIGHT / 2)
    for k in sorted(range(6), key=lambda k: -np.linalg.norm(corners[list(FACES[k])].mean(0))):
        shade = (1.0, 0.75, 0.5)[k // 2]
        fill = tuple(int(channel * shade) for channel in color)
        pen.polygon([tuple(pixels[i]) for i in FACES[k]], fill=fill)


def main() -> None:
    root, rng = Path("data/photos"), np.random.default_rng(0)
    (root / "images").mkdir(parents=True, exist_ok=True)
    splits = {}
    for split, count in (("train", 24), ("val", 8)):
        splits[split] = images = []
        for i in range(count):
            picture = Image.new("RGB", (WIDTH, HEIGHT), (150, 190, 220))
            pen = ImageDraw.Draw(picture)
            pen.rectangle([0, HEIGHT / 2, WIDTH, HEIGHT], fill=(110, 115, 100))
            boxes = []
            for kind, side in zip(rng.permutation(list(KINDS)), (-0.3, 0.3), strict=True):
                size, color = KINDS[kind]
                z = rng.uniform(7, 16)
                x = z * (side + rng.uniform(-0.15, 0.15))
                box = [x, 1.5 - size[1] / 2, z, *size, rng.uniform(-3, 3)]  # on the ground, 1.5 m below
                boxes.append({"class": str(kind), "box": box})
                draw(pen, box, color)
            file = f"images/{split}{i}.png"
            picture.save(root / file)
            intrinsics = [[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]]
            images.append(
                {"file": file, "width": WIDTH, "height": HEIGHT, "intrinsics": intrinsics, "boxes": boxes}
            )
    (root / "photos.json").write_text(json.dumps(splits))


if __name__ == "__main__":
    main()
