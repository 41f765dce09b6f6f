"""The expansion rule: its bound, its power, and the same bits however the stream is cut."""

import json
from collections.abc import Callable
from dataclasses import replace
from statistics import mean, median, stdev

import pytest
import torch
from scipy import integrate, stats
from torch import Generator, Tensor

from learner.conformal import ConformalRanks
from learner.detector import BINS, POWERS, ChangeDetector
from learner.error_detector import ErrorDetector

SHORT = ChangeDetector(alpha=0.05, horizon=1000, ranks=ConformalRanks(1000))


def _seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def _uniform(n: int, seed: int) -> Tensor:
    return 1 - torch.rand(n, dtype=torch.float64, generator=_seeded(seed))


def _alarm(detector: ChangeDetector, scores: Tensor, seed: int) -> int | None:
    verdict, _ = detector.observed(scores, _seeded(10_000 + seed))
    return verdict.alarm


def _looped(p_values: list[float]) -> float:
    """Return the evidence by another road: every start of a bet on its own, then their sum."""
    powers = [[a * p ** (a - 1) for p in p_values] for a in POWERS]
    shape = []
    for n, p in enumerate(p_values):
        weights = [0.99 ** (n - 1 - i) for i in range(n)]
        near = sum(w for w, q in zip(weights, p_values, strict=False) if int(q * 10) == int(p * 10))
        shape.append(10 * (near + 1) / (sum(weights) + 10))
    sums = []
    for bets in [*powers, shape]:
        starts = [torch.tensor(bets[start:]).prod().item() for start in range(len(bets))]
        sums.append(sum(starts))
    return sum(sums) / 4


def test_evidence_is_the_sum_over_every_start_of_a_bet() -> None:
    p = _uniform(60, seed=1)

    _, detector = SHORT.judged(p)

    assert detector.evidence == pytest.approx(_looped(p.tolist()), rel=1e-5)


def test_scores_that_wander_slowly_raise_far_fewer_alarms_for_their_bets_being_damped() -> None:
    steps = torch.randn(6_000, generator=torch.Generator().manual_seed(0))
    scores = torch.zeros(len(steps))
    for i in range(1, len(steps)):
        scores[i] = 0.95 * scores[i - 1] + steps[i]

    def alarms(damped: bool) -> int:
        detector, found, rest = ChangeDetector(), 0, scores
        generator = torch.Generator().manual_seed(0)
        for part in rest.split(100):
            verdict, detector = detector.observed(part, generator)
            if not damped:
                detector = replace(detector, lags=(0.0,) * 5)
            if verdict.alarm is not None:
                found, detector = found + 1, detector.restarted()
        return found

    assert alarms(damped=True) <= 2
    assert alarms(damped=False) > 20


@pytest.mark.parametrize("power", POWERS)
def test_power_bet_has_mean_one_over_uniform_p_values(power: float) -> None:
    mean, _ = integrate.quad(lambda p: power * p ** (power - 1), 0, 1)

    assert mean == pytest.approx(1)


def test_histogram_bet_has_mean_one_over_uniform_p_values_whatever_it_has_seen() -> None:
    _, detector = ChangeDetector().judged(_uniform(300, seed=2) ** 1.3)
    before = detector.sums[-1]

    tenths = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
    after = [detector.judged(tenths[[k]])[1].sums[-1] for k in range(BINS)]

    assert sum(after) / BINS == pytest.approx(1 + before)
    assert max(after) > 1.3 * min(after)


@pytest.mark.parametrize(("which", "n"), [(2, 6), (3, 20)], ids=["power 0.6", "histogram"])
def test_each_sum_expects_the_number_of_samples_seen(which: int, n: int) -> None:
    ends = [SHORT.judged(_uniform(n, seed))[1].sums[which] for seed in range(4000)]

    error = stdev(ends) / 4000**0.5
    assert abs(mean(ends) - n) < 4 * error < 0.3 * n


def _falsely_alarmed(detector: ChangeDetector, streams: int) -> int:
    return sum(
        _alarm(detector, torch.randn(detector.horizon, generator=_seeded(seed)), seed) is not None
        for seed in range(streams)
    )


def test_false_alarms_keep_the_bound_on_short_streams() -> None:
    alarms = _falsely_alarmed(SHORT, 300)

    assert stats.binomtest(alarms, 300).proportion_ci(0.9, "exact").high <= SHORT.alpha


def test_threshold_a_thousand_times_lower_breaks_the_bound() -> None:
    alarms = _falsely_alarmed(replace(SHORT, alpha=1000 * SHORT.alpha), 50)

    assert stats.binomtest(alarms, 50).proportion_ci(0.9, "exact").low > SHORT.alpha


def test_ranks_against_a_fixed_calibration_set_break_the_bound() -> None:
    alarms = 0
    for seed in range(50):
        scores = torch.randn(1050, generator=_seeded(seed))
        known, later = scores[:50], scores[50:]
        greater = (known[:, None] > later).sum(0)
        alarm, _ = SHORT.judged((greater + _uniform(1000, 20_000 + seed)) / 51)
        alarms += alarm is not None

    assert stats.binomtest(alarms, 50).proportion_ci(0.9, "exact").low > SHORT.alpha


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_false_alarms_keep_the_bound_on_300_streams_of_20_000() -> None:
    alarms = _falsely_alarmed(ChangeDetector(horizon=20_000), 300)

    assert stats.binomtest(alarms, 300).proportion_ci(0.9, "exact").high <= 0.015


def _shifted(by: float) -> Callable[[Tensor], Tensor]:
    return lambda scores: scores + by


@pytest.mark.parametrize(
    ("change", "at_most"),
    [
        pytest.param(_shifted(4), 8, id="up by 4 deviations"),
        pytest.param(_shifted(2), 15, id="up by 2"),
        pytest.param(_shifted(1), 60, id="up by 1"),
        pytest.param(_shifted(-1), 120, id="down by 1"),
        pytest.param(lambda scores: 2 * scores, 150, id="twice as wide"),
    ],
)
def test_change_after_a_thousand_scores_is_found_within_its_median_delay(
    change: Callable[[Tensor], Tensor], at_most: int
) -> None:
    alarms = []
    for seed in range(15):
        scores = torch.randn(2000, generator=_seeded(seed))
        scores[1000:] = change(scores[1000:])
        alarms.append(_alarm(ChangeDetector(), scores, seed))

    found = [alarm - 999 for alarm in alarms if alarm is not None]
    assert len(found) == 15
    assert min(found) > 0
    assert median(found) <= at_most


def test_long_quiet_phase_costs_no_power() -> None:
    delays = []
    for quiet in (1000, 50_000):
        scores = torch.randn(quiet + 200, generator=_seeded(3))
        scores[quiet:] += 2
        delays.append((_alarm(ChangeDetector(), scores, 3) or 0) - quiet + 1)

    assert max(delays) <= 25
    assert min(delays) > 0


@pytest.mark.parametrize("size", [1, 10, 333])
def test_any_cut_into_batches_gives_the_same_alarm_and_the_same_bits(size: int) -> None:
    scores = torch.randn(5400, generator=_seeded(4))
    scores[5000:] += 1
    whole, at_once = ChangeDetector().observed(scores, _seeded())

    detector, generator, alarms = ChangeDetector(), _seeded(), []
    for start in range(0, len(scores), size):
        verdict, detector = detector.observed(scores[start : start + size], generator)
        alarms += [] if verdict.alarm is None else [start + verdict.alarm]

    assert alarms[0] == whole.alarm
    assert detector.values() == at_once.values()
    assert torch.equal(detector.ranks.sorted_N, at_once.ranks.sorted_N)


def test_alarm_rings_on_until_restarted_and_then_only_the_autocorrelation_is_known() -> None:
    scores = torch.randn(900, generator=_seeded(5))
    scores[700:] += 3
    _, rings = SHORT.observed(scores, _seeded())

    verdict, still = rings.observed(torch.zeros(5), _seeded())

    assert verdict.alarm == 0
    assert still.evidence == rings.evidence >= rings.threshold
    assert still.restarted().values() == {**SHORT.values(), "lags": still.lags}
    assert len(still.restarted().ranks) == 0


def test_refreshing_the_scorer_restarts_the_ranks_and_keeps_the_evidence() -> None:
    _, detector = SHORT.observed(torch.randn(900, generator=_seeded(6)), _seeded())

    refreshed = detector.refreshed()

    assert len(refreshed.ranks) == 0
    assert refreshed.values() == detector.values()


def _alarms_of_scorers(change: Callable[[ChangeDetector], ChangeDetector]) -> int:
    """Return in how many of 100 streams an alarm rings; the scorer is another every 100 samples."""
    alarms = 0
    for seed in range(100):
        detector, generator = SHORT, _seeded(seed)
        for _ in range(10):
            unit = torch.rand(1, generator=generator)
            scores = torch.randn(100, generator=generator) * unit
            _, detector = change(detector).observed(scores, generator)
        alarms += detector.evidence >= detector.threshold
    return alarms


def test_refreshing_at_every_new_scorer_keeps_the_bound() -> None:
    assert _alarms_of_scorers(ChangeDetector.refreshed) <= 100 * SHORT.alpha


def test_ranking_scores_of_several_scorers_together_breaks_the_bound() -> None:
    alarms = _alarms_of_scorers(lambda detector: detector)

    assert stats.binomtest(alarms, 100).proportion_ci(0.9, "exact").low > SHORT.alpha


def test_restored_detector_continues_as_if_never_stopped_and_an_undo_is_the_old_one() -> None:
    scores = torch.randn(1300, generator=_seeded(7))
    _, before = SHORT.observed(scores[:700], _seeded())
    tensors = {name: tensor.clone() for name, tensor in before.tensors().items()}
    values = json.loads(json.dumps(before.values()))

    verdict, after = before.observed(scores[700:], _seeded(8))
    same, restored = ChangeDetector.restored(tensors, values).observed(scores[700:], _seeded(8))
    undone, _ = before.observed(scores[700:], _seeded(8))

    assert restored.values() == after.values()
    assert torch.equal(same.p_B, verdict.p_B)
    assert torch.equal(undone.p_B, verdict.p_B)


def _errors(rates: Tensor, seed: int) -> Tensor:
    return (torch.rand(len(rates), generator=_seeded(seed)) < rates).double()


def _bursts(n: int, again: float, seed: int) -> Tensor:
    """Return errors at rate 0.1 that repeat the one before with chance `again`."""
    fresh, repeats = (
        _errors(torch.full((n,), 0.1), seed),
        _errors(torch.full((n,), again), seed + 1),
    )
    errors = fresh.tolist()
    for i in range(1, n):
        errors[i] = errors[i - 1] if repeats[i] else errors[i]
    return torch.tensor(errors)


def _rate(before: float, after: float, *, change: int, n: int) -> Tensor:
    return torch.where(torch.arange(n) < change, before, after)


@pytest.mark.parametrize(
    "rates",
    [
        pytest.param(torch.full((10_000,), 0.1), id="steady"),
        pytest.param(torch.linspace(0.6, 0.05, 10_000), id="falling"),
        pytest.param(_rate(0.4, 0.1, change=5000, n=10_000), id="falling at once"),
        pytest.param(torch.zeros(10_000), id="never wrong"),
        pytest.param(torch.ones(10_000), id="always wrong"),
    ],
)
def test_error_rate_that_stays_or_falls_raises_no_alarm(rates: Tensor) -> None:
    alarms = [ErrorDetector().judged(_errors(rates, seed))[0] for seed in range(4)]

    assert alarms == [None] * 4


@pytest.mark.parametrize("again", [0.2, 0.5])
def test_errors_in_bursts_raise_no_alarm(again: float) -> None:
    alarms = [ErrorDetector().judged(_bursts(10_000, again, seed))[0] for seed in (0, 10, 20, 30)]

    assert alarms == [None] * 4


def test_bursts_would_raise_alarms_if_they_counted_as_independent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("learner.error_detector.PastErrors.calm", 1.0)

    alarms = [ErrorDetector().judged(_bursts(10_000, 0.5, seed))[0] for seed in (0, 10, 20, 30)]

    assert None not in alarms


def test_rise_from_10_to_30_percent_is_found_within_300_samples() -> None:
    rates = _rate(0.1, 0.3, change=3000, n=4000)

    alarms = [ErrorDetector().judged(_errors(rates, seed))[0] for seed in range(9)]

    delays = [alarm - 2999 for alarm in alarms if alarm is not None]
    assert len(delays) == 9
    assert min(delays) > 0
    assert median(delays) <= 300


def test_collapse_is_found_within_25_samples_even_early() -> None:
    rates = _rate(0.1, 0.9, change=500, n=1000)

    alarms = [ErrorDetector().judged(_errors(rates, seed))[0] for seed in range(9)]

    delays = [alarm - 499 for alarm in alarms if alarm is not None]
    assert len(delays) == 9
    assert median(delays) <= 25


def test_error_bet_has_mean_at_most_one_while_the_rate_is_at_most_the_reference() -> None:
    _, detector = ErrorDetector().judged(_bursts(3000, 0.3, 1))
    m = detector.past.reference(detector.past.calm)

    right, wrong = (detector.judged(torch.tensor([x]))[1].sums for x in (0.0, 1.0))

    for before, low, high in zip(detector.sums, right, wrong, strict=True):
        assert (1 - m) * low + m * high <= (1 + before) * (1 + 1e-12)
        assert low < 1 + before < high


def test_error_detector_gives_the_same_bits_for_any_cut_and_after_restoring() -> None:
    losses = _errors(_rate(0.1, 0.5, change=1500, n=1700), seed=3)
    alarm, at_once = ErrorDetector().judged(losses)

    detector, alarms = ErrorDetector(), []
    for start in range(0, len(losses), 7):
        detector = ErrorDetector.restored(json.loads(json.dumps(detector.values())))
        rang, detector = detector.judged(losses[start : start + 7])
        alarms += [] if rang is None else [start + rang]

    assert alarms[0] == alarm
    assert detector == at_once
    assert detector.restarted() == ErrorDetector()
