from mykd import backbone, cell_similarity, depth_hint, format, hook, importer, monocular, multi_view

__all__ = [
    "backbone",
    "cell_similarity",
    "depth_hint",
    "format",
    "hook",
    "importer",
    "monocular",
    "multi_view",
]
