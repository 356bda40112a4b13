"""The detections that evaluations stored, with the frames that they are of: for pictures without a model."""

from bevkd2.data.stored.frames import MonoStoredFrames, Scene, StoredFrames

__all__ = ["MonoStoredFrames", "Scene", "StoredFrames"]
