"""The detections that evaluations stored, with the frames that they are of: for pictures without a model."""

from bevkd2.data.stored.frames import MonoStoredFrames, StoredFrames

__all__ = ["MonoStoredFrames", "StoredFrames"]
