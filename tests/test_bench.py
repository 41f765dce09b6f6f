"""The benchmark is fair: streams tell nothing, labels come late, numbers are what they say."""

import ast
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from bench import command, report, results, run, streams, throughput
from bench.arrivals import Arrive, Plan, Stream, blurred, gradual, in_file_order, in_turn, split
from bench.cli import parsed
from bench.command import NotMeasured
from bench.datasets import Dataset, samples_as_tensor
from bench.domains import permuted, rotating, turned
from bench.methods import METHODS, Cost, Facts, Method, Options, make
from bench.outcome import Outcome
from bench.protocol import Pass
from bench.results import Result
from bench.rows import Row
from bench.suites import SUITES, Choice, chosen
from service.datafile import BadDataFile
from service.errors import SettingsError

QUIET = Console(quiet=True)
OURS = [name for name in METHODS if ":" in METHODS[name] and "peers" not in METHODS[name]]


def toy(classes: int = 6, each: int = 40) -> Dataset:
    """Return even images whose value is ten times their class."""
    y = torch.arange(classes).repeat(each)
    x = (10 * y).byte()[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    return Dataset(kind="image", x_train=x, y_train=y, x_test=x[:60], y_test=y[:60])


def toy_stream(seed: int = 0, samples: int | None = None) -> Stream:
    """Return the toy data in turns of two classes."""
    return split(Plan(name="toy", seed=seed, samples=samples), toy(), arrive=in_turn)


class Recorder:
    """Knows everything it was told; answers with the last label."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.told: list[int] = []

    def observe(self, x: Tensor, y: Tensor) -> None:
        self.calls.append(("observe", len(x)))
        self.told += y.tolist()

    def predict(self, x: Tensor) -> Tensor:
        self.calls.append(("predict", len(x)))
        return torch.full((len(x),), self.told[-1] if self.told else -1)

    def cost(self) -> Cost:
        return Cost(state_bytes=8, parameters=0, sample_gradients=len(self.told) * 2.0)


class Oracle(Recorder):
    """Reads the class off the toy's pixels, if it has been told that class."""

    def predict(self, x: Tensor) -> Tensor:
        read = (x[:, 0, 0, 0] // 10).long()
        return torch.where(torch.isin(read, torch.tensor(self.told)), read, -1)

    def parts(self, x: Tensor) -> Mapping[str, Tensor]:
        return {"eyes": self.predict(x), "blind": torch.zeros(len(x)).long()}


def test_equal_seeds_give_equal_streams_and_others_do_not() -> None:
    first, same, other = toy_stream(0), toy_stream(0), toy_stream(1)

    assert torch.equal(first.y_train, same.y_train)
    assert not torch.equal(first.y_train, other.y_train)


def test_classes_of_a_split_stream_come_in_turn() -> None:
    task = toy_stream().y_train // 2

    assert torch.equal(task, task.sort().values)


def test_short_split_stream_still_shows_every_task() -> None:
    stream = toy_stream(samples=60)

    assert len(stream.y_train) == 60
    assert stream.y_train.unique().tolist() == list(range(6))
    assert stream.task_ends[-1] == 60


@pytest.mark.parametrize(("arrive", "reach"), [(blurred, 2), (gradual, 1)])
def test_turns_fade_into_each_other(arrive: Arrive, reach: int) -> None:
    turn = torch.arange(5).repeat_interleave(400)

    order = arrive(turn, torch.Generator().manual_seed(0))

    own = turn.sort().values
    assert sorted(order.tolist()) == list(range(len(turn)))
    assert (turn[order] != own).float().mean() > 0.05
    assert (turn[order] - own).abs().float().quantile(0.99) <= reach


def test_checkpoints_hold_every_end_of_a_task_and_the_last_sample() -> None:
    stream = toy_stream()

    assert set(stream.task_ends) <= set(stream.checkpoints)
    assert stream.checkpoints[-1] == len(stream.y_train)
    assert 9 <= len(stream.checkpoints) <= 11


def test_held_out_sample_is_seen_once_its_class_has_come() -> None:
    stream = toy_stream()

    first = [int((stream.y_train == label).nonzero()[0, 0]) + 1 for label in stream.y_test]

    assert stream.seen_from.tolist() == first


def test_permuted_stream_moves_training_and_held_out_pixels_alike() -> None:
    pixels = torch.randperm(64).byte().view(1, 1, 8, 8).expand(30, -1, -1, -1)
    y = torch.zeros(30).long()
    data = Dataset(kind="image", x_train=pixels, y_train=y, x_test=pixels, y_test=y)

    stream = permuted(Plan(name="p"), data, per_domain=2)

    train = stream.x_train.view(10, 2, 64)[:, 0]
    test = stream.x_test.view(10, -1, 64)[:, 0]
    assert torch.equal(train, test)
    assert torch.equal(train[0], pixels[0].flatten())
    assert len({tuple(domain.tolist()) for domain in train}) == 10


def test_half_a_turn_is_both_mirrors() -> None:
    x = torch.randint(0, 256, (3, 1, 8, 8)).byte()

    assert torch.equal(turned(x, torch.ones(3)), x.flip(2, 3))
    assert torch.equal(turned(x, torch.zeros(3)), x)


def test_rotating_stream_ends_upside_down() -> None:
    data = toy()
    data.x_train[:, :, :4] = 0

    stream = rotating(Plan(name="r", samples=100), data)

    assert stream.x_train[0, 0, :4].sum() == 0
    assert stream.x_train[-1, 0, 4:].sum() == 0
    assert stream.task_ends[-1] == 100


def test_file_in_its_own_order_and_class_after_class(tmp_path: Path) -> None:
    y = np.array(["b", "a", "c"] * 5)
    np.savez(tmp_path / "mine.npz", x=np.arange(30, dtype=np.float64).reshape(15, 2), y=y)

    own = streams.make(str(tmp_path / "mine.npz"))
    ordered = streams.make(str(tmp_path / "mine.npz"), order="class")

    assert own.y_train.tolist() == [1, 0, 2] * 5
    assert own.x_train[:, 0].tolist() == list(range(0, 30, 2))
    assert ordered.y_train.tolist() == [0] * 5 + [1] * 5 + [2] * 5


def test_absent_data_is_named_with_its_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEVIT_DATA", str(tmp_path))
    with pytest.raises(BadDataFile, match=r"mnist\.npz in LEVIT_DATA="):
        streams.make("split_mnist")

    monkeypatch.delenv("LEVIT_DATA")
    with pytest.raises(SettingsError, match=r"LEVIT_DATA: expected .* mnist\.npz"):
        streams.make("split_mnist")


def test_images_come_channels_first_and_series_as_they_are() -> None:
    assert samples_as_tensor(np.zeros((2, 9, 8, 3), np.uint8)).shape == (2, 3, 9, 8)
    assert samples_as_tensor(np.zeros((2, 9, 8), np.uint8)).shape == (2, 1, 9, 8)
    assert samples_as_tensor(np.zeros((2, 9, 8), np.float16)).shape == (2, 9, 8)


def test_labels_come_after_their_mini_batch_was_predicted() -> None:
    stream = replace(toy_stream(), checkpoints=(), task_ends=())
    method = Recorder()

    Pass(stream, lambda: method, batch=7).run()

    sizes = [len(part) for part in stream.y_train.split(7)]
    assert method.calls == [(call, n) for n in sizes for call in ("predict", "observe")]
    assert method.told == stream.y_train.tolist()


def test_who_says_the_current_class_keeps_only_that_one() -> None:
    data = toy(classes=3)
    stream = split(Plan(name="t"), data, arrive=in_turn, per_turn=1, per_task=1)

    outcome = Pass(stream, Recorder, batch=10).run()

    assert outcome.accuracy_matrix == [[1.0, None, None], [0.0, 1.0, None], [0.0, 0.0, 1.0]]
    assert outcome.accuracy == outcome.average_accuracy == pytest.approx(1 / 3)
    assert outcome.forgetting == 1.0
    assert outcome.backward_transfer == -1.0
    assert outcome.prequential == pytest.approx(90 / 120)  # the first ten of each class are wrong
    assert outcome.sample_gradients == 2.0


def test_checkpoint_asks_only_for_what_came_up_to_it() -> None:
    outcome = Pass(toy_stream(), Oracle, batch=10).run()

    assert [check.accuracy for check in outcome.checkpoints] == [1.0] * len(outcome.checkpoints)
    assert outcome.anytime == 1.0
    assert outcome.forgetting == 0.0


def test_parts_are_judged_alone_on_the_held_out_samples() -> None:
    outcome = Pass(toy_stream(), Oracle).run()

    assert outcome.parts == {"eyes": 1.0, "blind": pytest.approx(1 / 6)}


def test_parts_of_a_stream_without_held_out_samples_are_judged_as_they_come() -> None:
    data = toy()
    bare = replace(data, x_test=data.x_test[:0], y_test=data.y_test[:0])
    stream = in_file_order(Plan(name="bare"), bare)

    outcome = Pass(stream, Oracle).run()

    assert outcome.accuracy is None
    assert outcome.parts["eyes"] == outcome.prequential == outcome.score
    assert outcome.parts["blind"] == pytest.approx(1 / 6)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("kind", ["image", "vector", "series"])
def test_every_method_answers_for_every_kind_of_sample(name: str, kind: str) -> None:
    shape = {"image": (1, 8, 8), "vector": (5,), "series": (6, 2)}[kind]
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20, *shape, generator=generator)
    y = torch.arange(20) % 3
    facts = Facts(kind=kind, shape=shape, classes=3, seed=0)  # type: ignore[arg-type]
    method = make(name, facts, {})

    before = method.predict(x)
    method.observe(x, torch.where(y == 2, -1, y))
    after = method.predict(x)

    assert before.dtype == after.dtype == torch.int64
    assert before.tolist() == [-1] * 20
    assert set(after.tolist()) <= {0, 1}
    assert method.cost().state_bytes > 0


@pytest.mark.parametrize("name", [n for n in OURS if n not in ("previous_label", "majority")])
def test_every_learner_predicts_a_sample_as_it_would_alone(name: str) -> None:
    stream = streams.make("split_digits", samples=120)
    method = make(name, stream.facts, {})
    for begin in range(0, 120, 10):
        method.observe(stream.x_train[begin : begin + 10], stream.y_train[begin : begin + 10])

    together = method.predict(stream.x_test[:30])
    alone = torch.cat([method.predict(sample) for sample in stream.x_test[:30].split(1)])

    assert torch.equal(together, alone)


def _observed(method: Method, x: Tensor, y: Tensor) -> Method:
    for begin in range(0, len(x), 10):
        method.observe(x[begin : begin + 10], y[begin : begin + 10])
    return method


@pytest.mark.parametrize("name", ["ncm", "slda"])
def test_closed_form_agrees_with_its_definition_whatever_the_order(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 4
    x = torch.randn(400, 6, generator=generator) * torch.tensor([1, 2, 3, 4, 5, 6])
    x += torch.randn(4, 6, generator=generator)[y] * 3
    facts = Facts(kind="vector", shape=(6,), classes=4, seed=0)
    order = torch.randperm(400, generator=generator)

    found = _observed(make(name, facts, {}), x, y).predict(x)
    shuffled = _observed(make(name, facts, {}), x[order], y[order]).predict(x)

    mean = torch.stack([x[y == k].mean(0) for k in range(4)])
    within = (x - mean[y]).T @ (x - mean[y]) / 400 if name == "slda" else torch.eye(6)
    apart = x[:, None] - mean
    expected = torch.einsum("nki,ij,nkj->nk", apart, within.inverse(), apart).argmin(1)
    assert (found == expected).float().mean() > 0.98  # solved by count, so not on the last few
    assert (found == shuffled).float().mean() > 0.98


def test_closed_form_stands_values_that_hardly_vary_about_a_large_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(600) % 2
    x = 1000 + 0.02 * torch.randn(600, 3, generator=generator) + 0.1 * y[:, None]
    x = torch.cat([x, x[:, :1]], 1)  # and one of them twice

    found = _observed(make("slda", Facts(kind="vector", shape=(4,), classes=2, seed=0), {}), x, y)

    assert (found.predict(x) == y).float().mean() > 0.95


def test_replay_forgets_less_than_no_replay() -> None:
    stream = streams.make("split_digits")
    outcomes = {
        name: Pass(stream, partial(make, name, stream.facts, {})).run()
        for name in ("er", "finetune")
    }

    assert (outcomes["finetune"].accuracy or 1) < 0.25
    assert (outcomes["er"].accuracy or 0) > (outcomes["finetune"].accuracy or 1) + 0.1
    assert outcomes["er"].sample_gradients == pytest.approx(6, abs=0.1)  # 3 for each of 10 + 10


def test_reservoir_holds_every_sample_with_the_same_chance() -> None:
    from bench.replay_nets import Reservoir

    generator = torch.Generator().manual_seed(0)
    held = torch.zeros(50)
    for _ in range(600):
        memory = Reservoir(10, generator)
        memory.add(torch.arange(50.0)[:, None], torch.arange(50))
        held += memory.y_M.bincount(minlength=50)

    expected = 600 * 10 / 50
    chi_square = ((held - expected) ** 2 / expected).sum() / (1 - 10 / 50)
    assert chi_square < 85  # 49 degrees of freedom: 0.1 % lie above


@pytest.mark.parametrize(
    ("name", "options"), [("er", {}), ("randumb", {"features": 100}), ("paper", {"replayed": 10})]
)
def test_equal_seeds_give_equal_outcomes_and_others_do_not(name: str, options: Options) -> None:
    def accuracies(seed: int) -> list[float]:
        stream = replace(streams.make("split_digits", samples=250), seed=seed)
        outcome = Pass(stream, partial(make, name, stream.facts, options)).run()
        return [check.accuracy for check in outcome.checkpoints]

    first = accuracies(0)

    assert first == accuracies(0)
    assert first != accuracies(1)


def test_networks_of_the_default_preset_cost_nothing_without_a_budget() -> None:
    def cost(budget: float) -> Cost:
        stream = streams.make("split_digits", samples=600)
        options: Options = {"budget": budget, "statistics_mib": 3}
        return Pass(stream, partial(make, "default", stream.facts, options)).run().cost

    free, usual = cost(0.0), cost(4.0)

    assert free.sample_gradients == 0 < usual.sample_gradients
    assert 0 < (free.flops or 0) < (usual.flops or 0)
    assert free.state_bytes < usual.state_bytes


def test_novelty_of_the_paper_preset_is_kept_where_it_was_measured() -> None:
    stream = streams.make("split_digits", samples=200)

    outcome = Pass(stream, partial(make, "paper", stream.facts, {"capacity": 40})).run()

    assert outcome.cost.experts > 1
    assert outcome.cost.expansions == outcome.cost.experts - 1
    assert all(40 < samples <= 200 for samples, _ in outcome.novelty)
    assert len(outcome.novelty) >= outcome.cost.expansions - 1  # the first is never measured


def test_unknown_method_and_option_are_named() -> None:
    facts = toy_stream().facts

    with pytest.raises(SettingsError, match="got nonsense"):
        make("nonsense", facts, {})
    with pytest.raises(SettingsError, match="er has no option colour; it has capacity"):
        make("er", facts, {"colour": 1})


def test_rows_differ_in_their_file_if_they_differ_in_anything() -> None:
    row = Row(stream="s", method="m")
    others = [
        replace(row, **change)
        for change in (
            {"stream": "t"},
            {"method": "n"},
            {"options": {"capacity": 5}},
            {"seed": 1},
            {"samples": 9},
            {"batch": 1},
            {"order": "class"},
            {"threads": 2},
        )
    ]

    assert len({row.key, *(other.key for other in others)}) == len(others) + 1
    assert [Row.from_json(other.to_json()) for other in others] == others


def test_result_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    result = _result(0)

    results.write(tmp_path / "r.json", result)

    assert results.read(tmp_path / "r.json") == result
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_file_that_is_no_result_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps({"row": {}}))

    with pytest.raises(SettingsError, match=r"r\.json"):
        results.read_all(tmp_path)


def test_table_gives_mean_and_deviation_over_the_seeds_and_the_command() -> None:
    text = report.markdown([_result(0, accuracy=0.5), _result(1, accuracy=0.6)])

    assert "| m (capacity 7) | 55.00 ± 7.07 |" in text
    assert "levit bench --stream s --method m --option capacity=7 --seeds 2" in text
    assert "On a machine." in text


def test_table_shows_the_best_row_first() -> None:
    worse, better = _result(0, accuracy=0.5), _result(0, accuracy=0.6)
    better = replace(better, row=replace(better.row, method="z"))

    text = report.markdown([worse, better])

    assert text.index("| z (") < text.index("| m (")


def options_as_written(method: str) -> set[str]:
    """Return the options of a method, read from its source: peers are rarely installed here."""
    module, function = METHODS[method].split(":")
    path = Path(run.__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py")
    defined = {
        d.name: d for d in ast.parse(path.read_text()).body if isinstance(d, ast.FunctionDef)
    }
    return {argument.arg for argument in defined[function].args.kwonlyargs}


def test_every_suite_names_streams_methods_and_options_that_exist() -> None:
    entries = [entry for suite in SUITES.values() for entry in suite]

    assert {entry.row.stream for entry in entries} <= set(streams.STREAMS)
    assert {entry.row.method for entry in entries} <= set(METHODS)
    given = {(e.row.method, option) for e in entries for option in e.row.options}
    assert [(m, option) for m, option in given if option not in options_as_written(m)] == []


def test_choice_narrows_a_suite_and_hands_options_to_who_has_them() -> None:
    rows = chosen(
        Choice(suite="ci", methods=("er", "ncm"), seeds=1, samples=50, options={"capacity": 9})
    )

    found = {(row.stream, row.method, row.samples, tuple(row.options.items())) for row in rows}
    assert found == {
        ("split_digits", "er", 50, (("capacity", 9),)),
        ("blurred_digits", "er", 50, (("capacity", 9),)),
        ("split_digits", "ncm", 50, ()),
    }


def test_option_that_no_method_has_is_refused() -> None:
    with pytest.raises(SettingsError, match="no method of ncm has an option capacity"):
        chosen(Choice(streams=("split_digits",), methods=("ncm",), options={"capacity": 9}))


def test_words_become_options() -> None:
    assert parsed(["a=1", "b=0.5", "c=true", "d=text", "e=False"]) == {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": "text",
        "e": False,
    }
    with pytest.raises(SettingsError, match="got a1"):
        parsed(["a1"])


def test_finished_rows_are_not_run_again_and_failed_ones_are_named(tmp_path: Path) -> None:
    def ask(*methods: str) -> Choice:
        return Choice(
            streams=("split_digits",), methods=methods, samples=100, options={"patch": 999}
        )

    with pytest.raises(NotMeasured, match=r"1 of 2 rows failed: .*paper.*patch"):
        run.bench(ask("ncm", "paper"), tmp_path, QUIET, jobs=2)
    written = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    run.bench(replace(ask("ncm"), options={}), tmp_path, QUIET)

    assert list(written) == ["split_digits--ncm--n=100--seed=0.json"]
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written


@pytest.fixture
def not_ignored() -> Iterator[None]:
    """Let children hear SIGINT, though the shell of a command in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.usefixtures("not_ignored")
def test_interrupt_keeps_what_is_finished_and_leaves_no_process(tmp_path: Path) -> None:
    rows = ["--stream", "split_digits", "--method", "ncm", "--method", "paper"]
    command = [sys.executable, "-m", "service", "bench", *rows, "--out", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as levit:
        while not (finished := list(tmp_path.glob("*.json"))) or not _running(str(tmp_path)):
            time.sleep(0.05)
        levit.send_signal(signal.SIGINT)
        _, said = levit.communicate(timeout=20)

    assert levit.returncode != 0
    assert "Interrupted" in said
    assert list(tmp_path.iterdir()) == finished
    assert _running(str(tmp_path)) == []


def test_report_leaves_a_table_and_a_picture(tmp_path: Path) -> None:
    results.write(tmp_path / "r.json", _result(0))

    report.write(tmp_path, tmp_path / "RESULTS.md", QUIET)

    assert (tmp_path / "RESULTS.md").read_text().startswith("# Results")
    assert (tmp_path / "s.png").stat().st_size > 1000


def _running(word: str) -> list[str]:
    """Return the command line of every row that runs here and has `word` in it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            found.append(path.read_bytes().replace(b"\0", b" ").decode())
    return [line for line in found if "bench.child" in line and word in line]


def _result(seed: int, accuracy: float = 0.5) -> Result:
    """Return a made-up result."""
    outcome = Pass(toy_stream(), Oracle).run()
    told: Outcome = replace(outcome, accuracy=accuracy, novelty=[(10, 0.5), (20, 1.5)])
    row = Row(stream="s", method="m", options={"capacity": 7}, seed=seed)
    return Result(row=row, machine="a machine", outcome=told)


def test_throughput_refuses_to_fill_a_redis_of_yours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEVIT_REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setattr(sys, "argv", ["throughput", "--data", "digits"])

    with pytest.raises(SystemExit, match="LEVIT_REDIS_URL: expected none"):
        command.run(throughput.main)
