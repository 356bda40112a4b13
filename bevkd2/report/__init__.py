"""Pages about runs and experiments: curves, scores, pictures and settings in one HTML file."""

from bevkd2.report.page import Source, render
from bevkd2.report.runs import Run, read_runs, run_folders

__all__ = ["Run", "Source", "read_runs", "render", "run_folders"]
