"""Gradient steps of the active expert of preset `default`, within a budget; nothing else learns so.

The ViT: AdamW (Loshchilov & Hutter 2019) on ER-ACE (Caccia et al. 2022) over arriving and replayed
samples. The VAE: Adam on the negative ELBO of each arriving sample once. The budget is counted in
sample-gradients (one forward of one sample through one network is 1, a backward 2; Prabhu et al.
2023): what is not spent now is spent with a later mini-batch, nothing depends on time.
Dimension key: B batch, R renditions, N tokens, E token width, V view, K classes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from learner.adaptive_mixture import AdaptiveMixture, Answer
from learner.arrivals import Arrivals
from learner.density import density_loss, novelty_scores
from learner.encoder import Encoded
from learner.errors import NonFiniteError
from learner.report import Losses
from learner.reservoir import ReplayBuffer
from learner.token_network import er_ace
from learner.tokenizer import TOKEN_STEP

PER_STEP = 64
"""Most samples in one optimiser step."""
FORWARD, TRAINED = 1, 3
"""Sample-gradients of predicting one sample, and of training on it, through one network."""
_PASSES = 8  # most passes over the buffer for one mini-batch, whatever the budget has saved
_DECAY = 0.05  # AdamW's weight decay
_DENSITY_RATE = 1e-3  # step size of the VAE's Adam

Moments = dict[Tensor, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Lesson:
    """The samples of one ViT step: arriving ones first."""

    tokens_BNE: Tensor
    """int8, one rendition of each."""
    y_B: Tensor
    arriving: int


@dataclass(frozen=True, slots=True)
class TrainingPoint:
    """What brings the active expert and its optimisers back to an earlier moment."""

    head: tuple[nn.Parameter, nn.Parameter]
    weights: list[tuple[nn.Parameter, Tensor]]
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer]
    groups: list[nn.Parameter]
    moments: tuple[Moments, Moments]


class AdaptiveTraining:
    """The two optimisers of the active expert."""

    def __init__(self, mixture: AdaptiveMixture) -> None:
        self.mixture = mixture
        self.restart()

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        """The ViT's and the VAE's."""
        return self.network, self.density

    def restart(self) -> None:
        """Begin with fresh optimisers, for a fresh active expert."""
        expert, rate = self.mixture.active, self.mixture.config.learning_rate
        self.network = torch.optim.AdamW(
            list(expert.network.parameters()), lr=rate, weight_decay=_DECAY, fused=True
        )
        self.density = torch.optim.Adam(expert.vae.parameters(), lr=_DENSITY_RATE, fused=True)

    def succeed(self) -> None:
        """Begin with the optimisers of a newborn heir; moments are inherited as weights are."""
        parent, heir = self.mixture.experts[-2:]
        earlier = self.network.state, self.density.state
        self.restart()
        pairs = ((parent.network, heir.network), (parent.vae, heir.vae))
        for optimizer, state, (old, new) in zip(self.optimizers, earlier, pairs, strict=True):
            theirs = dict(old.named_parameters())
            for name, parameter in new.named_parameters():
                moments = state.get(theirs[name], {}) if name in theirs else {}
                optimizer.state[parameter] = {k: v.clone() for k, v in moments.items()}

    @torch.no_grad()
    def show_classes(self, classes: int, generator: Generator) -> None:
        """Widen the active classifier to `classes` columns, and its moments with it."""
        network = self.mixture.active.network
        more = classes - len(network.head.bias_K)
        if more <= 0:
            return
        for name in ("weight_KD", "bias_K"):
            old: nn.Parameter = getattr(network.head, name)
            rows = old.new_zeros(more, *old.shape[1:])
            if name == "weight_KD":
                rows.normal_(0.0, 0.01, generator=generator)
            new = nn.Parameter(torch.cat([old, rows]))
            setattr(network.head, name, new)
            moments = self.network.state.pop(old, {})
            self.network.state[new] = {
                key: value if key == "step" else torch.cat([value, torch.zeros_like(rows)])
                for key, value in moments.items()
            }
        self.network.param_groups[0]["params"] = list(network.parameters())

    def learn_views(self, view_BV: Tensor, generator: Generator) -> float:
        """Take one VAE step per `PER_STEP` views and return the mean negative ELBO per value."""
        total = 0.0
        for part in view_BV.split(PER_STEP) if len(view_BV) else ():
            loss = density_loss(self.mixture.active.vae, part, generator)
            self._step(self.density, loss, "negative ELBO")
            total += loss.item() * len(part)
        return total / max(1, len(view_BV))

    def learn_lessons(self, lessons: Iterable[Lesson]) -> float | None:
        """Take one ViT step per lesson and return the mean cross-entropy, None without any."""
        total, samples = 0.0, 0
        seen_K = self.mixture.counts_K > 0
        for lesson in lessons:
            tokens = lesson.tokens_BNE.float() * TOKEN_STEP
            logits_BK = self.mixture.logits(self.mixture.active, tokens)
            loss = er_ace(logits_BK, lesson.y_B, lesson.arriving, seen_K)
            self._step(self.network, loss, "cross-entropy")
            total, samples = total + loss.item() * len(tokens), samples + len(tokens)
        return total / samples if samples else None

    def practise(
        self,
        pupil: tuple[Answer, Arrivals, Tensor],
        past: tuple[ReplayBuffer, Tensor],
        left: float,
        generator: Generator,
    ) -> tuple[Losses, float]:
        """Train the active expert as far as the budget allows; return losses and what was spent.

        Args:
            pupil: what the mixture made of the mini-batch, the mini-batch, and the indexes of the
                samples to be taught. The density model learns only what was never here before.
            past: the replay buffer, and the slots of the members that are held out.
            left: sample-gradients that may be spent.
            generator: draws.
        """
        answer, arrivals, taught = pupil
        encoded, expert, y_B = answer.encoded, self.mixture.active, arrivals.y_B
        first_B = arrivals.first_B.to(y_B.device)
        views_BV = encoded.view_BV[first_B]
        scores_B = novelty_scores(expert.vae, views_BV)
        expert.usual = expert.usual.learned(scores_B, answer.standard_BE[first_B, -1])
        views_BV = views_BV[: max(0, int(left / TRAINED))]
        elbo = self.learn_views(views_BV, generator)
        spent = float(TRAINED * len(views_BV))
        if not len(self.mixture.classes):
            return Losses(None, elbo), spent
        self.show_classes(len(self.mixture.classes), generator)
        price = TRAINED + (FORWARD if expert.reads is not None else 0)
        most = _PASSES * (len(taught) + len(past[0]))
        samples = min(most, max(0, int((left - spent) / price)))
        lessons = list(self._lessons((encoded, y_B, taught), past, samples, generator))
        cross_entropy = self.learn_lessons(lessons)
        spent += price * sum(len(lesson.y_B) for lesson in lessons)
        return Losses(cross_entropy, elbo), spent

    def _lessons(
        self,
        pupil: tuple[Encoded, Tensor, Tensor],
        past: tuple[ReplayBuffer, Tensor],
        samples: int,
        generator: Generator,
    ) -> Iterator[Lesson]:
        """Yield arriving samples, at most half, and replayed ones, in steps of equal size."""
        (encoded, y_B, taught), (replay, held) = pupil, past
        if (encoder := self.mixture.encoder) is None:
            return
        order = torch.randperm(len(taught), generator=generator).to(taught.device)
        new = taught[order[: -(-samples // 2)]]
        old = replay.draw(samples - len(new), generator)
        old = old[~torch.isin(old, held)]
        steps = -(-(len(new) + len(old)) // PER_STEP)
        for few, others in zip(
            new.tensor_split(steps or 1), old.tensor_split(steps or 1), strict=True
        ):
            if len(few) + len(others) == 0:
                continue
            tokens = torch.cat([encoded.tokens_BRNE[few], encoder.replayed(replay, others)])
            rendition = torch.randint(tokens.shape[1], (len(tokens),), generator=generator)
            y = torch.cat([y_B[few], replay.y_S[others]])
            yield Lesson(tokens[torch.arange(len(tokens)), rendition], y, len(few))

    def undo_point(self) -> TrainingPoint:
        """Return what `undo` needs; copies the active expert and its moments."""
        expert = self.mixture.active
        parameters = [*expert.network.parameters(), *expert.vae.parameters()]
        return TrainingPoint(
            head=(expert.network.head.weight_KD, expert.network.head.bias_K),
            weights=[(p, p.detach().clone()) for p in parameters],
            optimizers=(self.network, self.density),
            groups=list(self.network.param_groups[0]["params"]),
            moments=(_copied(self.network), _copied(self.density)),
        )

    @torch.no_grad()
    def undo(self, point: TrainingPoint) -> None:
        """Put weights, classifier and optimisers back to `point`; the mixture has its experts."""
        head = self.mixture.active.network.head
        head.weight_KD, head.bias_K = point.head
        for parameter, weights in point.weights:
            parameter.requires_grad = True
            parameter.copy_(weights)
        self.network, self.density = point.optimizers  # type: ignore[assignment]
        for optimizer, moments in zip(point.optimizers, point.moments, strict=True):
            optimizer.state.clear()
            optimizer.state.update(moments)
        self.network.param_groups[0]["params"] = point.groups

    @staticmethod
    def _step(optimizer: torch.optim.Optimizer, loss: Tensor, name: str) -> None:
        parameters = optimizer.param_groups[0]["params"]
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        for what, value in ((name, loss), (f"gradient norm of the {name}", norm)):
            if not value.isfinite():
                raise NonFiniteError(f"expected a finite {what}, got {value.item()}")
        optimizer.step()


def _copied(optimizer: torch.optim.Optimizer) -> Moments:
    return {
        parameter: {name: value.clone() for name, value in state.items()}
        for parameter, state in optimizer.state.items()
    }
