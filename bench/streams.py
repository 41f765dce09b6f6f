"""Every stream of the benchmark by name; none carries task information to a method.

A stream is a function of its name, its seed and the number of samples. See `bench.arrivals` for
what a stream is and `bench.datasets` for where its samples come from.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from bench import datasets
from bench.arrivals import (
    Arrive,
    Plan,
    Stream,
    arranged,
    blurred,
    gradual,
    in_file_order,
    in_turn,
    split,
    unchanging,
)
from bench.datasets import Dataset
from bench.domains import permuted, rotating
from service.errors import SettingsError

FILE_TASKS = 10
"""At most about so many tasks are told apart on a user's file in class order."""
SHUFFLED = 20_000
"""Samples of the streams that need no more."""

Order = Literal["file", "class"]


def make(name: str, *, seed: int = 0, samples: int | None = None, order: Order = "file") -> Stream:
    """Return a stream by its name, or a user's .npz by its path.

    Args:
        name: one of `STREAMS`, or the path of an .npz.
        seed: of the order and of everything drawn.
        samples: at most so many arrive; None: all.
        order: of a user's .npz: as in the file, or class after class.

    Raises:
        SettingsError: no such stream, or LEVIT_DATA is needed and unset.
        BadDataFile: the data set is absent or not of the form.
    """
    if name in STREAMS:
        return STREAMS[name](Plan(name=name, seed=seed, samples=samples))
    path = Path(name)
    if path.suffix != ".npz":
        raise SettingsError(f"expected a stream of {', '.join(STREAMS)} or an .npz, got {name}")
    plan, data = Plan(name=path.stem, seed=seed, samples=samples), datasets.load_file(path)
    if order == "file":
        return in_file_order(plan, data)
    classes = int(data.y_train.max()) + 1
    return split(plan, data, arrive=in_turn, per_turn=1, per_task=-(-classes // FILE_TASKS))


def _split(source: str, arrive: Arrive, plan: Plan) -> Stream:
    return split(plan, datasets.load(source), arrive=arrive)


def _mnist_fashion(plan: Plan) -> Stream:
    """Return Split MNIST and after it Split Fashion-MNIST, 20 classes in all."""
    first, second = datasets.load("mnist"), datasets.load("fashion_mnist")
    further = int(first.y_train.max()) + 1
    both = Dataset(
        kind="image",
        x_train=torch.cat([first.x_train, second.x_train]),
        y_train=torch.cat([first.y_train, second.y_train + further]),
        x_test=torch.cat([first.x_test, second.x_test]),
        y_test=torch.cat([first.y_test, second.y_test + further]),
    )
    return split(plan, both, arrive=in_turn)


def _permuted(per_domain: int, plan: Plan) -> Stream:
    return permuted(plan, datasets.load("mnist"), per_domain=per_domain)


def _rotating(plan: Plan) -> Stream:
    return rotating(replace(plan, samples=plan.samples or SHUFFLED), datasets.load("mnist"))


def _unchanging(plan: Plan) -> Stream:
    return unchanging(replace(plan, samples=plan.samples or SHUFFLED), datasets.load("mnist"))


def _in_time(plan: Plan) -> Stream:
    return in_file_order(plan, datasets.load(plan.name))


def _subjects(plan: Plan) -> Stream:
    """Return UCI HAR, one person after another (seed 0: by number), tested on other people."""
    found = datasets.arrays("uci_har")
    person_N = torch.from_numpy(found["subject_train"].astype("int64"))
    people = person_N.unique()
    if plan.seed:
        people = people[torch.randperm(len(people), generator=plan.generator)]
    order = torch.cat([torch.nonzero(person_N == person)[:, 0] for person in people])
    return arranged(plan, datasets.dataset(found, "uci_har"), order[: plan.samples])


def _paired_images(plan: Plan) -> Stream:
    """Return the images of the audio-visual digits."""
    pairs, source = datasets.arrays("avdigits_pairs"), datasets.load("mnist")
    data = replace(
        source,
        x_train=source.x_train[torch.from_numpy(pairs["mnist_idx_train"])],
        y_train=torch.from_numpy(pairs["y_train"]),
        x_test=source.x_test[torch.from_numpy(pairs["mnist_idx_test"])],
        y_test=torch.from_numpy(pairs["y_test"]),
    )
    return split(plan, data, arrive=in_turn)


STREAMS: Mapping[str, Callable[[Plan], Stream]] = {
    "split_mnist": partial(_split, "mnist", in_turn),
    "split_mnist_fashion": _mnist_fashion,
    "split_cifar10": partial(_split, "cifar10", in_turn),
    "split_digits": partial(_split, "digits", in_turn),
    "blurred_mnist": partial(_split, "mnist", blurred),
    "blurred_cifar10": partial(_split, "cifar10", blurred),
    "blurred_digits": partial(_split, "digits", blurred),
    "gradual_cifar10": partial(_split, "cifar10", gradual),
    "permuted_mnist": partial(_permuted, 1000),
    "permuted_mnist_6000": partial(_permuted, 6000),
    "rotating_mnist": _rotating,
    "uci_har": _subjects,
    "fsdd": partial(_split, "fsdd", in_turn),
    "avdigits_image": _paired_images,
    "electricity": _in_time,
    "noaa_weather": _in_time,
    "unchanging_mnist": _unchanging,
}
"""Every stream by name."""
