"""The same stream on a GPU: other bits, but the same counts and the same experts."""

import numpy as np
import pytest
import torch

from service.engine.levit import LevitEngine, LevitEngines
from service.engine.protocol import Array, ExpertInfo, Members, Summary
from service.inputs import InputSchema
from service.settings import Settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, found none"),
]

ENGINES = LevitEngines(threads=1)
SCHEMA = InputSchema.parse("image:8x8x1")
BATCHES, PER_CLASS = 12, 4


def settings(device: str) -> Settings:
    return Settings.read(
        preset="paper",
        capacity=10,
        replay_per_batch=22,
        threshold=4.0,
        learning_rate=3e-3,
        device=device,
    )


def batch(number: int) -> tuple[Array, Array]:
    """Return 10 images of one class, a pattern plus noise; novelties lie far from the threshold."""
    k = number // PER_CLASS
    pattern = np.random.default_rng(1000 + k).integers(0, 200, SCHEMA.shape)
    noise = np.random.default_rng(number).integers(0, 50, (10, *SCHEMA.shape))
    return (pattern + noise).astype(np.uint8), np.full(10, k)


def observed(engine: LevitEngine, numbers: range) -> LevitEngine:
    for number in numbers:
        engine.observe((number + 1, 0), *batch(number))
    return engine


def stopped_and_restored(engine: LevitEngine, device: str) -> LevitEngine:
    state = engine.dump()
    samples = [batch(entry - 1)[0][index] for entry, index in state.members.tolist()]
    members = Members(x=samples, labels=[None] * len(samples))
    return ENGINES.restore(settings(device), state, members)


def counters(summary: Summary) -> tuple[object, ...]:
    return (
        summary.step,
        summary.samples_learned,
        summary.samples_labelled,
        summary.classes,
        summary.expansions,
        summary.replay_by_class,
        summary.parameters,
        summary.state_bytes,
    )


def life(expert: ExpertInfo) -> tuple[object, ...]:
    """Return what does not hang on rounding."""
    return expert.id, expert.state, expert.born_step, expert.samples, expert.classes


def test_a_gpu_learns_stops_and_goes_on_with_the_counts_and_experts_of_the_cpu() -> None:
    on_cpu = observed(ENGINES.create(settings("cpu"), SCHEMA), range(BATCHES))
    on_gpu = observed(ENGINES.create(settings("cuda"), SCHEMA), range(BATCHES // 2))

    on_gpu = observed(stopped_and_restored(on_gpu, "cuda"), range(BATCHES // 2, BATCHES))

    cpu, gpu = on_cpu.summary(), on_gpu.summary()
    assert counters(gpu) == counters(cpu)
    assert [life(expert) for expert in gpu.experts] == [life(expert) for expert in cpu.experts]
    assert len(gpu.experts) == 4
    answer = ENGINES.predictor(on_gpu.dump()).predict(batch(0)[0])
    assert set(answer.experts.tolist()) <= {expert.id for expert in gpu.experts}
    np.testing.assert_allclose(answer.probabilities.sum(1), 1, rtol=1e-5)
