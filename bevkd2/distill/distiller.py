"""The meta-architecture around a frozen teacher and a student."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

import bevkd2
from bevkd2.checkpoint import check_stated_classes, load_file, load_strict
from bevkd2.checkpoint.io import model_state
from bevkd2.config import class_names, find_file, fixed_classes
from bevkd2.d2 import META_ARCH_REGISTRY, configurable
from bevkd2.distill.config import more_distillations, student_config, teacher_config, teacher_key
from bevkd2.distill.gradients import reaches
from bevkd2.distill.inherit import INIT_KEY, check_together, inherit, verify_inherited
from bevkd2.distill.methods import DISTILL_REGISTRY, DistillMethod
from bevkd2.distill.schedule import Progress, Schedule
from bevkd2.distill.teacher_cache import TeacherCache, teacher_identity
from bevkd2.modeling.detector import Detector
from bevkd2.modeling.knowledge import Knowledge

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclasses.dataclass(frozen=True)
class Teaching:
    """A teacher, and the methods by which the student learns from it."""

    teacher: Detector[Any, Any, Any]
    """Its weights loaded."""
    methods: Mapping[str, DistillMethod[Any]]
    """By name."""
    weights: Mapping[str, float]
    """Of each method."""
    schedules: Mapping[str, Schedule] = dataclasses.field(default_factory=dict)
    """Of the weights, by method; 1 throughout for a method without one."""
    dtype: torch.dtype = torch.float32
    """Autocast type of the teacher's forward pass; float32 switches autocast off."""
    cache: TeacherCache | None = None
    """Keeps its knowledge of each training sample; None: it runs in every step."""

    @property
    def wants(self) -> frozenset[str]:
        """Returns the fields of the knowledge that the methods require."""
        return frozenset[str]().union(*(method.requires for method in self.methods.values()))


@META_ARCH_REGISTRY.register()
class Distiller(nn.Module):
    """Trains a student on its own losses and on the knowledge of a frozen teacher.

    total = detection losses + ``factor`` * sum over methods of ``weight`` * loss

    This is Eq. 9 of structured distillation and Eq. 7 of depth-guided distillation. Factor and weights may
    change during training by their schedules.

    The teacher computes nothing but the fields that the methods require.

    The teacher is not a registered submodule: it moves with ``.to``, but is in no state dict, no optimizer
    and no DDP bucket; it is in eval mode and without gradient whether ``.train()`` is called or not. In eval
    mode the Distiller returns the student's detections.

    There may be several teachers, each with its methods. The first is the one whose parameters are inherited.

    A subclass that is registered in ``META_ARCH_REGISTRY`` is a distillation as this class is.

    Args:
        student: a detector.
        teacher: another detector, its weights loaded.
        methods: distillation methods by name.
        weights: each method's weight.
        schedules: of the weights, by method; 1 throughout for a method without one.
        factor: multiplies all weights; 0.01 in structured distillation, 1 in depth-guided, which has none.
        factor_schedule: of the factor.
        teacher_dtype: autocast type of the teacher's forward pass; float32 switches autocast off.
        teacher_cache: keeps its knowledge of each training sample; None: it runs in every step.
        share_augmentation: the student's own augmentation, such as its GridMask, is the teacher's too.
        inherit_mode, inherit_params, inherit_resize: see :func:`bevkd2.distill.inherit.inherit`.
        inherit_init: prefixes of the student's parameters that start as the teacher's and are trained.
        more_teachers: further teachers by name; their methods and losses are named ``<teacher>_<name>``.

    Raises:
        ValueError: a method on a detector whose knowledge it cannot read, or parameters that cannot be
            inherited.
    """

    @configurable
    def __init__(
        self,
        *,
        student: Detector[Any, Any, Any],
        teacher: Detector[Any, Any, Any],
        methods: Mapping[str, DistillMethod[Any]],
        weights: Mapping[str, float],
        schedules: Mapping[str, Schedule] | None = None,
        factor: float = 0.01,
        factor_schedule: Schedule = Schedule(),  # noqa: B008  (immutable)
        teacher_dtype: torch.dtype = torch.float32,
        teacher_cache: TeacherCache | None = None,
        share_augmentation: bool = True,
        inherit_mode: str = "off",
        inherit_params: Sequence[str] = (),
        inherit_resize: str = "",
        inherit_init: Sequence[str] = (),
        more_teachers: Mapping[str, Teaching] | None = None,
    ) -> None:
        super().__init__()
        self.student: Detector[Any, Any, Any] = student
        first = Teaching(teacher, methods, weights, schedules or {}, teacher_dtype, teacher_cache)
        # Not modules: teachers are in no state dict, optimizer or DDP bucket.
        self._teachings = {"": first, **(more_teachers or {})}
        self.methods, self.weights, self.schedules = (
            nn.ModuleDict(),
            dict[str, float](),
            dict[str, Schedule](),
        )
        for prefix, teaching in self._teachings.items():
            self._add(prefix, teaching)
        self.wants = frozenset[str]().union(*(teaching.wants for teaching in self._teachings.values()))
        self.factor, self.factor_schedule = factor, factor_schedule
        self.progress = Progress()
        self.share_augmentation = share_augmentation
        self.inherit_mode = inherit_mode
        self.inherit_resize = inherit_resize
        self._values_to_log: dict[str, Tensor] = {}
        self.look_for_unreached, self._unreached = False, list[str]()
        kept = inherit(student, teacher, inherit_params, inherit_mode, inherit_resize)
        started = inherit(student, teacher, inherit_init, "init", inherit_resize, INIT_KEY)
        _check_inherited(student, kept, started, [*inherit_params, *inherit_init])
        student.check_inherited(teacher, [*kept, *started])
        self.inherited = tuple(kept)
        for teaching in self._teachings.values():
            for method in teaching.methods.values():
                method.attach(student, teaching.teacher)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Builds student, teacher (loaded, every key matched) and methods from a config.

        Args:
            cfg: of the distillation.

        Returns:
            The constructor's arguments.

        Raises:
            ValueError: MODEL.WEIGHTS together with an inheritance that would fill the same
                parameters.
        """
        node = cfg.DISTILL
        for key, used in (
            ("MODE init", node.INHERIT.MODE == "init"),
            ("INIT_PARAMS", node.INHERIT.INIT_PARAMS),
        ):
            if used and cfg.MODEL.WEIGHTS:
                raise ValueError(
                    f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} would overwrite what DISTILL.INHERIT.{key} takes "
                    "from the teacher; leave one of them out"
                )
        student = _build(student_config(cfg))
        first = _build_teaching(cfg, student)
        return {
            "student": student,
            "teacher": first.teacher,
            "methods": first.methods,
            "weights": first.weights,
            "schedules": first.schedules,
            "factor": node.FACTOR,
            "factor_schedule": Schedule(node.WARMUP, node.DECAY),
            "teacher_dtype": first.dtype,
            "teacher_cache": first.cache,
            "more_teachers": {
                name: _build_teaching(one, student) for name, one in more_distillations(cfg).items()
            },
            "share_augmentation": node.SHARE_AUGMENTATION,
            "inherit_mode": node.INHERIT.MODE,
            "inherit_params": node.INHERIT.PARAMS,
            "inherit_resize": node.INHERIT.RESIZE,
            "inherit_init": node.INHERIT.INIT_PARAMS,
        }

    def _named_methods(self) -> Iterator[tuple[str, DistillMethod[Any]]]:
        for name, method in self.methods.items():
            yield name, cast("DistillMethod[Any]", method)

    def _add(self, prefix: str, teaching: Teaching) -> None:
        """Takes over the methods of a teacher, which is frozen."""
        teaching.teacher.requires_grad_(False).eval()
        for name, method in teaching.methods.items():
            unique = _prefixed(prefix, name)
            self.methods[unique] = method
            self.weights[unique] = teaching.weights[name]
            if name in teaching.schedules:
                self.schedules[unique] = teaching.schedules[name]

    def set_progress(self, iteration: int, max_iter: int) -> None:
        """Tells the schedules and the methods which iteration comes next; the trainer calls it.

        Args:
            iteration: counted from 0.
            max_iter: one past the last one.
        """
        self.progress = Progress(iteration, max_iter)
        for _, method in self._named_methods():
            method.progress = self.progress

    @property
    def teacher(self) -> Detector[Any, Any, Any]:
        """Returns the frozen teacher, the first where there are several."""
        return self._teachings[""].teacher

    @property
    def teachers(self) -> list[Detector[Any, Any, Any]]:
        """Returns all frozen teachers."""
        return [teaching.teacher for teaching in self._teachings.values()]

    @property
    def caches(self) -> list[TeacherCache]:
        """Returns the caches of the teachers that have one."""
        return [teaching.cache for teaching in self._teachings.values() if teaching.cache is not None]

    @property
    def device(self) -> torch.device:
        """Returns the device of the student."""
        return next(self.student.parameters()).device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Returns weighted losses by name in training, the student's detections in eval mode.

        Args:
            batched_inputs: samples as the mapper emits them.
        """
        if not self.training:
            found: list[dict[str, Any]] = self.student(batched_inputs)
            return found
        samples = self.student.augment(batched_inputs)
        taught = {
            name: self._run_teacher(name, teaching, batched_inputs, samples)
            for name, teaching in self._teachings.items()
        }
        inputs = self.student.preprocess(samples)
        knowledge = self.student.extract(inputs, self.wants)
        targets = self.student.targets(samples, inputs)
        losses = dict(self.student.losses(knowledge, targets))
        return losses | self._distill(knowledge, taught, targets)

    def _run_teacher(
        self,
        name: str,
        teaching: Teaching,
        batched_inputs: Sequence[Mapping[str, Any]],
        augmented: Sequence[Mapping[str, Any]],
    ) -> Knowledge:
        teacher, mixed = teaching.teacher.eval(), teaching.dtype != torch.float32
        autocast = torch.autocast(self.device.type, dtype=teaching.dtype if mixed else None, enabled=mixed)

        def run(samples: Sequence[Mapping[str, Any]]) -> Knowledge:
            knowledge: Knowledge = teacher.extract_only(teacher.preprocess(samples), teaching.wants)
            return knowledge

        with torch.no_grad(), autocast:
            samples = self._teacher_samples(teacher_key(name), batched_inputs, augmented)
            if teaching.cache is not None:
                return teaching.cache.knowledge(samples, teaching.wants, run, self.device)
            return run(samples)

    def _teacher_samples(
        self, key: str, batched_inputs: Sequence[Mapping[str, Any]], augmented: Sequence[Mapping[str, Any]]
    ) -> list[Mapping[str, Any]]:
        """Returns the teacher's own samples where there are any, with the student's augmentation."""
        samples = []
        for plain, sample in zip(batched_inputs, augmented, strict=True):
            own = plain.get(key)
            if own is None:
                own = sample if self.share_augmentation else plain
            elif self.share_augmentation:
                own = self.student.copy_augmentation(sample, own)
            samples.append(own)
        return samples

    def _distill(
        self, student: Knowledge, taught: Mapping[str, Knowledge], targets: Any
    ) -> dict[str, Tensor]:
        """Returns the weighted losses of all methods, and keeps the unweighted values for the log."""
        self._values_to_log = {}
        weighted: dict[str, Tensor] = {}
        factor = self.factor * self.factor_schedule.factor(self.progress)
        for prefix, kind in ((p, n) for p, teaching in self._teachings.items() for n in teaching.methods):
            name, teacher = _prefixed(prefix, kind), taught[prefix]
            method = cast("DistillMethod[Any]", self.methods[name])
            _check_filled(name, method, "student", student)
            _check_filled(name, method, "teacher", teacher)
            losses = method(student, teacher, targets)
            weight = factor * self.weights[name]
            if name in self.schedules:
                weight *= self.schedules[name].factor(self.progress)
            if isinstance(losses, Tensor):
                losses = {method.node.lower(): losses}
            for key, loss in ((_prefixed(prefix, key), loss) for key, loss in losses.items()):
                if f"loss_distill_{key}" in weighted:
                    raise ValueError(
                        f"DISTILL.METHODS: {name} returns a loss {key!r}, which another method has "
                        "returned already; a loss needs a name of its own"
                    )
                weighted[f"loss_distill_{key}"] = weight * loss
                self._values_to_log[f"distill_raw/{key}"] = loss.detach()
                if self.look_for_unreached and not reaches(loss, self.student.backbone_parameters()):
                    self._unreached.append(f"{name} ({key})")
        self.look_for_unreached = False
        return weighted

    def pop_unreached(self) -> list[str]:
        """Returns the losses whose gradient did not reach the backbone when it was last looked for.

        Setting ``look_for_unreached`` to True lets the next forward pass look for it, once.
        """
        found, self._unreached = self._unreached, []
        return found

    def pop_values_to_log(self) -> dict[str, Tensor]:
        """Returns the unweighted losses of the last forward pass, detached and still on the device.

        The trainer copies them to the CPU together with the losses of the step, so that the device is not
        waited for twice.
        """
        values, self._values_to_log = self._values_to_log, {}
        return values

    def verify_inherited(self) -> None:
        """Checks that frozen, inherited parameters equal the teacher's; raises RuntimeError where not."""
        if self.inherit_mode == "freeze":
            verify_inherited(self.student, self.teacher, self.inherited, self.inherit_resize)

    def checkpoint_parts(self) -> dict[str, nn.Module]:
        """Returns what a checkpoint holds: the plain student, and the methods' adapters."""
        return {"model": self.student, "distill": self.methods}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distiller:
        for teacher in self.teachers:
            teacher._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved: Distiller = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return moved


def _build_teaching(cfg: CfgNode, student: Detector[Any, Any, Any]) -> Teaching:
    """Builds the teacher that ``cfg.DISTILL.TEACHER`` names, and the methods of ``cfg.DISTILL.METHODS``."""
    node = cfg.DISTILL
    for key in ("DTYPE", "CACHE_DTYPE"):
        if node.TEACHER[key] not in _DTYPES:
            raise ValueError(
                f"DISTILL.TEACHER.{key}: {node.TEACHER[key]!r} is not one of {', '.join(_DTYPES)}"
            )
    classes = {name: DISTILL_REGISTRY.get(name) for name in node.METHODS}
    teacher = build_teacher(cfg)
    shapes = student.feature_shapes(), teacher.feature_shapes()
    return Teaching(
        teacher=teacher,
        methods={name: method(node[method.node], *shapes) for name, method in classes.items()},
        weights={name: node[method.node].WEIGHT for name, method in classes.items()},
        schedules={
            name: Schedule(node[method.node].WARMUP, node[method.node].DECAY, f"DISTILL.{method.node}")
            for name, method in classes.items()
        },
        dtype=_DTYPES[node.TEACHER.DTYPE],
        cache=_build_cache(cfg, teacher) if node.TEACHER.CACHE and node.METHODS else None,
    )


def _build_cache(cfg: CfgNode, teacher: Detector[Any, Any, Any]) -> TeacherCache:
    node, config = cfg.DISTILL.TEACHER, teacher_config(cfg)
    config.MODEL.WEIGHTS, config.MODEL.DEVICE = "", ""
    settings = (
        f"{bevkd2.__version__} {node.DTYPE} {node.CACHE_DTYPE}\n{config.MODEL.dump()}{config.INPUT.dump()}"
    )
    return TeacherCache(Path(node.CACHE), teacher_identity(teacher, settings), _DTYPES[node.CACHE_DTYPE])


def _prefixed(teacher: str, name: str) -> str:
    return f"{teacher}_{name}" if teacher else name


def build_teacher(cfg: CfgNode) -> Detector[Any, Any, Any]:
    """Builds the teacher that ``cfg.DISTILL.TEACHER`` names and loads its weights, every key matched.

    Raises:
        ValueError: no weights are named, or they are not this architecture's (keys are named), or they were
            trained with other classes.
        FileNotFoundError: the weights are not there.
    """
    config = teacher_config(cfg)
    if not config.MODEL.WEIGHTS:
        raise ValueError(
            "DISTILL.TEACHER.WEIGHTS is empty; name the teacher's checkpoint (.pth or .safetensors)"
        )
    path = str(find_file(config.MODEL.WEIGHTS))  # assets/... is shipped
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"DISTILL.TEACHER.WEIGHTS: {path} does not exist; train the teacher's config with "
            "`bevkd2 train`, or convert published weights with `bevkd2 import-weights`"
        )
    teacher = _build(config)
    content, source = load_file(path), f"DISTILL.TEACHER.WEIGHTS {path}"
    check_stated_classes(content, class_names(config), source, fixed=bool(fixed_classes(config)))
    load_strict(teacher, model_state(content, path), source)
    count = sum(1 for _ in teacher.state_dict())
    logging.getLogger(__name__).info("teacher: all %d tensors of %s loaded", count, path)
    return teacher


def _check_filled(name: str, method: DistillMethod[Any], role: str, knowledge: Knowledge) -> None:
    empty = sorted(field for field in method.requires if getattr(knowledge, field) is None)
    if empty:
        raise ValueError(
            f"DISTILL.METHODS: {name} requires {', '.join(empty)}, which the {role} left empty; leave {name} "
            f"out, or let the {role}'s extract() fill it"
        )


def _check_inherited(
    student: nn.Module,
    kept: Mapping[str, tuple[Tensor, Tensor]],
    started: Mapping[str, tuple[Tensor, Tensor]],
    named: Sequence[str],
) -> None:
    """Checks what both lists of inherited tensors name together."""
    taken = {id(target) for target, _ in kept.values()}
    if twice := sorted(name for name, (target, _) in started.items() if id(target) in taken):
        raise ValueError(
            f"{INIT_KEY} names {twice[0]}, which DISTILL.INHERIT.PARAMS names too; a parameter is either "
            "frozen or trained: leave it out of one of them"
        )
    targets = {name: target for name, (target, _) in {**kept, **started}.items()}
    check_together(student, targets, named)


def _build(cfg: CfgNode) -> Detector[Any, Any, Any]:
    model: Detector[Any, Any, Any] = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    return model
