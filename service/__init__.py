"""LEViT Stream's shell: every effect (network, disk, clock, processes) lives here."""
