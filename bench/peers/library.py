"""Avalanche, and kornia for SCR, as they can be imported beside a CPU build of torch.

Two obstacles, both of the installation and none of the method: torchvision's compiled operators are
built for CUDA, and its import fails where they cannot be loaded; Avalanche imports wandb, of which
it uses nothing here.
"""

import importlib.util
import sys
import warnings
from types import ModuleType

import torch


def _make_torchvision_importable() -> None:
    try:
        importlib.import_module("torchvision")
    except RuntimeError:  # operator torchvision::nms does not exist
        for name in ("nms", "qnms"):
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", signature)


def _stand_in_for_wandb() -> None:
    if "wandb" not in sys.modules and importlib.util.find_spec("wandb") is None:
        sys.modules["wandb"] = ModuleType("wandb")


_make_torchvision_importable()
_stand_in_for_wandb()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # qpsolvers finds no solver; no method here needs one
    from avalanche.benchmarks.scenarios import OnlineCLExperience
    from avalanche.benchmarks.utils.classification_dataset import (
        _make_taskaware_tensor_classification_dataset as tensor_dataset,
    )
    from avalanche.models import SCRModel, SlimResNet18
    from avalanche.training import DER, ER_ACE, SCR, Naive, StreamingLDA
    from avalanche.training.plugins import (
        CoPEPlugin,
        EvaluationPlugin,
        GDumbPlugin,
        MIRPlugin,
        ReplayPlugin,
    )
    from avalanche.training.storage_policy import ReservoirSamplingBuffer
    from kornia import augmentation


def no_metrics() -> EvaluationPlugin:
    """Return what measures nothing during training, and does not warn that it does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return EvaluationPlugin()


__all__ = [
    "DER",
    "ER_ACE",
    "SCR",
    "CoPEPlugin",
    "GDumbPlugin",
    "MIRPlugin",
    "Naive",
    "OnlineCLExperience",
    "ReplayPlugin",
    "ReservoirSamplingBuffer",
    "SCRModel",
    "SlimResNet18",
    "StreamingLDA",
    "augmentation",
    "no_metrics",
    "tensor_dataset",
]
