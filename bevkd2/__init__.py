"""bevkd2: teaching small camera-based 3D detectors what large ones know."""

__version__ = "0.2.0"
