"""What can be watched of a learner of either preset, in plain values."""

from dataclasses import asdict

import torch
from torch import Tensor, nn

import learner
from service.engine.protocol import ExpertInfo, Label, Summary


def summary(levit: learner.LEViT | learner.AdaptiveLEViT) -> Summary:
    """Return what can be watched of it."""
    if isinstance(levit, learner.AdaptiveLEViT):
        return _default(levit)
    return _paper(levit)


def losses(levit: learner.LEViT | learner.AdaptiveLEViT) -> dict[str, float]:
    """Return the loss terms of the newest entry that there are, in nats."""
    terms = asdict(levit.losses)
    return {name: value for name, value in terms.items() if value is not None}


def _default(levit: learner.AdaptiveLEViT) -> Summary:
    counts, mixture, growth, known = levit.counts, levit.mixture, levit.growth, levit.knowledge
    unlabelled, by_class = _members(
        torch.cat([*(part.y_B for part in levit.pending), levit.replay.y_S[: len(levit.replay)]]),
        mixture.classes,
    )
    experts = tuple(_adaptive_info(expert, mixture.classes) for expert in mixture.experts)
    accuracies = known.marks.part_accuracy if known is not None else ()
    return Summary(
        step=counts.step,
        samples_learned=counts.samples,
        samples_labelled=counts.labelled,
        samples_correct=counts.correct,
        classes=tuple(mixture.classes),
        experts=experts,
        expansions=counts.expansions,
        expansions_refused={
            "max_experts": counts.refused_max_experts,
            "one_source": growth.witnesses.refused,
        },
        novelty=growth.novelty if growth.scorer is not None else None,
        threshold=growth.threshold,
        prequential_accuracy=levit.accuracy.accuracy,
        prequential_by_class=tuple(levit.accuracy.class_accuracy),
        replay_capacity=levit.replay.capacity,
        replay_by_class=by_class,
        replay_unlabelled=unlabelled,
        loss=losses(levit),
        parameters=sum(expert.parameters for expert in experts),
        state_bytes=levit.state_bytes,
        sample_gradients=counts.spent,
        part_weight=mixture.trust,
        part_accuracy=dict(zip(learner.PARTS, accuracies, strict=False)),
        held_out_samples=known.marks.held if known is not None else 0,
        overruled=mixture.overruled,
    )


def _paper(levit: learner.LEViT) -> Summary:
    counts, memory, mixture = levit.counts, levit.memory, levit.mixture
    unlabelled, by_class = _members(memory.y_M[: len(memory)], mixture.classes)
    experts = tuple(
        _info(life, [mixture.classes[k] for k in life.classes], network)
        for life, network in zip(mixture.lives, mixture.ordered, strict=True)
    )
    shared = sum(p.numel() for p in mixture.backbone.parameters())
    return Summary(
        step=counts.step,
        samples_learned=counts.samples,
        samples_labelled=counts.labelled,
        samples_correct=counts.correct,
        classes=tuple(mixture.classes),
        experts=experts,
        expansions=counts.expansions,
        expansions_refused={"max_experts": counts.refused_max_experts},
        novelty=levit.novelty,
        threshold=levit.config.expansion.threshold,
        prequential_accuracy=levit.accuracy.accuracy,
        prequential_by_class=tuple(levit.accuracy.class_accuracy),
        replay_capacity=memory.capacity,
        replay_by_class=by_class,
        replay_unlabelled=unlabelled,
        loss=losses(levit),
        parameters=shared + sum(expert.parameters for expert in experts),
        state_bytes=sum(t.nbytes for t in learner.dump(levit).tensors.values()),
    )


def _members(y_M: Tensor, classes: list[Label]) -> tuple[int, tuple[int, ...]]:
    """Return how many members have no label, and how many there are of each class."""
    unlabelled, *by_class = torch.bincount(y_M + 1, minlength=len(classes) + 1).tolist()
    return unlabelled, tuple(by_class)


def _adaptive_info(expert: learner.AdaptiveExpert, classes: list[Label]) -> ExpertInfo:
    """Return the facts of an expert of preset `default` and why it was born."""
    known = classes[: len(expert.network.head.bias_K)]
    return _info(
        expert.life, known, nn.ModuleList([expert.network, expert.vae]), cause=expert.expansion
    )


def _info(
    life: learner.Life,
    classes: list[Label],
    networks: nn.Module,
    *,
    cause: learner.Expansion | None = None,
) -> ExpertInfo:
    weights = list(networks.parameters())
    return ExpertInfo(
        id=life.id,
        state="active" if life.frozen_step is None else "frozen",
        born_step=life.born_step,
        frozen_step=life.frozen_step,
        novelty=life.novelty,
        cause=None if cause is None else cause.cause,
        threshold=None if cause is None else cause.threshold,
        p_value=None if cause is None else cause.p_value,
        samples=life.samples,
        classes=tuple(classes),
        parameters=sum(p.numel() for p in weights),
        bytes=sum(p.nbytes for p in weights),
    )
