"""Which rows belong together, and how many seeds each is worth."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from bench.methods import Option, options_of
from bench.rows import Row
from bench.streams import Order
from service.errors import SettingsError

GREY = ("split_mnist", "split_mnist_fashion", "permuted_mnist", "permuted_mnist_6000", "uci_har")
COLOUR = ("split_cifar10", "blurred_cifar10", "gradual_cifar10")
CONTRIBUTIONS = {"split_digits": 1, "permuted_mnist": 1, "uci_har": 5, "noaa_weather": 1}
"""Small streams on which each part of the default learner is taken out, and with how many seeds."""
TAKEN_OUT: tuple[Mapping[str, Option], ...] = (
    {},
    {"budget": 0},
    {"fusion": "none"},
    {"expansion": False},
)
IN_TIME = ("electricity", "noaa_weather")

COMPARED = ("er", "slda", "randumb")
"""On every stream with held-out samples."""
PREQUENTIAL = ("previous_label", "majority", "river-arf", "river-hat")
"""On every stream in time order."""
SPLIT_MNIST_PEERS = tuple(
    f"avalanche-{name}" for name in ("er", "mir", "er-ace", "scr", "cope", "der", "gdumb", "slda")
)
SPLIT_CIFAR10_PEERS = tuple(f"avalanche-{name}" for name in ("er", "er-ace", "mir", "scr"))
REPLAYING = tuple(name for name in SPLIT_MNIST_PEERS if name != "avalanche-slda")
SEEDS = {"uci_har": 5, "noaa_weather": 5, "electricity": 5, "permuted_mnist": 3}
"""Of preset default: five where a run takes less than 5 minutes, three below 10, else one."""
OUR_BYTES = {"split_mnist": 100_000_000, "split_cifar10": 112_000_000}
"""The whole state of preset default there, with replay as in the paper; peers may fill as much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One row and the seeds 0 to seeds - 1 it is run with."""

    row: Row
    seeds: int = 1

    @property
    def rows(self) -> list[Row]:
        """The row once per seed."""
        return [replace(self.row, seed=seed) for seed in range(self.seeds)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a user asks for; None and empty: whatever the suite says."""

    suite: str | None = None
    streams: Sequence[str] = ()
    methods: Sequence[str] = ()
    options: Mapping[str, Option] = field(default_factory=dict)
    """Go to those of the methods that have them."""
    seeds: int | None = None
    samples: int | None = None
    batch: int | None = None
    threads: int = 1
    order: Order = "file"


def _entries(
    streams: Iterable[str], methods: Iterable[str], seeds: int, **options: Option
) -> list[Entry]:
    rows = [(stream, method) for stream in streams for method in methods]
    return [Entry(row=Row(stream=s, method=m, options=options), seeds=seeds) for s, m in rows]


def _ours(streams: Iterable[str], **options: Option) -> list[Entry]:
    return [e for s in streams for e in _entries([s], ["default"], SEEDS.get(s, 1), **options)]


SUITES: Mapping[str, Sequence[Entry]] = {
    "ci": [
        *_entries(["split_digits"], ["finetune", "er", "ncm", "slda"], 3),
        *_entries(["split_digits"], ["randumb"], 3, features=500),
        *_entries(["split_digits"], ["paper"], 1, capacity=200),
        *_entries(["blurred_digits"], ["er", "slda"], 1),
        *_entries(["split_digits", "blurred_digits"], ["default"], 1, capacity=200),
    ],
    "quick": [
        *(
            Entry(row=Row(stream=stream, method=method, samples=5000))
            for stream in ("split_mnist", "permuted_mnist", "uci_har", "electricity")
            for method in ("er", "slda", "paper")
        ),
    ],
    "further": _entries(
        ["blurred_mnist", "rotating_mnist", "fsdd", "avdigits_image"], [*COMPARED, "paper"], 1
    ),
    "headline": [
        *_ours(GREY, capacity=2000),
        *_ours(COLOUR, capacity=1000),
        *_ours(IN_TIME, capacity=2000),
        *_ours([*GREY, *COLOUR, *IN_TIME]),
        *_entries(["unchanging_mnist"], ["default"], 3),
        *_entries(["split_cifar10"], ["default"], 5, budget=0, statistics_mib=18),
        *_entries(["split_mnist"], ["default"], 5, budget=0, statistics_mib=8),
        *_entries([*GREY, "unchanging_mnist"], COMPARED, 5),
        *_entries(["split_mnist"], ["finetune", "ncm"], 5),
        *_entries(COLOUR, ["slda", "randumb"], 3),
        *_entries(COLOUR, ["er"], 1),
        *_entries(GREY, ["paper"], 3),
        *_entries(["split_cifar10", "unchanging_mnist"], ["paper"], 1),
        *_entries(IN_TIME, ["paper", "er", "slda", *PREQUENTIAL], 1),
        *_entries(["split_mnist"], SPLIT_MNIST_PEERS, 1),
        *_entries(["split_cifar10"], SPLIT_CIFAR10_PEERS, 1),
        *_entries(["split_mnist"], REPLAYING, 1, state_bytes=OUR_BYTES["split_mnist"]),
        *_entries(
            ["split_cifar10"], SPLIT_CIFAR10_PEERS, 1, state_bytes=OUR_BYTES["split_cifar10"]
        ),
        *_entries(GREY[1:], ["avalanche-er"], 1),
        *(
            Entry(row=Row(stream=stream, method=method, batch=1))
            for stream in IN_TIME
            for method in PREQUENTIAL
        ),
    ],
    "contributions": [
        *_entries(CONTRIBUTIONS, ["slda"], 1),
        *(
            entry
            for stream, seeds in CONTRIBUTIONS.items()
            for options in TAKEN_OUT
            for entry in _entries([stream], ["default"], seeds, **options)
        ),
    ],
}
"""Every suite by name."""


def chosen(choice: Choice) -> list[Row]:
    """Return the rows a user asks for, each with its seed.

    With a suite, streams and methods choose among its rows; else every method meets every stream.

    Raises:
        SettingsError: no such suite, method or option, or nothing is left.
    """
    if choice.suite is not None and choice.suite not in SUITES:
        raise SettingsError(f"expected a suite of {', '.join(SUITES)}, got {choice.suite}")
    if choice.suite is None and not (choice.streams and choice.methods):
        raise SettingsError("expected --suite, or both --stream and --method; see --list")
    found = SUITES[choice.suite] if choice.suite else _entries(choice.streams, choice.methods, 1)
    if choice.suite:
        found = [e for e in found if _among(e.row.stream, choice.streams)]
        found = [e for e in found if _among(e.row.method, choice.methods)]
    if not found:
        raise SettingsError(f"no row of suite {choice.suite} has that stream and method")
    rows = [row for e in found for row in replace(e, seeds=choice.seeds or e.seeds).rows]
    return _with_options([_changed(row, choice) for row in rows], choice.options)


def _among(name: str, names: Sequence[str]) -> bool:
    return not names or name in names


def _changed(row: Row, choice: Choice) -> Row:
    return replace(
        row,
        samples=choice.samples or row.samples,
        batch=choice.batch or row.batch,
        threads=choice.threads,
        order=choice.order,
    )


def _with_options(rows: Sequence[Row], options: Mapping[str, Option]) -> list[Row]:
    """Return the rows, each with those options that its method has."""
    if not options:
        return list(rows)
    has = {row.method: options_of(row.method) for row in rows}
    for name in options:
        if not any(name in known for known in has.values()):
            raise SettingsError(f"no method of {', '.join(has)} has an option {name}")
    return [
        replace(
            row,
            options={
                **row.options,
                **{name: value for name, value in options.items() if name in has[row.method]},
            },
        )
        for row in rows
    ]
