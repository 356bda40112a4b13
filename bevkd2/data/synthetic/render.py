"""Images of a scene: every ray is traced to the nearest face, the ground or the sky.

A face is a parallelogram: a corner O and two edges U, V. The pixel (u, v) looks along r = K^-1 (u, v, 1) and
meets the face where O + s U + t V = depth * r, that is [U V O] (s, t, 1) = depth * r. So q = [U V O]^-1 r =
(s, t, 1) / depth is linear in the pixel: q2 is the inverse depth for the depth buffer, q0 / q2 and q1 / q2
are the position on the face. No clipping is needed: nearer than the near plane, q2 is negative or too
large.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import numpy.typing as npt

from bevkd2.data.synthetic.backdrop import NEAR, Backdrop, clip_near, project
from bevkd2.data.synthetic.scene import Scene, Sensor
from bevkd2.data.synthetic.textures import TEXELS, face_textures
from bevkd2.structures import invert_pose

Array = npt.NDArray[np.float64]

SUPERSAMPLING = 2
"""Rays along each side of a pixel."""

# Corner O and edges U, V of each face in textures.FACES, in units of (length, width, height) about the
# centre; U x V points outwards.
_FACE_FRAMES = np.array(
    [
        [[0.5, -0.5, -0.5], [0, 1, 0], [0, 0, 1]],
        [[-0.5, 0.5, -0.5], [0, -1, 0], [0, 0, 1]],
        [[0.5, 0.5, -0.5], [-1, 0, 0], [0, 0, 1]],
        [[-0.5, -0.5, -0.5], [1, 0, 0], [0, 0, 1]],
        [[-0.5, -0.5, 0.5], [1, 0, 0], [0, 1, 0]],
    ]
)
# (s, t) of a face's corners, in order around it.
_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """One rendered image.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        visible: (n,) pixels that show each object of the scene, in pixels of ``image`` (multiples of 1/4).
        unoccluded: (n,) the same without occlusion.
    """

    image: npt.NDArray[np.uint8]
    visible: Array
    unoccluded: Array


class SceneRenderer:
    """Renders the cameras of one scene at any time."""

    def __init__(self, scene: Scene, image_size: tuple[int, int]) -> None:
        """Paints the textures and traces the fixed rays.

        Args:
            scene: the scene to draw.
            image_size: (width, height) in pixels.
        """
        self.scene = scene
        self.image_size = image_size
        rng = np.random.default_rng(scene.texture_seed)
        n = len(scene.objects)
        self._textures = np.zeros((n, len(_FACE_FRAMES), TEXELS, TEXELS, 3), dtype=np.float32)
        self._frames = np.zeros((n, len(_FACE_FRAMES), 3, 3))
        for i, item in enumerate(scene.objects):
            self._textures[i] = face_textures(item, scene.light, rng)
            cos, sin = np.cos(item.yaw), np.sin(item.yaw)
            rotation = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
            self._frames[i] = (_FACE_FRAMES * item.size) @ rotation.T
        self._backdrop = Backdrop(scene, rng, image_size, SUPERSAMPLING)

    def render(self, camera: Sensor, time: float) -> View:
        """Renders one camera.

        Args:
            camera: of the scene's rig.
            time: seconds since the start of the scene.

        Returns:
            The image, and the visible pixels of every object.
        """
        position, heading = self.scene.road.path.pose(time)
        ego2global = np.eye(4)
        ego2global[:2, :2] = [[np.cos(heading), -np.sin(heading)], [np.sin(heading), np.cos(heading)]]
        ego2global[:2, 3] = position
        global2camera = invert_pose(ego2global @ camera.sensor2ego)
        canvas, inverse_depth = self._backdrop.render(camera, ego2global, global2camera, time)
        visible, unoccluded = self._draw_objects(camera, global2camera, time, canvas, inverse_depth)
        self._backdrop.add_haze(camera, canvas, inverse_depth)
        small = cv2.resize(canvas, self.image_size, interpolation=cv2.INTER_AREA)
        image = np.clip(np.rint(small), 0, 255).astype(np.uint8)
        share = 1 / SUPERSAMPLING**2
        return View(image, visible * share, unoccluded * share)

    def _draw_objects(
        self,
        camera: Sensor,
        global2camera: Array,
        time: float,
        canvas: npt.NDArray[np.float32],
        inverse_depth: npt.NDArray[np.float32],
    ) -> tuple[Array, Array]:
        """Draws the boxes in place; returns the rays that show each object, and those without occlusion."""
        n = len(self.scene.objects)
        owner = np.full(canvas.shape[:2], -1, dtype=np.int32)
        unoccluded = np.zeros(n)
        frames = self._camera_frames(global2camera, time)
        for i, face in _facing_faces(frames):
            window = _window(frames[i, face], camera, self.image_size)
            if window is None:
                continue
            rows, columns, q = _trace(frames[i, face], camera, window)
            unoccluded[i] += len(rows)
            nearer = q[2] > inverse_depth[rows, columns]
            rows, columns, q = rows[nearer], columns[nearer], q[:, nearer]
            s = np.minimum((q[0] / q[2] * TEXELS).astype(np.int32), TEXELS - 1)
            t = np.minimum((q[1] / q[2] * TEXELS).astype(np.int32), TEXELS - 1)
            inverse_depth[rows, columns] = q[2]
            canvas[rows, columns] = self._textures[i, face][t, s]
            owner[rows, columns] = i
        visible = np.bincount(owner[owner >= 0], minlength=n).astype(np.float64)
        return visible, unoccluded

    def _camera_frames(self, global2camera: Array, time: float) -> Array:
        """Returns (n, 5, 3, 3): O, U, V (rows) of every face in the camera's frame."""
        centers = np.array([item.center(time) for item in self.scene.objects]).reshape(-1, 1, 3)
        frames = self._frames.copy()
        frames[:, :, 0] += centers
        frames = frames @ global2camera[:3, :3].T
        frames[:, :, 0] += global2camera[:3, 3]
        return frames


def _facing_faces(frames: Array) -> list[tuple[int, int]]:
    """Returns (object, face) of the faces that point to the camera and are partly beyond the near plane."""
    origin, u, v = frames[:, :, 0], frames[:, :, 1], frames[:, :, 2]
    middle = origin + 0.5 * (u + v)
    facing = np.einsum("nfk,nfk->nf", np.cross(u, v), middle) < 0
    deepest = middle[..., 2] + 0.5 * (np.abs(u[..., 2]) + np.abs(v[..., 2]))
    objects, faces = np.nonzero(facing & (deepest > NEAR))
    return list(zip(objects.tolist(), faces.tolist(), strict=True))


def _window(frame: Array, camera: Sensor, image_size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Returns the window of rays (left, top, right, bottom) that can meet a face; None: outside the image."""
    assert camera.intrinsics is not None
    corners = clip_near(frame[0] + _CORNERS @ frame[1:])
    pixels = SUPERSAMPLING * project(corners, camera.intrinsics)
    width, height = (SUPERSAMPLING * side for side in image_size)
    left, top = np.clip(np.floor(pixels.min(axis=0)), 0, [width, height]).astype(int)
    right, bottom = np.clip(np.ceil(pixels.max(axis=0)), 0, [width, height]).astype(int)
    return (int(left), int(top), int(right), int(bottom)) if left < right and top < bottom else None


def _trace(
    frame: Array, camera: Sensor, window: tuple[int, int, int, int]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Array]:
    """Returns rows, columns and q (3, k) of the rays in a window that meet a face; see the module."""
    left, top, right, bottom = window
    to_ray = np.linalg.inv(camera.intrinsics @ np.stack([frame[1], frame[2], frame[0]], axis=1))
    u = (np.arange(left, right) + 0.5) / SUPERSAMPLING
    v = (np.arange(top, bottom) + 0.5) / SUPERSAMPLING
    q = to_ray[:, 0, None, None] * u + (to_ray[:, 1, None, None] * v[:, None] + to_ray[:, 2, None, None])
    inside = (q[0] >= 0) & (q[1] >= 0) & (q[0] <= q[2]) & (q[1] <= q[2]) & (q[2] < 1 / NEAR)
    rows, columns = np.nonzero(inside)
    return rows + top, columns + left, q[:, rows, columns]
