"""Why samples are answered as they are: who had a say, and where in an image it comes from.

Roll-out (Abnar & Zuidema 2020): of a network whose layers i attend with A_i, the mean over heads,
each output token is of the input tokens the product of 0.5 (A_i + I); the answer reads the mean of
the output tokens. Contributions of the analytic memory, ours: see `learner.places`.
Dimension key: B batch, E experts, M parts, K classes, R renditions, N tokens, D features.
"""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from learner.adaptive_mixture import ALL, PARTS, AdaptiveExpert, AdaptiveMixture, Answer
from learner.mixture import Mixture
from learner.places import cells, contributions
from learner.report import Explanation, Heat, HeatKind
from learner.samples import checked_samples
from learner.tokenizer import TOKEN_STEP
from learner.view import compact
from learner.vit import AttentionModule, PatchBackbone

_MEMORY, _OWN, _NETWORK, _ROUTED, _ = range(len(PARTS))


class _Said(NamedTuple):
    """What answers one sample of preset `default`."""

    part: int | None
    """Index of the part that decides; None: read-outs that forget overrule all parts."""
    routed: AdaptiveExpert
    column: int
    """Of the answered class."""


@torch.no_grad()
def explain(mixture: Mixture | AdaptiveMixture, x: Tensor) -> Explanation:
    """Return why samples [B, ...] are answered as `predict` answers them; changes nothing.

    Raises:
        ShapeError: the samples do not fit.
    """
    x = checked_samples(x, mixture.config.input_shape).to(mixture.device)
    if isinstance(mixture, Mixture):
        return _of_paper(mixture, x)
    if mixture.encoder is None:
        return _of_nothing_fitted(mixture, len(x))
    return _of_default(mixture, x, mixture.answer(mixture.encoder(x)))


@torch.no_grad()
def features(mixture: Mixture | AdaptiveMixture, x: Tensor) -> Tensor:
    """Return what tells samples [B, ...] apart, float32 [B, D]: near ones look alike to it.

    In preset `default` what the analytic memory reads, in `paper` the features of all experts.

    Raises:
        ShapeError: the samples do not fit.
    """
    x = checked_samples(x, mixture.config.input_shape).to(mixture.device)
    if isinstance(mixture, Mixture):
        return mixture.evidence(mixture.scaler(x)).features_BED.flatten(1).cpu()
    if mixture.encoder is None:
        return compact(x).cpu()
    return mixture.encoder(x).features_BF.cpu()


def rolled_out(weights: Sequence[Tensor]) -> Tensor:
    """Return how much of each input token the mean of the output tokens is, [B, N]; rows sum to 1.

    Args:
        weights: of each layer [B, N, N], the lowest first; rows sum to 1.
    """
    own = torch.eye(weights[0].shape[1], device=weights[0].device)
    return reduce(lambda below, layer: 0.5 * (layer + own) @ below, weights, own).mean(1)


def _of_paper(mixture: Mixture, x: Tensor) -> Explanation:
    """Of the answering expert's feature its own is one part, the gated ones of others another."""
    scaled = mixture.scaler(x)
    evidence = mixture.evidence(scaled)
    routed_B = mixture.route(evidence.scores_BE)
    weights_BE = torch.zeros_like(evidence.scores_BE)
    heat: list[Heat | None] = []
    for b, index in enumerate(routed_B.tolist()):
        fusion = mixture.ordered[index].fusion
        weights_BE[b, index] = 1
        if index and fusion.kind != "none":
            weights_BE[b, :index] = fusion.gate(evidence.features_BED[b : b + 1, :index])[0]
        heat.append(_attended(mixture, index, scaled[b : b + 1]))
    score_B = evidence.scores_BE.gather(1, routed_B[:, None]).squeeze(1)
    return Explanation(
        ids=[life.id for life in mixture.lives],
        weights_BE=(weights_BE / weights_BE.sum(1, keepdim=True)).cpu(),
        parts=[{"network": 1.0}] * len(x),
        novelty_B=-score_B.cpu() / x[0].numel(),
        heat=heat,
    )


def _attended(mixture: Mixture, index: int, x_1: Tensor) -> Heat | None:
    """Return the roll-out of an expert over backbone and own attention; None where it has none."""
    shared, own = mixture.backbone, mixture.ordered[index].features
    if not isinstance(shared, PatchBackbone) or not isinstance(own, AttentionModule):
        return None
    below_1ND = shared.embedded(x_1)
    weights = [
        shared.block.attention.weights(below_1ND),
        own.attention.weights(shared.block(below_1ND)),
    ]
    return _heat("attention", rolled_out(weights)[0].unflatten(0, shared.grid))


def _of_nothing_fitted(mixture: AdaptiveMixture, B: int) -> Explanation:
    """Until the encoder is fitted the nearest class mean answers, which is the memory's."""
    return Explanation(
        ids=[expert.life.id for expert in mixture.experts],
        weights_BE=torch.zeros(B, len(mixture.experts)),
        parts=[_named([1.0])] * B,
        novelty_B=torch.zeros(B),
        heat=[None] * B,
    )


def _of_default(mixture: AdaptiveMixture, x: Tensor, answer: Answer) -> Explanation:
    weights_BE, parts, heat = x.new_zeros(len(x), len(mixture.experts)).float(), [], []
    for b, routed in enumerate(answer.routed_B.tolist()):
        share_M = _shares(mixture, mixture.experts[routed].life.id)
        said = _said(mixture, answer, b, share_M)
        if said.part is None:
            parts.append({"recent": 1.0})
        else:
            weights_BE[b, routed] += share_M[_OWN] + share_M[_ROUTED]
            weights_BE[b, -1] += share_M[_NETWORK]
            parts.append(_named(share_M.tolist()))
        heat.append(_shown(mixture, x[b : b + 1], said, answer.encoded.tokens_BRNE[b]))
    return Explanation(
        ids=[expert.life.id for expert in mixture.experts],
        weights_BE=weights_BE.cpu(),
        parts=parts,
        novelty_B=answer.score_B.cpu(),
        heat=heat,
    )


def _shares(mixture: AdaptiveMixture, expert: int) -> Tensor:
    """Return the share of each part in the weights of the pool that answers there, [M]."""
    pool = mixture.pools.get(expert, mixture.pools.get(ALL))
    if pool is None:  # the memory alone answers before any evidence
        return torch.eye(len(PARTS))[_MEMORY]
    weight_M = pool.weight_M.cpu()
    return weight_M / weight_M.sum().clamp_min(1e-12)


def _said(mixture: AdaptiveMixture, answer: Answer, b: int, share_M: Tensor) -> _Said:
    """Return what decides: the part that raises the answer most above the runner-up.

    The pool's log-odds of the two are the sum over the parts of weight times the part's own.
    """
    routed = mixture.experts[int(answer.routed_B[b])]
    order = answer.probabilities_BK[b].argsort(descending=True)[:2].tolist()
    column = order[0] if order else 0
    if not torch.equal(answer.probabilities_BK[b], answer.past_BK[b]):
        return _Said(None, routed, column)
    if len(order) < 2:
        return _Said(_MEMORY, routed, column)
    logp_MK = answer.logp_MBK[:, b].cpu()
    odds_M = share_M * (logp_MK[:, order[0]] - logp_MK[:, order[1]])
    return _Said(int(odds_M.argmax()), routed, column)


def _shown(mixture: AdaptiveMixture, x_1: Tensor, said: _Said, tokens_RNE: Tensor) -> Heat | None:
    """Return where the deciding part has the answer from; None where it knows no places."""
    encoder = mixture.encoder
    if encoder is None or encoder.patches is None or x_1.dim() != 4:
        return None
    if said.part == _MEMORY and mixture.read_out is not None:
        weight_D = mixture.read_out.weight_DK[:, said.column]
        return _heat("contribution", cells(contributions(encoder.patches, x_1, weight_D)))
    if said.part in (_NETWORK, _ROUTED):
        expert = mixture.active if said.part == _NETWORK else said.routed
        tokens = tokens_RNE if expert is mixture.active else tokens_RNE[:1]
        weights = expert.network.attention(tokens.float() * TOKEN_STEP)
        read_Rhw = rolled_out(weights).unflatten(1, encoder.token_grid)
        read_Rhw[1:] = read_Rhw[1:].flip(2)  # the second rendition is the mirror image
        return _heat("attention", read_Rhw.mean(0))
    return None


def _named(share_M: Sequence[float]) -> dict[str, float]:
    return dict(zip(PARTS, share_M, strict=False))


def _heat(kind: HeatKind, cells_hw: Tensor) -> Heat:
    low, high = cells_hw.amin(), cells_hw.amax()
    return Heat(kind, ((cells_hw - low) / (high - low).clamp_min(1e-12)).float().cpu())
