"""Measurements that anyone can repeat.

`levit bench` (`cli`): accuracy, the strict protocol. In reading order: `methods` (what a method
must offer), `arrivals`, `domains`, `streams` (what arrives), `protocol` (one pass), `outcome`,
`rows`, `suites`, `run` and `child` (each row in its own process), `results`, `report`, `plots`.
Methods: `presets` (ours), `closed_form`, `replay_nets`, `peers`.
`ablation`, `latency`, `throughput`: each a command of its own with --help.
"""
