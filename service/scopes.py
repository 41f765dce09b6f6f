"""What a key may allow: the closed list of scopes; and who has none."""

from typing import Literal, get_args

Scope = Literal["observe", "predict", "read", "metrics", "admin"]
"""`observe`: hand in batches and labels. `predict`: ask for answers. `read`: look at experts,
samples, events and what became of batches. `metrics`: /metrics. `admin`: everything that changes
the service itself; it contains no other scope."""
SCOPES: frozenset[Scope] = frozenset(get_args(Scope))
ANONYMOUS_ID = "anonymous"
"""Id of whoever came without a key, where that is allowed."""
