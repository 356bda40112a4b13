"""Describes the machine of a benchmark."""

import os
import platform
import re
from pathlib import Path


def machine() -> dict[str, str | int]:
    """Returns processor, threads, GPU and torch's version."""
    import torch  # here: gpu_check.py may run in a Python without torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "torch": torch.__version__,
    }


def machine_name(device: str) -> str:
    """Returns the name of the result files of a machine: the GPU, or the processor and its cores."""
    if device.startswith("cuda"):
        import torch

        return slug(torch.cuda.get_device_name())
    cores = len(os.sched_getaffinity(0))
    return slug(f"{re.sub(r'@.*|[(](R|TM)[)]|CPU|Processor', ' ', _processor())} {cores} cores")


def slug(text: str) -> str:
    """Converts a text to a file name of lower-case letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
