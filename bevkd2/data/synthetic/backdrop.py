"""The background of the boxes: road with markings and shadows, sky, haze."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import numpy.typing as npt

from bevkd2.data.synthetic.scene import LANE_WIDTH, Scene, Sensor
from bevkd2.data.synthetic.textures import PANORAMA_ELEVATION, PANORAMA_SHAPE, noise_tile, panorama

Array = npt.NDArray[np.float64]
Image = npt.NDArray[np.float32]

NEAR = 0.2
"""Metres along the optical axis: nearer surfaces are not drawn."""

_ASPHALT = np.array([96, 97, 100], dtype=np.float32)
_KERB = np.array([150, 148, 143], dtype=np.float32)
_PAVEMENT = np.array([132, 128, 122], dtype=np.float32)
_PAINT = np.array([225, 224, 215], dtype=np.float32)
_KERB_WIDTH = 0.3
_PAVEMENT_WIDTH = 2.5
_LINE_WIDTH = 0.18
# Length of a dash, and of a dash and the gap after it, metres.
_DASH, _DASH_PERIOD = 3.0, 9.0
_SHADOW = np.float32(0.55)
# Factor of the light on the ground in the contact shadow of a box.
_CONTACT = np.float32(0.3)
# Texels of ground noise per metre.
_GRAIN = 4.0
# Metres; rays that meet the ground farther away show the haze at the horizon.
_FARTHEST = 400.0


def clip_near(polygon: Array) -> Array:
    """Cuts off what lies nearer than the near plane (Sutherland and Hodgman's algorithm for one plane).

    Args:
        polygon: (k, 3) corners in the camera's frame, in order, at least one beyond the near plane.

    Returns:
        (m, 3) corners with a depth of at least NEAR, in order.
    """
    depth = polygon[:, 2] - NEAR
    if (depth >= 0).all():
        return polygon
    following, next_depth = np.roll(polygon, -1, axis=0), np.roll(depth, -1)
    corners = []
    for a, b, da, db in zip(polygon, following, depth, next_depth, strict=True):
        if da >= 0:
            corners.append(a)
        if (da >= 0) != (db >= 0):
            corners.append(a + da / (da - db) * (b - a))
    return np.array(corners)


def project(points: Array, intrinsics: Array) -> Array:
    """Projects points into an image.

    Args:
        points: (k, 3) in the camera's frame (x right, y down, z forward), all in front of it.
        intrinsics: (3, 3).

    Returns:
        (k, 2) x, y in pixels.
    """
    return (points @ intrinsics.T)[:, :2] / points[:, 2:]


@dataclasses.dataclass(frozen=True, eq=False)
class _Rays:
    """The rays of a camera in the ego frame; fixed for the scene.

    Attributes:
        ground: (k,) flat indices of the rays that meet the ground.
        sky: (s,) flat indices of the other rays.
        xy: (2, k) intersections of the rays in ``ground`` with the ground, metres.
        footprint: (k,) lateral size of a ray on the ground, metres.
        inverse_depth: (h, w) 1/m along the optical axis; 0 in the sky.
        length: (h, w) length of the ray up to depth 1.
        azimuth: (s,) column of the panorama of the rays in ``sky``, for an ego that heads along the global x
            axis.
        elevation: (s,) row of the panorama of the same rays.
    """

    ground: npt.NDArray[np.intp]
    sky: npt.NDArray[np.intp]
    xy: Image
    footprint: Image
    inverse_depth: Image
    length: Image
    azimuth: Image
    elevation: npt.NDArray[np.int32]


class Backdrop:
    """Ground, sky and haze of one scene."""

    def __init__(
        self, scene: Scene, rng: np.random.Generator, image_size: tuple[int, int], supersampling: int
    ) -> None:
        """Paints everything that does not change within the scene.

        Args:
            scene: the scene, with road, rig and light.
            rng: random generator for grain and skyline.
            image_size: (width, height) of the final image in pixels.
            supersampling: rays along each side of a pixel.
        """
        self._scene = scene
        self._supersampling = supersampling
        self._noise = noise_tile(rng)
        self._panorama = panorama(scene.light, rng)
        self._verge = rng.uniform([95, 100, 75], [135, 130, 100]).astype(np.float32)
        self._rays = {
            s.channel: _trace_rays(s, image_size, supersampling)
            for s in scene.rig
            if s.intrinsics is not None
        }
        self._shadows = [_shadow_outline(item.size, item.yaw, scene.light.sun) for item in scene.objects]
        rim = scene.light.contact_rim
        self._contacts = [_foot(item.size[:2] + 2 * rim, item.yaw) for item in scene.objects] if rim else []

    def render(
        self, camera: Sensor, ego2global: Array, global2camera: Array, time: float
    ) -> tuple[Image, Image]:
        """Draws ground, shadows and sky.

        Args:
            camera: of the rig.
            ego2global: (4, 4) pose of the ego.
            global2camera: (4, 4) pose of the camera, inverted.
            time: seconds.

        Returns:
            canvas: (h, w, 3) RGB in 0..255, supersampled, without haze.
            inverse_depth: (h, w) 1/m along the optical axis; 0 in the sky.
        """
        rays = self._rays[camera.channel]
        canvas = np.empty((rays.length.size, 3), dtype=np.float32)
        rotation = ego2global[:2, :2].astype(np.float32)
        x, y = rotation @ rays.xy + ego2global[:2, 3:].astype(np.float32)
        color = self._ground_color(x, y, rays.footprint)
        shadow = self._outline_mask(self._shadows, camera, global2camera, time)
        lit = np.where(shadow.reshape(-1)[rays.ground], _SHADOW, np.float32(1))
        if self._contacts:
            contact = self._outline_mask(self._contacts, camera, global2camera, time)
            lit[contact.reshape(-1)[rays.ground] > 0] = _CONTACT
        canvas[rays.ground] = color * lit[:, None]
        heading = np.arctan2(ego2global[1, 0], ego2global[0, 0])
        columns = PANORAMA_SHAPE[1]
        azimuth = (rays.azimuth + heading * columns / (2 * np.pi)).astype(np.int32) % columns
        canvas[rays.sky] = self._panorama[rays.elevation, azimuth]
        return canvas.reshape(*rays.length.shape, 3), rays.inverse_depth.copy()

    def add_haze(self, camera: Sensor, canvas: Image, inverse_depth: Image) -> None:
        """Blends everything but the sky with the haze, in place.

        Args:
            camera: of the rig.
            canvas: (h, w, 3) RGB in 0..255.
            inverse_depth: (h, w) 1/m along the optical axis; 0 in the sky.
        """
        light = self._scene.light
        rate = self._rays[camera.channel].length / np.float32(light.haze_distance)
        # The sky, at inverse depth 0, keeps its colour; the small number avoids a division by zero there.
        left = np.exp(-rate / np.maximum(inverse_depth, np.float32(1e-6)))
        left[inverse_depth == 0] = 1
        haze = (light.haze_color * 255).astype(np.float32)
        canvas -= haze
        canvas *= left[..., None]
        canvas += haze

    def _ground_color(self, x: Image, y: Image, footprint: Image) -> Image:
        """Returns (k, 3) RGB of points of the ground, without shadow."""
        road = self._scene.road
        along, lateral = road.coordinates(x, y)
        right, left = road.edges
        outside = np.maximum(right - lateral, lateral - left)
        zone = np.digitize(outside, [0.0, _KERB_WIDTH, _KERB_WIDTH + _PAVEMENT_WIDTH])
        color = np.stack([_ASPHALT, _KERB, _PAVEMENT, self._verge])[zone]
        size = self._noise.shape[0]
        grain = self._noise[(x * _GRAIN).astype(np.int32) % size, (y * _GRAIN).astype(np.int32) % size]
        fade = np.minimum(1.0, 0.15 / footprint)
        color *= (1 + 0.22 * fade * grain)[:, None]
        paint = self._paint_cover(along, lateral, outside, footprint)[:, None]
        return color + paint * (_PAINT - color)

    def _paint_cover(self, along: Image, lateral: Image, outside: Image, footprint: Image) -> Image:
        """Returns (k,) share of the footprint of each ray that lane markings cover."""
        lane = (lateral - self._scene.road.edges[0]) / LANE_WIDTH
        nearest = np.rint(lane)
        distance = np.abs(lane - nearest) * LANE_WIDTH
        # Edge lines are solid and lie inside the road; the others are dashed.
        edge = np.abs(outside + 0.25)
        dashed = (along % _DASH_PERIOD < _DASH) & (outside < -1.0)
        distance = np.minimum(edge, np.where(dashed, distance, np.float32(np.inf)))
        cover = np.clip((_LINE_WIDTH / 2 - distance) / footprint + 0.5, 0, 1)
        painted: Image = cover * np.minimum(1, _LINE_WIDTH / footprint)
        return painted

    def _outline_mask(
        self, outlines: list[Array], camera: Sensor, global2camera: Array, time: float
    ) -> npt.NDArray[np.uint8]:
        """Returns (h, w): 1 where the outline of an object, relative to its centre, covers the ground."""
        assert camera.intrinsics is not None
        mask = np.zeros(self._rays[camera.channel].length.shape, dtype=np.uint8)
        for item, outline in zip(self._scene.objects, outlines, strict=True):
            ground = np.zeros((len(outline), 3))
            ground[:, :2] = outline + item.center(time)[:2]
            corners = ground @ global2camera[:3, :3].T + global2camera[:3, 3]
            if corners[:, 2].max() <= NEAR:
                continue
            pixels = self._supersampling * project(clip_near(corners), camera.intrinsics) - 0.5
            # OpenCV reads fixed-point coordinates; those far outside the image must not overflow.
            fixed = np.rint(np.clip(pixels, -4000, 12000) * 16).astype(np.int32)
            cv2.fillConvexPoly(mask, fixed, (1,), lineType=cv2.LINE_8, shift=4)
        return mask


def _shadow_outline(size: Array, yaw: float, sun: Array) -> Array:
    """Returns (k, 2) outline of the shadow of a box on the ground, relative to its centre, in metres."""
    base = _foot(size[:2], yaw)
    roof = base - size[2] / sun[2] * sun[:2]
    hull = cv2.convexHull(np.concatenate([base, roof]).astype(np.float32))
    outline: Array = hull[:, 0].astype(np.float64)
    return outline


def _foot(size: Array, yaw: float) -> Array:
    """Returns (4, 2) corners of a rectangle on the ground relative to its centre, global axes, metres."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    corners: Array = (
        0.5 * size * np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) @ np.array([[cos, sin], [-sin, cos]])
    )
    return corners


def _trace_rays(camera: Sensor, image_size: tuple[int, int], supersampling: int) -> _Rays:
    width, height = (supersampling * side for side in image_size)
    u = (np.arange(width) + 0.5) / supersampling
    v = (np.arange(height) + 0.5) / supersampling
    pixels = np.stack([*np.meshgrid(u, v), np.ones((height, width))], axis=-1)
    assert camera.intrinsics is not None
    rays = pixels @ np.linalg.inv(camera.intrinsics).T
    directions = rays @ camera.sensor2ego[:3, :3].T
    length = np.linalg.norm(directions, axis=-1)
    lens = camera.translation
    # Depth at which the ray meets z = 0; rays that rise, or meet it too far away, show the sky.
    with np.errstate(divide="ignore"):
        depth = np.where(directions[..., 2] < 0, -lens[2] / directions[..., 2], np.inf)
    ground = depth * length < _FARTHEST
    points = lens[:2, None] + depth[ground] * directions[ground][:, :2].T
    sky = directions[~ground]
    azimuth = np.arctan2(sky[:, 1], sky[:, 0]) * PANORAMA_SHAPE[1] / (2 * np.pi)
    elevation = np.arcsin(sky[:, 2] / length[~ground]) / PANORAMA_ELEVATION
    rows = np.clip((1 - elevation) * PANORAMA_SHAPE[0], 0, PANORAMA_SHAPE[0] - 1).astype(np.int32)
    footprint = depth[ground] / (camera.intrinsics[0, 0] * supersampling)
    return _Rays(
        ground=np.flatnonzero(ground),
        sky=np.flatnonzero(~ground),
        xy=points.astype(np.float32),
        footprint=footprint.astype(np.float32),
        inverse_depth=np.where(ground, 1 / depth, 0).astype(np.float32),
        length=length.astype(np.float32),
        azimuth=azimuth.astype(np.float32),
        elevation=rows,
    )
