"""Every error the service raises on purpose; each carries its HTTP status and stable code.

ServiceError(status, code)
+-- BadRequest 400
+-- Unauthorized 401
+-- Forbidden 403
+-- NotFound 404
+-- TooSlow 408
+-- Conflict 409
+-- TooLarge 413
+-- UnsupportedMedia 415
+-- Misdirected 421
+-- Unprocessable 422
+-- TooMany 429 (with Retry-After)
+-- Unavailable 503 (with Retry-After)
SettingsError      (a process does not start; exit 2)
Misused            (options of a command contradict each other; exit 2)
StateDirectoryBusy (another worker holds the state directory; exit 75)
DemoFailed         (the demo's service died or learns nothing; exit 1)
IncompleteHistory  (entries that a replay or an export needs are kept no longer; exit 1)
CorruptState       (a checkpoint, snapshot or log entry is not what was written; exit 65)

A message names the thing, the bound and the value, in lower case and without a full stop.
Clients match on `code`, people read the message. Codes are listed in README.
"""


class ServiceError(Exception):
    """A request that is refused; becomes `application/problem+json`."""

    status: int = 500
    title: str = "Internal error"

    def __init__(self, code: str, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


class BadRequest(ServiceError):
    """The body or a header cannot be read at all."""

    status, title = 400, "Bad request"


class Unauthorized(ServiceError):
    """Nobody knows who asks: no key, or one that does not count (any more)."""

    status, title = 401, "Unauthorized"


class Forbidden(ServiceError):
    """Whoever asks may not."""

    status, title = 403, "Forbidden"


class NotFound(ServiceError):
    """The thing asked for does not exist (any more)."""

    status, title = 404, "Not found"


class TooSlow(ServiceError):
    """The client did not send, or read, what was waited for."""

    status, title = 408, "Too slow"


class Conflict(ServiceError):
    """The request lost a race and may be repeated with the same Idempotency-Key."""

    status, title = 409, "Conflict"


class TooLarge(ServiceError):
    """The body or the batch is over a stated bound."""

    status, title = 413, "Too large"


class UnsupportedMedia(ServiceError):
    """The Content-Type or Content-Encoding is not one we read."""

    status, title = 415, "Unsupported media type"


class Misdirected(ServiceError):
    """The request was meant for another host."""

    status, title = 421, "Misdirected request"


class Unprocessable(ServiceError):
    """The body was read, but says something the stream does not accept."""

    status, title = 422, "Unprocessable"


class TooMany(ServiceError):
    """This key has used up what it may ask for now; `retry_after_s` says when to come back."""

    status, title = 429, "Too many requests"


class Unavailable(ServiceError):
    """The service cannot do this now; the client should come back after `retry_after_s`."""

    status, title = 503, "Unavailable"


class SettingsError(Exception):
    """A setting is unknown, malformed or contradicts the state directory."""


class Misused(Exception):
    """The options of a command are too few, or contradict each other."""


class StateDirectoryBusy(Exception):
    """Another worker process holds this state directory."""


class DemoFailed(Exception):
    """The demo's own service died, or learns nothing any more."""


class IncompleteHistory(Exception):
    """Entries that a replay or an export needs are kept neither in the archive nor in the log."""


class CorruptState(Exception):
    """Bytes on disk or in the log are not the bytes that were written."""
