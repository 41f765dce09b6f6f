# Made out of asynchronous/__init__.py by `make generate`; changes belong there.
"""The client without `async`: made by `generate`; from one thread at a time."""
