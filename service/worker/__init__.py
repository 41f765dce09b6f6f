"""The process that learns: synchronous, one per stream."""
