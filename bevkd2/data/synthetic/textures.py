"""Textures: faces of boxes, grain of the ground, and the panorama of sky and skyline."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from bevkd2.data.synthetic.scene import Light, WorldObject

Image = npt.NDArray[np.float32]

TEXELS = 16
"""Texels along each side of a face."""
FACES = ("front", "back", "left", "right", "top")
"""The faces that are painted, in this order; the bottom is on the ground and not visible."""
PANORAMA_SHAPE = (64, 1024)
"""Rows over the elevation, from the top of the range down, and columns over the azimuth."""
PANORAMA_ELEVATION = 0.75
"""Elevation of the panorama's top row, radians; the bottom row is the horizon."""

_NORMALS = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1]], dtype=np.float64)
_GLASS = np.array([0.16, 0.18, 0.21], dtype=np.float32)
_RUBBER = np.array([0.08, 0.08, 0.08], dtype=np.float32)
_WHITE = np.array([0.97, 0.97, 0.95], dtype=np.float32)
_LAMP = np.array([0.85, 0.08, 0.06], dtype=np.float32)
_SKIN = np.array([0.75, 0.58, 0.47], dtype=np.float32)

# Face coordinates of the texels: S from the rear (or left) edge to the front (or right) one, T from the
# ground up.
_T, _S = np.meshgrid(
    (np.arange(TEXELS, dtype=np.float32) + 0.5) / TEXELS,
    (np.arange(TEXELS, dtype=np.float32) + 0.5) / TEXELS,
    indexing="ij",
)


def face_textures(item: WorldObject, light: Light, rng: np.random.Generator) -> Image:
    """Paints and lights the faces of a box.

    Args:
        item: the box; it does not rotate, so its light is the same in the whole scene.
        light: light of the scene.
        rng: random generator for the grain.

    Returns:
        (5, TEXELS, TEXELS, 3) RGB in 0..255, faces in the order of FACES, rows from the ground up.
    """
    color = item.color.astype(np.float32)
    faces = np.broadcast_to(color, (len(FACES), TEXELS, TEXELS, 3)).copy()
    if item.kind is None:
        faces[:4] *= 0.85 + 0.15 * (np.floor(_T * 8) % 2)[..., None]
    else:
        # The front is bright, so that opposite headings can be distinguished.
        faces[0] = 0.3 * color + 0.7 * _WHITE
        _PAINTERS[item.kind.look](faces, color)
    # Seen from outside, the front is on the left edge of the left side.
    faces[2] = faces[2][:, ::-1].copy()
    faces *= 1 + 0.05 * rng.standard_normal((*faces.shape[:3], 1)).astype(np.float32)
    cos, sin = np.cos(item.yaw), np.sin(item.yaw)
    normals = _NORMALS @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    shade = light.ambient + (1 - light.ambient) * np.clip(normals @ light.sun, 0, None) * 1.3
    faces *= shade.astype(np.float32)[:, None, None, None]
    return np.clip(faces * 255, 0, 255)


def _band(face: Image, where: npt.NDArray[np.bool_], color: Image) -> None:
    face[where] = color


def _wheels(faces: Image, low: float = 0.2) -> None:
    for side in (2, 3):
        _band(faces[side], (low > _T) & (np.abs(np.abs(_S - 0.5) - 0.31) < 0.1), _RUBBER)


def _paint_car(faces: Image, color: Image) -> None:
    for side in (2, 3):
        _band(faces[side], (_T > 0.58) & (_T < 0.88) & (np.abs(_S - 0.47) < 0.34), _GLASS)
    _band(faces[0], (_T > 0.6) & (_T < 0.88) & (np.abs(_S - 0.5) < 0.4), _GLASS)
    _band(faces[1], (_T > 0.62) & (_T < 0.86) & (np.abs(_S - 0.5) < 0.36), _GLASS)
    _band(faces[4], (np.abs(_S - 0.72) < 0.08) & (np.abs(_T - 0.5) < 0.4), _GLASS)
    _wheels(faces, 0.26)


def _paint_sedan(faces: Image, color: Image) -> None:
    """Paints a car with faces of different brightness, so that edges and heading are visible in any light."""
    faces[1] *= 0.5
    faces[2:4] *= 0.8
    faces[4] = 0.75 * color + 0.25 * _WHITE
    _paint_car(faces, color)
    _band(faces[1], (np.abs(_T - 0.48) < 0.1) & (np.abs(_S - 0.5) > 0.3), _LAMP)
    _band(faces[1], (np.abs(_T - 0.3) < 0.07) & (np.abs(_S - 0.5) < 0.17), _WHITE)


def _paint_van(faces: Image, color: Image) -> None:
    faces[1] *= 0.5
    faces[2:4] *= 0.8
    for side in (2, 3):
        _band(faces[side], (_T > 0.55) & (_T < 0.85) & (np.abs(_S - 0.85) < 0.1), _GLASS)
    _band(faces[0], (_T > 0.5) & (_T < 0.85) & (np.abs(_S - 0.5) < 0.42), _GLASS)
    _band(faces[1], (_T < 0.4) & (np.abs(_S - 0.5) > 0.4), _LAMP)
    _wheels(faces, 0.2)


def _paint_truck(faces: Image, color: Image) -> None:
    for side in (2, 3):
        faces[side][(_S < 0.72) & (np.floor(_S * 16) % 4 == 0)] *= 0.7
        _band(faces[side], (np.abs(_S - 0.73) < 0.025), _RUBBER)
        _band(faces[side], (_T > 0.5) & (_T < 0.75) & (np.abs(_S - 0.87) < 0.08), _GLASS)
    _band(faces[0], (_T > 0.45) & (_T < 0.75) & (np.abs(_S - 0.5) < 0.42), _GLASS)
    _wheels(faces)


def _paint_bus(faces: Image, color: Image) -> None:
    for side in (2, 3):
        _band(faces[side], (_T > 0.45) & (_T < 0.8) & (np.floor(_S * 16) % 4 > 0), _GLASS)
    _band(faces[0], (_T > 0.35) & (_T < 0.82) & (np.abs(_S - 0.5) < 0.45), _GLASS)
    _band(faces[1], (_T > 0.55) & (_T < 0.8) & (np.abs(_S - 0.5) < 0.4), _GLASS)
    _wheels(faces, 0.16)


def _paint_trailer(faces: Image, color: Image) -> None:
    for side in (1, 2, 3):
        faces[side][np.floor(_S * 16) % 2 == 0] *= 0.75
        _band(faces[side], (_T < 0.2) & (_S > 0.3) & (_S < 0.95), _RUBBER)


def _paint_construction(faces: Image, color: Image) -> None:
    for side in (1, 2, 3):
        faces[side][(np.floor((_S + _T) * 5) % 2 == 0) & (_T < 0.5)] *= 0.3
        _band(faces[side], (_T > 0.6) & (_T < 0.9) & (_S > 0.55) & (_S < 0.8), _GLASS)
    _wheels(faces, 0.3)


def _paint_cycle(faces: Image, color: Image) -> None:
    for side in (2, 3):
        wheel = np.hypot((np.abs(_S - 0.5) - 0.3) / 0.17, (_T - 0.22) / 0.22)
        _band(faces[side], (wheel < 1) & (wheel > 0.45), _RUBBER)
    for side in range(4):
        _band(faces[side], (_T > 0.86) & (np.abs(_S - 0.5) < 0.2), _SKIN)


def _paint_pedestrian(faces: Image, color: Image) -> None:
    for side in range(4):
        faces[side][_T < 0.45] *= 0.55
        _band(faces[side], (_T > 0.84) & (np.abs(_S - 0.5) < 0.35), _SKIN)


def _paint_cone(faces: Image, color: Image) -> None:
    for side in range(4):
        _band(faces[side], (np.abs(_T - 0.55) < 0.11), _WHITE)
        _band(faces[side], _T < 0.08, _RUBBER)


def _paint_barrier(faces: Image, color: Image) -> None:
    for side in (0, 1):
        _band(faces[side], (np.floor((2 * _S + _T) * 3) % 3 == 0) & (_T > 0.3), _WHITE)
    faces[1] *= 0.8


_PAINTERS: dict[str, Callable[[Image, Image], None]] = {
    "car": _paint_car,
    "sedan": _paint_sedan,
    "van": _paint_van,
    "truck": _paint_truck,
    "bus": _paint_bus,
    "trailer": _paint_trailer,
    "construction": _paint_construction,
    "cycle": _paint_cycle,
    "pedestrian": _paint_pedestrian,
    "cone": _paint_cone,
    "barrier": _paint_barrier,
}


def noise_tile(rng: np.random.Generator, size: int = 256) -> Image:
    """Returns periodic value noise of four octaves.

    Args:
        rng: generator.
        size: side of the square tile, a power of two.

    Returns:
        (size, size) with a mean near 0, within about +-1.
    """
    tile = np.zeros((size, size), dtype=np.float32)
    for cells in (8, 32, 64, 256):
        octave = rng.uniform(-0.5, 0.5, size=(cells, cells)).astype(np.float32)
        step = size // cells
        # One wrapped cell on each side makes the interpolation periodic.
        wide = cv2.resize(
            np.pad(octave, 1, mode="wrap"), None, fx=step, fy=step, interpolation=cv2.INTER_LINEAR
        )
        tile += wide[step : step + size, step : step + size]
    return tile / 2


def panorama(light: Light, rng: np.random.Generator) -> Image:
    """Paints the sky and a hazy skyline in all directions.

    Args:
        light: of the scene.
        rng: generator.

    Returns:
        (*PANORAMA_SHAPE, 3) RGB in 0..255.
    """
    rows, columns = PANORAMA_SHAPE
    elevation = np.linspace(1, 0, rows, dtype=np.float32)[:, None, None]
    zenith = light.haze_color.astype(np.float32) * np.array([0.62, 0.76, 0.95], dtype=np.float32)
    sky = light.haze_color.astype(np.float32) * (1 - elevation) + zenith * elevation
    sky = np.broadcast_to(sky, (rows, columns, 3)).copy()
    clouds = noise_tile(rng)[: rows * 2 : 2][:, np.arange(columns) // 4][..., None]
    sky += np.clip(clouds, 0, None) * 0.5 * elevation
    # Buildings and trees: runs of columns with the same height and grey value.
    ends = np.cumsum(rng.integers(8, 40, size=columns // 8))
    run = np.searchsorted(ends, np.arange(columns), side="right")
    height = rng.uniform(0.0, 0.16, size=len(ends) + 1)[run]
    gray = rng.uniform(0.45, 0.68, size=len(ends) + 1)[run].astype(np.float32)
    tint = np.array([0.97, 1.0, 1.02], dtype=np.float32)
    built = elevation[..., 0] * PANORAMA_ELEVATION < height
    sky[built] = (np.broadcast_to(gray, (rows, columns))[built])[:, None] * tint
    return np.clip(sky * 255, 0, 255)
