"""Temporal state of batches and streams: which rows of a batch have a previous frame, and its state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from bevkd2.modeling.knowledge import TemporalState

NO_SCENE = ""
"""Scene token of a row that has no past."""


def rows_with_history(
    state: TemporalState | None, scene_tokens: Sequence[str], timestamps: Sequence[int]
) -> list[bool]:
    """Returns which rows continue the scene of the state's row, strictly later in time.

    Args:
        state: of the B previous frames, row by row; None: no row has a past.
        scene_tokens: of the B current frames.
        timestamps: of the same, microseconds.
    """
    if state is None:
        return [False] * len(scene_tokens)
    past = zip(state.scene_tokens, state.timestamps, strict=True)
    now = zip(scene_tokens, timestamps, strict=True)
    return [old == new and before < after for (old, before), (new, after) in zip(past, now, strict=True)]


def select_rows(state: TemporalState, rows: Sequence[int]) -> TemporalState:
    """Returns the state with the named rows, in that order.

    Args:
        state: of B frames.
        rows: places in [0, B).
    """
    index = list(rows)
    return TemporalState(
        bev_embed=state.bev_embed[index],
        can_bus=state.can_bus[index],
        scene_tokens=[state.scene_tokens[row] for row in index],
        timestamps=[state.timestamps[row] for row in index],
    )


def update_rows(
    state: TemporalState | None, new: TemporalState, rows: Sequence[int], batch_size: int
) -> TemporalState:
    """Returns the state of a whole batch after some of its rows have a new frame.

    Args:
        state: of the batch before; None: no row has a past.
        new: of the rows with a new frame.
        rows: which rows of the batch those are.
        batch_size: B.
    """
    if list(rows) == list(range(batch_size)):
        return new
    if state is None:
        state = TemporalState(
            bev_embed=new.bev_embed.new_zeros(batch_size, *new.bev_embed.shape[1:]),
            can_bus=new.can_bus.new_zeros(batch_size, new.can_bus.shape[1]),
            scene_tokens=[NO_SCENE] * batch_size,
            timestamps=[0] * batch_size,
        )
    merged = select_rows(state, range(batch_size))  # a copy
    for source, row in enumerate(rows):
        merged.bev_embed[row] = new.bev_embed[source]
        merged.can_bus[row] = new.can_bus[source]
        merged.scene_tokens[row] = new.scene_tokens[source]
        merged.timestamps[row] = new.timestamps[source]
    return merged


class SceneMemory:
    """States of a stream of frames, by scene; scenes that are not in the latest batch are dropped."""

    def __init__(self) -> None:
        self._states: dict[str, TemporalState] = {}

    def recall(self, scene_tokens: Sequence[str]) -> TemporalState | None:
        """Returns the stored states of scenes as one state; None where none is stored.

        Args:
            scene_tokens: of the rows; those of unknown scenes have no past.
        """
        state = None
        for row, scene in enumerate(scene_tokens):
            if scene in self._states:
                state = update_rows(state, self._states[scene], [row], len(scene_tokens))
        return state

    def store(self, state: TemporalState) -> None:
        """Replaces the stored states of the scenes of a state.

        Args:
            state: of B frames, one for each scene.
        """
        for row, scene in enumerate(state.scene_tokens):
            self._states[scene] = select_rows(state, [row])

    def forget_others(self, scene_tokens: Sequence[str]) -> None:
        """Drops the states of all other scenes.

        Args:
            scene_tokens: of the scenes that stay.
        """
        self._states = {scene: self._states[scene] for scene in scene_tokens if scene in self._states}


def split_by_time(scene_tokens: Sequence[str]) -> list[list[int]]:
    """Splits a batch so that frames of one scene follow each other.

    Args:
        scene_tokens: of the batch's rows, whose order in a scene is that of time.

    Returns:
        Lists of rows, each with one frame per scene at most, in order.
    """
    waves: list[list[int]] = []
    seen: dict[str, int] = {}
    for row, scene in enumerate(scene_tokens):
        wave = seen.get(scene, 0)
        seen[scene] = wave + 1
        if wave == len(waves):
            waves.append([])
        waves[wave].append(row)
    return waves


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts every module into eval mode, and afterwards back into the mode that it was in.

    The flags are set without calling ``train()``, on whose call a model may act.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training
