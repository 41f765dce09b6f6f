"""LEViT Stream's shell: every effect (network, disk, clock, processes) lives here."""

__version__ = "0.1.0"
