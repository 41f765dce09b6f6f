"""Proof by destruction: a service of real processes, clients that remember, a checker that counts.

    python -m tests.chaos --kills 600 --seed 0     kill worker, API and Redis, count what is left
    python -m tests.chaos --soak 1800              run undisturbed, measure what grows
    python -m tests.chaos --throughput 30          acknowledged batches of 196 KB a second

workload    the batches, made anew from a seed by whoever needs them
parts       worker, API and Redis as processes that come back at once
clients     four that retry with the same key until they are told 202, one that asks /predict
load        all of it running, while something is done to it
crash_loop  all of it, killed at random moments
points      a worker killed before each of its durable steps, by name
checker     what was acknowledged against what was learned
proxy       a network before Redis that fails in every way
"""
