"""Selects the provider of ``bevkd2.d2``: Detectron2 or the embedded subset."""

from collections.abc import Mapping
from importlib.machinery import ModuleSpec

SWITCH = "BEVKD2_D2"
DETECTRON2 = "detectron2"
EMBEDDED = "embedded"


def choose_provider(environ: Mapping[str, str], spec: ModuleSpec | None) -> str:
    """Chooses an engine.

    Args:
        environ: the environment; ``BEVKD2_D2`` forces one.
        spec: what ``importlib.util.find_spec("detectron2")`` found.

    Returns:
        ``detectron2`` or ``embedded``.

    Raises:
        ImportError: Detectron2 is wanted and is not installed.
        ValueError: the switch has another value.
    """
    # a mere folder of that name, such as a clone in the working directory, has a spec without an origin
    installed = spec is not None and spec.origin is not None
    wanted = environ.get(SWITCH) or (DETECTRON2 if installed else EMBEDDED)
    if wanted not in (DETECTRON2, EMBEDDED):
        raise ValueError(f"{SWITCH} is '{wanted}'; '{DETECTRON2}' and '{EMBEDDED}' are the known values")
    if wanted == DETECTRON2 and not installed:
        raise ImportError(
            f"{SWITCH}={DETECTRON2}, but Detectron2 is not installed; install it from "
            f"https://github.com/facebookresearch/detectron2, or unset {SWITCH} to use the embedded engine"
        )
    return wanted


def explain_broken(error: BaseException, spec: ModuleSpec | None) -> ImportError:
    """Describes a Detectron2 that is installed but does not import.

    Args:
        error: what its import raised.
        spec: where it is.

    Returns:
        The error to raise.
    """
    where = spec.origin if spec is not None else "unknown path"
    return ImportError(
        f"Detectron2 is installed ({where}) but cannot be used: {type(error).__name__}: {error}. Rebuild it "
        f"against the installed torch, uninstall it, or set {SWITCH}={EMBEDDED} to use the engine that comes "
        "with bevkd2"
    )
