"""The one adapter to Detectron2: its names, from it where it is installed, else from ``bevkd2.d2.embedded``.

The provider is chosen once, at import; ``BEVKD2_D2=detectron2|embedded`` forces one, and ``PROVIDER`` names
it. So a repository that is built on Detectron2 finds bevkd2's models in the registries that it already uses.
"""

import importlib.util
import os

from bevkd2.d2.provider import DETECTRON2, choose_provider, explain_broken

_spec = importlib.util.find_spec("detectron2")

if choose_provider(os.environ, _spec) == DETECTRON2:
    try:
        from detectron2 import __version__ as _version
        from detectron2.config import CfgNode, configurable
        from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
        from detectron2.engine import hooks
        from detectron2.engine.hooks import (
            BestCheckpointer,
            CallbackHook,
            EvalHook,
            IterationTimer,
            LRScheduler,
            PeriodicCheckpointer,
            PeriodicWriter,
            TorchMemoryStats,
        )
        from detectron2.engine.train_loop import HookBase, SimpleTrainer, TrainerBase
        from detectron2.evaluation.evaluator import (
            DatasetEvaluator,
            DatasetEvaluators,
            inference_context,
            inference_on_dataset,
        )
        from detectron2.evaluation.testing import flatten_results_dict, print_csv_format, verify_results
        from detectron2.layers import ShapeSpec
        from detectron2.modeling import (
            BACKBONE_REGISTRY,
            META_ARCH_REGISTRY,
            Backbone,
            build_backbone,
            build_model,
        )
        from detectron2.solver import LRMultiplier, WarmupParamScheduler
        from detectron2.utils import comm
        from detectron2.utils.env import seed_all_rng
        from detectron2.utils.events import (
            CommonMetricPrinter,
            EventStorage,
            EventWriter,
            JSONWriter,
            TensorboardXWriter,
            get_event_storage,
            has_event_storage,
        )
        from detectron2.utils.file_io import PathManager
        from detectron2.utils.logger import (
            create_small_table,
            log_every_n_seconds,
            log_first_n,
            setup_logger,
        )
        from detectron2.utils.registry import Registry
    # an old Detectron2 on new libraries fails in each of these ways, e.g. 0.6 on Pillow 10
    except (ImportError, AttributeError, AssertionError, OSError) as _error:
        raise explain_broken(_error, _spec) from _error
    PROVIDER = f"detectron2 {_version}"
else:
    from bevkd2.d2.embedded import comm, hooks
    from bevkd2.d2.embedded.catalog import DatasetCatalog, MetadataCatalog
    from bevkd2.d2.embedded.config import CfgNode, configurable
    from bevkd2.d2.embedded.evaluation import (
        DatasetEvaluator,
        DatasetEvaluators,
        inference_context,
        inference_on_dataset,
    )
    from bevkd2.d2.embedded.events import EventStorage, get_event_storage, has_event_storage
    from bevkd2.d2.embedded.file_io import PathManager
    from bevkd2.d2.embedded.hooks import (
        BestCheckpointer,
        CallbackHook,
        EvalHook,
        IterationTimer,
        LRScheduler,
        PeriodicCheckpointer,
        PeriodicWriter,
        TorchMemoryStats,
    )
    from bevkd2.d2.embedded.logger import (
        create_small_table,
        log_every_n_seconds,
        log_first_n,
        setup_logger,
    )
    from bevkd2.d2.embedded.modeling import (
        BACKBONE_REGISTRY,
        META_ARCH_REGISTRY,
        Backbone,
        ShapeSpec,
        build_backbone,
        build_model,
    )
    from bevkd2.d2.embedded.registry import Registry
    from bevkd2.d2.embedded.results import flatten_results_dict, print_csv_format, verify_results
    from bevkd2.d2.embedded.scheduler import LRMultiplier, WarmupParamScheduler
    from bevkd2.d2.embedded.seed import seed_all_rng
    from bevkd2.d2.embedded.train_loop import HookBase, SimpleTrainer, TrainerBase
    from bevkd2.d2.embedded.writers import (
        CommonMetricPrinter,
        EventWriter,
        JSONWriter,
        TensorboardXWriter,
    )

    PROVIDER = "embedded"

__all__ = [
    "BACKBONE_REGISTRY",
    "META_ARCH_REGISTRY",
    "PROVIDER",
    "Backbone",
    "BestCheckpointer",
    "CallbackHook",
    "CfgNode",
    "CommonMetricPrinter",
    "DatasetCatalog",
    "DatasetEvaluator",
    "DatasetEvaluators",
    "EvalHook",
    "EventStorage",
    "EventWriter",
    "HookBase",
    "IterationTimer",
    "JSONWriter",
    "LRMultiplier",
    "LRScheduler",
    "MetadataCatalog",
    "PathManager",
    "PeriodicCheckpointer",
    "PeriodicWriter",
    "Registry",
    "ShapeSpec",
    "SimpleTrainer",
    "TensorboardXWriter",
    "TorchMemoryStats",
    "TrainerBase",
    "WarmupParamScheduler",
    "build_backbone",
    "build_model",
    "comm",
    "configurable",
    "create_small_table",
    "flatten_results_dict",
    "get_event_storage",
    "has_event_storage",
    "hooks",
    "inference_context",
    "inference_on_dataset",
    "log_every_n_seconds",
    "log_first_n",
    "print_csv_format",
    "seed_all_rng",
    "setup_logger",
    "verify_results",
]
