"""Every hyper-parameter of preset `default`, and the preset itself; all of it ours."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from learner.analytic import memory_bytes
from learner.errors import ConfigError

MIB = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveConfig:
    """All that, with the log, decides the state of the learner of preset `default`."""

    input_shape: tuple[int, ...]
    """One sample: (C, H, W), (T, C) or (D,)."""
    budget: float = 20.0
    """Sample-gradients spent per arriving sample: one forward of one sample through one network is
    1, a backward 2. 0 trains no network: the analytic memory alone learns, and nothing expands."""
    statistics_bytes: int = 64 * MIB
    """Bytes of the analytic memory's sums; sets the number of features, hence of filters. The
    active expert's own sums take a quarter of it on top."""
    capacity: int | None = None
    """Most samples in the replay buffer; None: as many as `replay_bytes` hold."""
    replay_bytes: int = 1024 * MIB
    """Bytes of the replay buffer, its cache of tokens counted."""
    source_share: float = 0.25
    """Most of the replay buffer that one of several sources takes from the others; 1 / sources
    where that is more. 1: whoever writes most has most."""
    false_expansion_probability: float = 0.01
    """alpha: chance of a false expansion within `horizon` samples of an unchanging stream."""
    horizon: int = 100_000
    """N, samples."""
    max_experts: int = 32
    """Most experts; an expansion beyond is refused and counted."""
    fusion: Literal["none", "fixed", "gated"] = "gated"
    """How features of a frozen expert enter the active one (dynamic knowledge fusion)."""
    learning_rate: float = 1e-3
    """Step size of AdamW."""
    expansion: bool = True
    """Whether new experts are added at all; off for ablations."""
    fit_samples: int = 200
    """Samples after which the tokenizer is fitted, if three classes or none were seen."""
    seed: int = 0
    """Seed of the learner's own generator."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        shape = self.input_shape
        _require(
            len(shape) in (1, 2, 3) and min(shape) >= 1, "input_shape", "1 to 3 extents", shape
        )
        _require(0 <= self.budget < math.inf, "budget", ">= 0 and finite", self.budget)
        _require(
            self.statistics_bytes >= MIB, "statistics_bytes", f">= {MIB}", self.statistics_bytes
        )
        _require(self.capacity is None or self.capacity >= 10, "capacity", ">= 10", self.capacity)
        _require(self.replay_bytes >= MIB, "replay_bytes", f">= {MIB}", self.replay_bytes)
        _require(0 < self.source_share <= 1, "source_share", "> 0, <= 1", self.source_share)
        alpha = self.false_expansion_probability
        _require(0 < alpha < 1, "false_expansion_probability", "between 0 and 1", alpha)
        _require(self.horizon >= 1, "horizon", ">= 1", self.horizon)
        _require(self.max_experts >= 1, "max_experts", ">= 1", self.max_experts)
        _require(0 < self.learning_rate <= 1, "learning_rate", "> 0, <= 1", self.learning_rate)
        _require(self.fit_samples >= 20, "fit_samples", ">= 20", self.fit_samples)

    @property
    def features(self) -> int:
        """Most features of the analytic memory: what `statistics_bytes` hold."""
        return _features(self.statistics_bytes)

    @property
    def own_features(self) -> int:
        """Features of an expert's own read-out."""
        return min(2048, _features(max(MIB, self.statistics_bytes // 4)))

    def to_values(self) -> dict[str, Any]:
        """Return plain values from which `from_values` builds an equal configuration."""
        return {"preset": "default", **asdict(self), "input_shape": list(self.input_shape)}

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        """Return the configuration that `to_values` described."""
        own = {name: value for name, value in values.items() if name != "preset"}
        return cls(**{**own, "input_shape": tuple(own["input_shape"])})


def _features(nbytes: int) -> int:
    """Return the largest multiple of 8 whose sums fit, 10 classes counted."""
    low, high = 8, 8 * math.isqrt(nbytes)
    while high - low > 8:
        middle = (low + high) // 16 * 8
        low, high = (middle, high) if memory_bytes(middle, 10) <= nbytes else (low, middle)
    return low


def _require(ok: bool, field: str, bound: str, value: object) -> None:  # noqa: FBT001  a check
    if not ok:
        raise ConfigError(f"{field} must be {bound}, got {value}")
