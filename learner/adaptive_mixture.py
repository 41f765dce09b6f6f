"""The mixture of preset `default` and how it answers: several parts, pooled by evidence.

Parts: `memory`, the analytic read-out of all labelled samples; `own`, the read-out of the expert
whose inputs a sample resembles; `network`, the active expert's ViT; `routed`, the ViT of the
resembling expert; `prior`, how frequent classes were. Read-outs that forget may overrule them all
when labels contradict the past (`learner.recent`).
Ours, but for the fusion (LEViT).
INVARIANT: the last expert is the active one; all others are frozen and never change.
Dimension key: B batch, E experts, M parts, K classes, R renditions, N tokens, D width.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from learner.adaptive_config import AdaptiveConfig
from learner.blend import LOWEST, Pool
from learner.density import Usual, novelty_scores
from learner.encoder import Encoded, Encoder
from learner.readout import ReadOut
from learner.recent import Recent, recent_features
from learner.report import Expansion, Life, Prediction
from learner.samples import Label, checked_samples
from learner.token_network import TokenNetwork
from learner.tokenizer import TOKEN_STEP
from learner.vae import VAE
from learner.view import compact

PARTS = ("memory", "own", "network", "routed", "prior")
ALL = -1
"""Key of the pool that answers where an expert has none of its own."""
GROWN = 100  # samples before an expert may be routed to while another exists
_NEAR = 10.0  # standard score under the active expert up to which the present has a say


@dataclass(kw_only=True, slots=True)
class AdaptiveExpert:
    """One expert: what it is called, its ViT, its density model and its own read-out."""

    life: Life
    network: TokenNetwork
    vae: VAE
    usual: Usual = field(default_factory=Usual)
    own: ReadOut | None = None
    reads: int | None = None
    """Id of the frozen expert whose features its ViT adds to its own."""
    expansion: Expansion | None = None
    """Why it was born; None for the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the mixture makes of a mini-batch; nothing has a gradient."""

    encoded: Encoded
    standard_BE: Tensor
    """Each expert's novelty score in its own standard deviations; zeros without density models."""
    score_B: Tensor
    """Negative ELBO per value under the routed expert, nats."""
    routed_B: Tensor
    """Index of the expert that each sample resembles most."""
    logp_MBK: Tensor
    """Log-probabilities of each part."""
    past_BK: Tensor
    """Their pool: what the past answers."""
    probabilities_BK: Tensor
    """The answer."""


class AdaptiveMixture:
    """Everything that an answer needs; the learner changes it, a predictor never does."""

    def __init__(self, config: AdaptiveConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.classes: list[Label] = []
        self.counts_K = torch.zeros(0, dtype=torch.float64)
        """Labelled samples of each class."""
        self.encoder: Encoder | None = None
        self.first_KV = torch.zeros(0, 0)
        """Sums of the compact views of each class; answers until the encoder is fitted."""
        self.read_out: ReadOut | None = None
        self.experts: list[AdaptiveExpert] = []
        self.pools: dict[int, Pool] = {}
        self.recent: Recent | None = None
        self.overruled = False

    @property
    def active(self) -> AdaptiveExpert:
        """The expert that learns."""
        return self.experts[-1]

    @property
    def trust(self) -> dict[str, float]:
        """Weight of each part in the pool of all samples, >= 0; empty before any evidence."""
        if not self.pools:
            return {}
        return dict(zip(PARTS, self.pools[ALL].weight_M.tolist(), strict=True))

    def tensors(self) -> Iterator[Tensor]:
        """Yield every tensor that it holds."""
        if self.encoder is not None:
            yield from self.encoder.tensors().values()
        if self.recent is not None:
            yield from self.recent.tensors().values()
        for expert in self.experts:
            yield from expert.network.state_dict().values()
            yield from expert.vae.state_dict().values()
        for read_out in (self.read_out, *(e.own for e in self.experts)):
            if read_out is not None:
                yield from (read_out.weight_DK, read_out.bias_K, read_out.log_frequency_K)
        yield from (self.counts_K, self.first_KV)

    @torch.no_grad()
    def predict(self, x: Tensor, *, past_only: bool = False) -> Prediction:
        """Return the answers for samples [B, ...]; each depends on its own sample only.

        Args:
            x: samples.
            past_only: whether read-outs that forget have no say.

        Raises:
            ShapeError: the samples do not fit.
        """
        x = checked_samples(x, self.config.input_shape).to(self.device)
        if self.encoder is None:
            return self._first_prediction(x)
        answer = self.answer(self.encoder(x))
        ids_E = torch.tensor([expert.life.id for expert in self.experts])
        return Prediction(
            classes=list(self.classes),
            probabilities_BK=(answer.past_BK if past_only else answer.probabilities_BK).cpu(),
            experts_B=ids_E[answer.routed_B.cpu()],
            novelty_B=answer.score_B.cpu(),
        )

    @torch.no_grad()
    def parts(self, x: Tensor) -> dict[str, Tensor]:
        """Return what each part alone would answer, class indexes [B] by name; -1 for nothing."""
        if self.encoder is None or not self.classes:
            return {}
        logp_MBK = self.answer(self.encoder(x.to(self.device))).logp_MBK
        flat_MB = logp_MBK.amax(2) == logp_MBK.amin(2)
        best_MB = logp_MBK.argmax(2).masked_fill(flat_MB, -1)
        return dict(zip(PARTS, best_MB.cpu(), strict=True))

    @torch.no_grad()
    def answer(self, encoded: Encoded, read_out: ReadOut | None = None) -> Answer:
        """Return what the mixture makes of encoded samples.

        Args:
            encoded: the samples.
            read_out: one to use in place of the mixture's own.
        """
        raw_BE, standard_BE = self._densities(encoded.view_BV)
        routed_B = self.route(standard_BE)
        logp_MBK = self._parts(encoded, routed_B, read_out or self.read_out)
        past_BK = self._pooled(logp_MBK, routed_B)
        probabilities_BK = past_BK
        if self.overruled and self.recent is not None:
            features_BF = recent_features(encoded.smooth_BS, encoded.view_BV)
            present_BK = self.recent.probabilities(features_BF, past_BK)
            near_B1 = standard_BE[:, -1:] < _NEAR
            probabilities_BK = torch.where(near_B1, present_BK, past_BK)
        return Answer(
            encoded=encoded,
            standard_BE=standard_BE,
            score_B=raw_BE.gather(1, routed_B[:, None]).squeeze(1),
            routed_B=routed_B,
            logp_MBK=logp_MBK,
            past_BK=past_BK,
            probabilities_BK=probabilities_BK,
        )

    def route(self, standard_BE: Tensor) -> Tensor:
        """Return the index of the expert that each sample resembles most, [B]."""
        if len(self.experts) > 1 and self.active.life.samples < GROWN:
            standard_BE = standard_BE[:, :-1]
        return standard_BE.argmin(1)

    def _densities(self, view_BV: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.budget == 0:
            nothing_BE = view_BV.new_zeros(len(view_BV), len(self.experts))
            return nothing_BE, nothing_BE
        raw_BE = torch.stack([novelty_scores(e.vae, view_BV) for e in self.experts], 1)
        standard = [e.usual.standard(raw_BE[:, k]) for k, e in enumerate(self.experts)]
        return raw_BE, torch.stack(standard, 1)

    def _parts(self, encoded: Encoded, routed_B: Tensor, read_out: ReadOut | None) -> Tensor:
        """Return the log-probabilities of each part, [M, B, K]."""
        B, K = len(routed_B), len(self.classes)
        unknown_BK = encoded.view_BV.new_full((B, K), -math.log(max(1, K)))
        memory_BK = own_BK = network_BK = routed_BK = unknown_BK
        if read_out is not None:
            memory_BK = self.known(read_out.scores(encoded.features_BF))
        if self.config.budget > 0:
            network_BK = self._network(self.active, encoded.tokens_BRNE)
            routed_BK = network_BK.clone()
        if len(self.experts) > 1 or self.active.own is not None:
            own_BK = unknown_BK.clone()
        for k in routed_B.unique().tolist():
            rows, expert = (routed_B == k).nonzero().squeeze(1), self.experts[k]
            if expert.own is not None:
                own_BK[rows] = self.known(expert.own.scores(encoded.own_BO[rows]))
            if self.config.budget > 0 and expert is not self.active:
                routed_BK[rows] = self._network(expert, encoded.tokens_BRNE[rows, :1])
        share_K = (self.counts_K + 1) / (self.counts_K + 1).sum()
        prior_BK = share_K.log().float().expand(B, K)
        return torch.stack([memory_BK, own_BK, network_BK, routed_BK, prior_BK])

    def known(self, scores_BK: Tensor) -> Tensor:
        """Return log-probabilities over all classes; those a part does not know get the least."""
        logp_BK = scores_BK.log_softmax(1).nan_to_num(LOWEST, neginf=LOWEST)
        missing = len(self.classes) - scores_BK.shape[1]
        return F.pad(logp_BK.clamp_min(LOWEST), (0, missing), value=LOWEST)

    def _network(self, expert: AdaptiveExpert, tokens_BRNE: Tensor) -> Tensor:
        """Return an expert's log-probabilities, averaged over the renditions, [B, K]."""
        B, R = tokens_BRNE.shape[:2]
        tokens = tokens_BRNE.flatten(0, 1).float() * TOKEN_STEP
        logits_BRK = self.logits(expert, tokens).unflatten(0, (B, R))
        if logits_BRK.shape[2] == 0:
            return tokens.new_full((B, len(self.classes)), -math.log(max(1, len(self.classes))))
        return self.known(logits_BRK.log_softmax(2).mean(1))

    def logits(self, expert: AdaptiveExpert, tokens_BNE: Tensor) -> Tensor:
        """Return the scores that an expert's ViT gives its classes, [B, K]; the dynamic fusion."""
        frozen_BJD = None
        if expert.reads is not None:
            reader = next(e for e in self.experts if e.life.id == expert.reads)
            with torch.no_grad():
                frozen_BJD = reader.network.features(tokens_BNE)[:, None]
        return expert.network.scores(expert.network.features(tokens_BNE), frozen_BJD)

    def _pooled(self, logp_MBK: Tensor, routed_B: Tensor) -> Tensor:
        """Return what the parts answer together, [B, K]; the memory alone before any evidence."""
        if logp_MBK.shape[2] == 0:
            return logp_MBK[0]
        if not self.pools:
            return logp_MBK[0].softmax(1)
        pooled_BK = self.pools[ALL](logp_MBK)
        for k in routed_B.unique().tolist():
            pool = self.pools.get(self.experts[k].life.id)
            if pool is not None:
                rows = (routed_B == k).nonzero().squeeze(1)
                pooled_BK[rows] = pool(logp_MBK[:, rows])
        return pooled_BK

    def _first_prediction(self, x: Tensor) -> Prediction:
        """Return the nearest class mean of the compact view, while nothing is fitted yet."""
        B, K = len(x), len(self.classes)
        probabilities_BK = torch.zeros(B, K)
        if K:
            means_KV = self.first_KV / self.counts_K.clamp_min(1)[:, None].float()
            distance_BK = torch.cdist(compact(x), means_KV).cpu()
            near_B1 = distance_BK.amin(1, keepdim=True) + 1e-6
            probabilities_BK = (-((distance_BK / near_B1 - 1) * 10)).softmax(1)
        zero_B = torch.zeros(B)
        return Prediction(
            classes=list(self.classes),
            probabilities_BK=probabilities_BK,
            experts_B=zero_B.long(),
            novelty_B=zero_B,
        )
