"""How far from its promised time an answer may be before a test says that it is wrong."""

BUSY = 10
"""How much slower than promised a machine may be that does other things, too.

Figures are printed and belong to benchmarks; tests only tell apart what ends from what does not.
"""
