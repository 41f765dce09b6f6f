"""Proof by destruction: a service of real processes, clients that remember, a checker that counts.

    python -m tests.chaos --kills 600 --seed 0     kill worker, API and Redis, count what is left
    python -m tests.chaos --soak 1800              run undisturbed, measure what grows

workload    the batches, made anew from a seed by whoever needs them
parts       worker, API and Redis as processes that come back at once
clients     four that retry with the same key until they are told 202, one that asks /predict
crash_loop  all of it, killed at random moments
checker     what was acknowledged against what was learned
proxy       a network before Redis that fails in every way
"""
