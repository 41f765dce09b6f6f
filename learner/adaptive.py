"""The learner of preset `default`, top to bottom: a LEViT mixture that cannot forget. Ours.

One mini-batch at a time, no task identity. Tokens and features come from filters fitted to the
first samples (`encoder`); exact sums over all labelled samples answer in closed form (`analytic`);
ViT experts on the tokens learn by replay from the whole past (`reservoir`), each beginning as what
the one before it had become and reading from a frozen one (LEViT's fusion, Ye & Bors 2026); a pool
learned from held-out samples decides whom to trust (`held_out`); bets against "nothing changed"
decide when the active expert is frozen (`growth`).
Dimension key: B batch, L labelled samples of it, K classes, V view.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from learner.adaptive_mixture import AdaptiveExpert, Answer
from learner.adaptive_parts import AdaptiveParts
from learner.adaptive_training import FORWARD, AdaptiveTraining
from learner.arrivals import Arrivals, Origin
from learner.encoder import SMOOTH, Encoder
from learner.held_out import fallen_bound
from learner.knowledge import Knowledge
from learner.newborn import first_expert, heir
from learner.recent import Recent, recent_features, recent_width
from learner.report import Expansion, ObserveReport, Prediction
from learner.samples import (
    NO_ANSWER,
    UNLABELLED,
    Label,
    Labels,
    checked_samples,
    class_indexes,
    judged,
)
from learner.splitmix import sample_keys

_FEW_CLASSES, _MOST_HELD = 3, 1000  # when the encoder is fitted, at the latest
_SAVED = 100  # samples whose unspent budget one mini-batch may spend beside its own
_WELL_KNOWN = 50  # samples of a class before errors on it count as evidence of drift


class AdaptiveLEViT(AdaptiveParts):
    """The learner of preset `default`: observes mini-batches, predicts samples.

    Only its own thread may call `observe`; `predict` changes nothing.
    """

    def observe(
        self,
        x: Tensor,
        labels: Labels | None = None,
        *,
        entry_number: int | None = None,
        source: int = 0,
    ) -> ObserveReport:
        """Learn once from one mini-batch; wholly or not at all.

        Args:
            x: samples, uint8 or float32 [B, C, H, W] (floats in [0, 1]), or float32 [B, T, C] or
                [B, D].
            labels: int64 [B] with -1 for none, or B strings with "" for none; None for none at all.
            entry_number: names the samples in the replay buffer; default: the step.
            source: a small number >= 0 that says who sent them.

        Raises:
            ShapeError: samples or labels do not fit; nothing changed.
            NonFiniteError: a loss or gradient was not finite; nothing changed.
        """
        return self._whole(x, labels, (entry_number, source), None)

    def label(
        self,
        x: Tensor,
        labels: Labels,
        right: Sequence[bool | None],
        *,
        entry_number: int | None = None,
        source: int = 0,
    ) -> ObserveReport:
        """Learn the labels of samples that were observed before without; wholly or not at all.

        Sums, read-outs, replay buffer and networks learn them. They are no arrivals: no bet on
        change, no density model and no budget counts them again.

        Takes what `observe` does, and of each sample whether it was answered right when somebody
        asked; None: it is asked now. The samples are of the source now that sent the labels.

        Raises:
            ShapeError, NonFiniteError: as `observe`.
        """
        return self._whole(x, labels, (entry_number, source), right)

    def predict(self, x: Tensor) -> Prediction:
        """Return labels, probabilities, routed experts and novelty; see `AdaptiveMixture`."""
        return self.mixture.predict(x)

    def recall(self, x: Tensor) -> Prediction:
        """Return what the past answers: `predict` without the read-outs that forget."""
        return self.mixture.predict(x, past_only=True)

    def expand(self) -> bool:
        """Freeze the active expert and start its heir because somebody outside decided so.

        Returns:
            Whether it did; it cannot before the encoder is fitted, with budget 0, or at the cap.
        """
        if not self.mixture.experts:
            return False
        asked = Expansion("asked", self.growth.novelty, self.growth.threshold, None)
        return self._expand(self.mixture.active, asked)

    def _whole(
        self, x: Tensor, labels: Labels | None, origin: Origin, right: Sequence[bool | None] | None
    ) -> ObserveReport:
        """Learn, or be as before; `right` only where the samples were here before."""
        entry_number, source = origin
        x = checked_samples(x, self.config.input_shape).to(self.device)
        y_B, unseen = class_indexes(labels, len(x), self.mixture.classes)
        number = self.counts.step + 1 if entry_number is None else entry_number
        arrivals = Arrivals.of(x, y_B.to(self.device), (number, source), first=right is None)
        before = self.undo_point()
        try:
            return self._observe(arrivals, unseen, right)
        except BaseException:
            self.undo(before)
            raise

    def _observe(
        self, arrivals: Arrivals, unseen: list[Label], right: Sequence[bool | None] | None
    ) -> ObserveReport:
        x, y_B = arrivals.x, arrivals.y_B

        # 1. Test: predict before learning.
        answer, guess_L = self._tested(x, y_B)
        tested_L2 = judged(guess_L, y_B, right)
        right_L = tested_L2[:, 0] == tested_L2[:, 1]
        active = self.mixture.experts[-1].life.id if self.mixture.experts else 0
        self.meet(x, y_B, unseen)
        self.count(right_L, arrivals)

        # 2. Until there is enough to fit the encoder, hold; then learn all that was held.
        if answer is None:
            self.pending = (*self.pending, replace(arrivals, x=x.clone()))
            if not self._enough_to_fit():
                return self._report(active, tested_L2, added=range(len(x)), expansion=None)
            arrivals, self.pending = Arrivals.joined(self.pending), ()
            answer = self._fit(arrivals)

        # 3. Learn: the sums, the replay buffer, the active expert, the read-outs.
        earlier = len(arrivals.y_B) - len(x)
        added = [i - earlier for i in self._learn(arrivals, answer) if i >= earlier]

        # 4. Grow when inputs or labels that arrive bet against "nothing changed".
        source = int(arrivals.source_B[-1])
        expansion = self._grow(answer, source, right_L, y_B) if right is None else None
        return self._report(active, tested_L2, added=added, expansion=expansion)

    def _tested(self, x: Tensor, y_B: Tensor) -> tuple[Answer | None, Tensor]:
        """Return the answer, and the class it gives each labelled sample, [L]."""
        answer = None
        if self.mixture.encoder is None:
            guess_BK = self.mixture.predict(x).probabilities_BK.to(self.device)
        else:
            with torch.no_grad():
                answer = self.mixture.answer(self.mixture.encoder(x))
            guess_BK = answer.probabilities_BK
        guess_B = guess_BK.argmax(1) if guess_BK.shape[1] else torch.full_like(y_B, NO_ANSWER)
        return answer, guess_B[y_B != UNLABELLED]

    def _enough_to_fit(self) -> bool:
        held = sum(part.first for part in self.pending)
        classes = int((self.mixture.counts_K > 0).sum())
        enough = held >= self.config.fit_samples and (classes >= _FEW_CLASSES or classes == 0)
        return enough or held >= _MOST_HELD

    def _fit(self, held: Arrivals) -> Answer:
        """Fit the encoder on what was held, begin with the first expert, and let it answer."""
        mixture, config = self.mixture, self.config
        samples = held.x[held.first_B.to(self.device)][:_MOST_HELD]
        encoder = mixture.encoder = Encoder.fitted(samples, config, self.generator)
        mixture.experts = [first_expert(encoder, config, self.generator, self.counts.step)]
        self.knowledge = Knowledge(encoder.features, encoder.own_features, self.device)
        mixture.recent = Recent.fresh(recent_width(SMOOTH, encoder.view.values))
        self.training = AdaptiveTraining(mixture) if config.budget > 0 else None
        self.replay = self.fresh_buffer(encoder)
        return mixture.answer(encoder(held.x))

    def _learn(self, arrivals: Arrivals, answer: Answer) -> Sequence[int]:
        """Learn one mini-batch; return the indexes of the samples now in the replay buffer."""
        if self.knowledge is None:
            return ()
        y_B, encoded = arrivals.y_B, answer.encoded
        rows_L = (y_B != UNLABELLED).nonzero().squeeze(1)
        keys_B = sample_keys(arrivals.ids_B2, self.config.seed)
        held_B = (keys_B < self.knowledge.marks.held_below).to(self.device)
        taught = ((y_B != UNLABELLED) & ~held_B).nonzero().squeeze(1)
        self.mixture.active.life.samples += arrivals.first
        self.knowledge.add(encoded, y_B, taught, len(self.mixture.classes))
        added = self.replay.add(
            arrivals.x[rows_L],
            y_B[rows_L],
            arrivals.ids_B2[rows_L.cpu()],
            arrivals.source_B[rows_L.cpu()],
            tokens=encoded.tokens_BRNE[rows_L],
            ready=torch.ones(len(rows_L), dtype=torch.bool),
        ).added
        bound = fallen_bound(self.knowledge.marks.held_below, self.replay)
        self.knowledge.marks = replace(self.knowledge.marks, held_below=bound)
        self._practise(answer, arrivals, taught)
        self._feel_present(answer, y_B, rows_L)
        self.knowledge.solve(self.mixture)
        asked = self.knowledge.judge(self.mixture, self.replay)
        if self.training is not None:
            self.counts.spent += FORWARD * asked * (1 + (len(self.mixture.experts) > 1))
        return [int(i) for i in rows_L.cpu()[added]]

    def _practise(self, answer: Answer, arrivals: Arrivals, taught: Tensor) -> None:
        """Spend what the budget allows on the active expert; see `AdaptiveTraining.practise`."""
        if self.knowledge is None or self.training is None:
            return
        counts, held = self.counts, self.replay.below(self.knowledge.marks.held_below)
        counts.spent += FORWARD * len(arrivals.y_B) * (1 + (len(self.mixture.experts) > 1))
        saved = self.config.budget * counts.samples - counts.spent
        left = min(saved, self.config.budget * (len(arrivals.y_B) + _SAVED))
        pupil = (answer, arrivals, taught)
        self.losses, spent = self.training.practise(
            pupil, (self.replay, held), left, self.generator
        )
        counts.spent += spent

    def _feel_present(self, answer: Answer, y_B: Tensor, rows_L: Tensor) -> None:
        """Let the read-outs that forget learn, and decide whether they overrule the past.

        Without density models nothing tells which samples are of the present: then they never do.
        """
        mixture, encoded = self.mixture, answer.encoded
        if mixture.recent is None or self.training is None or len(rows_L) == 0:
            return
        features_BF = recent_features(encoded.smooth_BS, encoded.view_BV)[rows_L]
        mixture.recent = mixture.recent.learned(
            features_BF, y_B[rows_L], answer.past_BK[rows_L], len(mixture.classes)
        )
        mixture.overruled = mixture.recent.overrules(mixture.counts_K, already=mixture.overruled)

    def _grow(self, answer: Answer, source: int, right_L: Tensor, y_B: Tensor) -> Expansion | None:
        """Freeze the active expert and start its heir if the evidence says so."""
        if self.training is None or self.knowledge is None or len(answer.routed_B) != len(y_B):
            return None
        expansion, self.growth = self.growth.watched(
            answer, (self.counts.step, source), self._errors(right_L, y_B), self.generator
        )
        if expansion is None or not self.config.expansion:
            self.growth = self.growth.aged(self.mixture.active)
            return None
        nearest = self.mixture.experts[int(answer.standard_BE.mean(0).argmin())]
        return expansion if self._expand(nearest, expansion) else None

    def _expand(self, nearest: AdaptiveExpert, expansion: Expansion) -> bool:
        """Freeze the active expert and start its heir, unless there are too many experts."""
        self.growth = self.growth.restarted()
        if self.training is None or self.knowledge is None:
            return False
        if len(self.mixture.experts) >= self.config.max_experts:
            self.counts.refused_max_experts += 1
            self.growth = self.growth.aged(self.mixture.active)
            return False
        self.knowledge.solve_own(self.mixture)
        self.mixture.experts.append(heir(self.mixture, nearest, expansion, self.counts.step))
        self.knowledge.begin_own()
        self.counts.expansions += 1
        self.training.succeed()
        return True

    def _errors(self, right_L: Tensor, y_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return which samples were predicted wrong, and which of a class that is known well."""
        labelled_B = y_B != UNLABELLED
        wrong_B, known_B = torch.zeros_like(labelled_B), torch.zeros_like(labelled_B)
        wrong_B[labelled_B] = ~right_L
        known_B[labelled_B] = (self.mixture.counts_K >= _WELL_KNOWN)[y_B[labelled_B]]
        return wrong_B, known_B

    def _report(
        self, active: int, tested_L2: Tensor, *, added: Sequence[int], expansion: Expansion | None
    ) -> ObserveReport:
        watching = self.growth.scorer is not None or expansion is not None
        novelty = expansion.novelty if expansion else self.growth.novelty if watching else None
        return ObserveReport(
            step=self.counts.step,
            expert=active,
            labelled=len(tested_L2),
            correct=int((tested_L2[:, 0] == tested_L2[:, 1]).sum()),
            tested=tested_L2.tolist(),
            novelty=novelty,
            expanded=expansion is not None,
            losses=self.losses,
            added=added,
        )
