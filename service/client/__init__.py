"""The Python client: numpy in, numpy out, over the same HTTP as everyone; no torch.

    with Client(key=os.environ["LEVIT_KEY"]) as client:
        receipt = client.observe(images, labels)
        client.wait_until_learned(receipt, timeout_s=60)
        print(client.predict(images).labels)

`AsyncClient` is the same with `async` and `await`, and the one that is written by hand: `make
generate` makes `synchronous/` out of `asynchronous/`.

Errors:
    ApiError: the service refused, or could not be reached.
    ValueError: what was handed in is of a kind that the wire does not have; nothing was sent.
    TimeoutError: a batch was not learned in time.
"""

from service.client.asynchronous.client import AsyncClient
from service.client.models import (
    RETRIED_STATUSES,
    Answers,
    ApiError,
    Event,
    Observation,
    Receipt,
    Sent,
)
from service.client.synchronous.client import Client

__all__ = [
    "RETRIED_STATUSES",
    "Answers",
    "ApiError",
    "AsyncClient",
    "Client",
    "Event",
    "Observation",
    "Receipt",
    "Sent",
]
