"""Every setting, read once from the environment (prefix LEVIT_) and passed down.

There is no second source: no file, no global. A LEVIT_ name that no field has stops the start, as
a typo that is silently ignored is a setting that was never made. README's table is tested against
this class.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.errors import SettingsError
from service.inputs import InputSchema

PREFIX = "LEVIT_"
KEY = PREFIX + "KEY"
"""The one such name that is no setting: by it commands tell a service who asks."""
STREAM_NAME = "^[a-z][a-z0-9_-]{0,31}$"
"""What a stream may be called: part of routes, Redis names, directories and metric labels."""
Preset = Literal["default", "paper"]
FOREIGN: Mapping[Preset, frozenset[str]] = {
    "default": frozenset({"expert", "threshold", "replay_per_batch", "patch"}),
    "paper": frozenset(
        {
            "budget",
            "statistics_bytes",
            "replay_bytes",
            "key_replay_share",
            "false_expansion_probability",
            "false_expansion_horizon",
        }
    ),
}
"""Settings of the learner that a preset does not know."""
LEARNER = (
    "preset",
    "seed",
    "expert",
    "fusion",
    "budget",
    "statistics_bytes",
    "replay_bytes",
    "key_replay_share",
    "false_expansion_probability",
    "false_expansion_horizon",
    "threshold",
    "capacity",
    "replay_per_batch",
    "learning_rate",
    "patch",
    "max_experts",
    "label_window",
    "label_window_bytes",
)
"""Settings that the learner's state rests on; fixed for the life of a state directory."""
OF_A_STREAM = (*LEARNER, "input", "labels", "max_classes", "max_backlog")
"""Settings that a stream may declare for itself."""
STREAM_REPLAY_BYTES = 64 * 2**20
"""Of a declared stream's replay memory, unless it says another size: all share one Redis."""


class Settings(BaseSettings):
    """All settings of all processes; durations end in _s or _ms, sizes in _bytes."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    # Where things are
    state_dir: Path = Field(default=Path("levit-state"))
    """Directory of everything durable: Redis files, checkpoints, snapshots."""
    stream: str = Field(default="default", pattern=STREAM_NAME)
    """Stream that these settings are of; the service has one per declared stream."""
    data: Path | None = Field(default=None)
    """Directory of the data sets that `levit demo --data NAME` and the benchmarks read."""
    redis_url: str | None = Field(default=None)
    """redis:// or unix:// address of a server of yours; unset: one is started in `state_dir`."""
    redis_password_file: Path | None = Field(default=None)
    """File with the password of the user whom `redis_url` names, as in redis://api@redis:6379."""
    redis_maxmemory_bytes: int = Field(default=2**30, ge=64 * 2**20)
    """Memory limit of the server started in `state_dir`: log, replay memory and records."""
    host: str = Field(default="127.0.0.1")
    """Address the API listens on; anything but loopback needs keys."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port of the API."""
    worker_metrics_host: str = Field(default="127.0.0.1")
    """Address of the worker's metrics listener."""
    worker_metrics_port: int = Field(default=9101, ge=0, le=65535)
    """Port of the worker's metrics listener; 0 turns it off."""
    probe_host: str = Field(default="127.0.0.1")
    """Address of the API's second listener, which answers /livez, /readyz and /metrics only."""
    probe_port: int = Field(default=0, ge=0, le=65535)
    """Port of that listener, which floods of the first cannot starve; 0 turns it off."""
    insecure: bool = Field(default=False)
    """Serve while no key exists; refused unless `host` is loopback or `published_on_loopback`."""
    published_on_loopback: bool = Field(default=False)
    """Says that `host` is private to a container whose port is published on 127.0.0.1 only."""
    allowed_hosts: str | None = Field(default=None)
    """Names besides loopback's that insecure services and probes answer to, split at commas."""

    # Who may connect, and how slowly
    connections: int = Field(default=256, ge=1)
    """Most open connections; what comes beyond is closed with 503."""
    connections_per_address: int = Field(default=128, ge=0)
    """Most from one IPv4 address or IPv6 /64; 0 behind a proxy, where all have its address."""
    head_timeout_s: float = Field(default=5.0, gt=0)
    """Longest time to receive the head of a request."""
    receive_timeout_s: float = Field(default=10.0, gt=0)
    """Longest time to receive a request, and for which a stream or a reader may stand still."""
    stream_timeout_s: float = Field(default=600.0, gt=0)
    """Longest time to receive a streamed body."""

    # What a request may carry
    input: str | None = Field(default=None)
    """What a sample is, `image:HxWxC`, `vector:D` or `series:TxC`; unset: the first batch says."""
    labels: tuple[int | str, ...] | None = Field(default=None, min_length=1)
    """Labels a stream may have, a JSON list; unset: any, up to `max_classes`."""
    max_streams: int = Field(default=16, ge=1)
    """Most streams, the default one included."""
    max_body_bytes: int = Field(default=8 * 2**20, ge=1024)
    """Largest request body."""
    max_json_bytes: int = Field(default=2**20, ge=1024)
    """Largest JSON body, or line of one; parsing a MiB stops all else in the process for 50 ms."""
    max_pixels: int = Field(default=2**24, ge=2**14, le=2**26)
    """Most pixels in all PNG and JPEG images of one request, before they are resized."""
    max_batch: int = Field(default=1024, ge=1)
    """Most samples in one request."""
    max_classes: int = Field(default=1000, ge=2)
    """Most classes a stream may have."""
    max_backlog: int = Field(default=10_000, ge=1)
    """Entries accepted and not yet learned above which /observe answers 503."""
    disk_floor_bytes: int = Field(default=512 * 2**20, ge=0)
    """Free bytes, besides two checkpoints, below which /observe answers 503."""
    require_idempotency_key: bool = Field(default=False)
    """Refuse batches without an `Idempotency-Key`, whose retries could be learned twice."""
    allow_weaker_durability: bool = Field(default=False)
    """Be ready although Redis keeps less than the shipped configuration; answers say what."""
    top_k: int = Field(default=5, ge=1)
    """Classes listed per sample in the answer of /predict."""
    metrics_max_classes: int = Field(default=100, ge=1)
    """Classes with a metric series of their own; the rest is counted as `other`."""

    # The learner; fixed for the life of a state directory
    preset: Preset = Field(default="default")
    """Which learner: `default`, or `paper`, LEViT as published."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the learner's generator."""
    expert: Literal["vit", "dnn"] = Field(default="vit")
    """`paper`: expert kind for images; vectors and series always use `dnn`."""
    fusion: Literal["none", "fixed", "gated"] = Field(default="gated")
    """How features of frozen experts enter the active one (dynamic knowledge fusion)."""
    budget: float = Field(default=20.0, ge=0)
    """`default`: sample-gradients spent per sample; a forward pass of one is 1, a backward 2."""
    statistics_bytes: int = Field(default=64 * 2**20, ge=2**20)
    """`default`: bytes of the sums that cannot forget; they set the number of filters."""
    replay_bytes: int = Field(default=512 * 2**20, ge=16 * 2**20)
    """`default`: bytes of the replay memory; half of Redis, so that the log has the other half."""
    key_replay_share: float = Field(default=0.25, gt=0, le=1)
    """`default`: most of it that one of several keys takes from others; 1 / keys where more."""
    false_expansion_probability: float = Field(default=0.01, gt=0, lt=1)
    """`default`: chance of an expansion within the horizon while nothing changes."""
    false_expansion_horizon: int = Field(default=100_000, ge=1)
    """`default`: samples for which that chance holds."""
    threshold: float | None = Field(default=None, gt=0)
    """`paper`: novelty at which it expands (the paper's gamma); unset: max(0.1, 10 / capacity)."""
    capacity: int | None = Field(default=None, ge=2)
    """Most samples in the replay memory; unset: by its bytes, in `paper` 2,000 (colour 1,000)."""
    replay_per_batch: int = Field(default=54, ge=0)
    """`paper`: memory samples trained on again for each arriving batch."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Step size of Adam; unset: 0.001, in `paper` 0.002."""
    patch: int | None = Field(default=None, ge=1)
    """`paper`: patch side in pixels; unset: the divisor that gives nearest to 16 tokens."""
    max_experts: int = Field(default=32, ge=1)
    """Most experts; an expansion beyond is refused and counted."""
    label_window: int = Field(default=10_000, ge=0)
    """Entries for which a sample waits for a label that comes later; 0: no late labels."""
    label_window_bytes: int = Field(default=64 * 2**20, ge=0)
    """Bytes of entries with such samples above which the oldest wait no longer."""

    # The worker and the API
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto")
    """Where the worker trains; `default` and the API compute on the CPU."""
    worker_threads: int | None = Field(default=None, ge=1)
    """CPU threads of the worker's learner; unset: cores - 1, at least 1."""
    api_threads: int = Field(default=1, ge=1)
    """Forward passes that the API computes at a time, each in a process on one CPU thread."""
    checkpoint_interval_s: float = Field(default=10.0, gt=0)
    """Longest time between checkpoints under load; stretched so that they take 5 % of time."""
    snapshot_interval_s: float = Field(default=2.0, gt=0)
    """Time between published snapshots under load; stretched likewise."""
    checkpoints_kept: int = Field(default=3, ge=1)
    """Newest checkpoints kept; the log is trimmed behind the oldest of them."""
    log_archive: bool = Field(default=True)
    """Keep what is trimmed from the log in files of `state_dir`, for export and replay."""
    log_archive_bytes: int = Field(default=16 * 2**30, ge=2**20)
    """Size of these files above which the oldest are dropped."""
    state_hmac_key_file: Path | None = Field(default=None)
    """File with a key that signs checkpoints, snapshots and pins; others are then refused."""
    predict_max_batch: int = Field(default=64, ge=1)
    """Most samples in one shared forward pass."""
    predict_queue: int = Field(default=4096, ge=1)
    """Samples waiting for a forward pass above which /predict answers 503."""

    @field_validator("input")
    @classmethod
    def _input_is_a_schema(cls, text: str | None) -> str | None:
        if text is not None:
            InputSchema.parse(text)
        return text

    @property
    def schema_from_settings(self) -> InputSchema | None:
        """The input schema that LEVIT_INPUT declares, or None."""
        return None if self.input is None else InputSchema.parse(self.input)

    @property
    def learner(self) -> dict[str, Any]:
        """The settings of the learner by name, plain values."""
        return self.model_dump(include=set(LEARNER))

    @property
    def learner_threads(self) -> int:
        """CPU threads of the worker's learner."""
        return self.worker_threads or max(1, (os.cpu_count() or 1) - 1)

    def of_stream(
        self, name: str, options: Mapping[str, Any], state_dir: Path, redis_url: str
    ) -> Self:
        """Return the settings of a declared stream: these, but for what it declares.

        Args:
            name: what it is called.
            options: values of `OF_A_STREAM` by name.
            state_dir: its own directory.
            redis_url: address of the Redis of all streams.

        Raises:
            SettingsError: naming the option that is wrong.
        """
        unknown = sorted(set(options) - set(OF_A_STREAM))
        if unknown:
            raise SettingsError(f"{unknown[0]}: expected an option of {', '.join(OF_A_STREAM)}")
        own = self.model_dump(exclude={*OF_A_STREAM, "state_dir", "redis_url", "stream"})
        fixed = {"stream": name, "state_dir": state_dir, "redis_url": redis_url}
        fields = {one: type(self).model_fields[one].default for one in OF_A_STREAM}
        fields |= {} if options.get("preset") == "paper" else {"replay_bytes": STREAM_REPLAY_BYTES}
        return self._made(own | fields | dict(options) | fixed, "")

    @classmethod
    def read(cls, **overrides: object) -> Self:
        """Return the settings of this environment; `overrides` (command-line options) win.

        Raises:
            SettingsError: for an unknown LEVIT_ name or a value out of bounds, naming it.
        """
        names = {KEY, *(PREFIX + field.upper() for field in cls.model_fields)}
        unknown = sorted(n for n in os.environ if n.startswith(PREFIX) and n not in names)
        if unknown:
            raise SettingsError(f"unknown setting {unknown[0]}; `levit config` lists them all")
        given = {name: value for name, value in overrides.items() if value is not None}
        return cls._made(given, PREFIX)

    @classmethod
    def _made(cls, values: Mapping[str, Any], prefix: str) -> Self:
        """Return settings of `values`; an error names a field as whoever gave it knows it."""
        try:
            made = cls(**values)
            return made._checked()
        except ValidationError as error:
            field = str((first := error.errors()[0])["loc"][0])
            name = prefix + (field.upper() if prefix else field)
            if first["type"] == "value_error":  # ours, which says what it got
                raise SettingsError(f"{name}: {first['ctx']['error']}") from None
            raise SettingsError(f"{name}: {first['msg']}, got {first['input']!r}") from None

    def _checked(self) -> Self:
        """Return these settings, if they fit each other.

        Raises:
            SettingsError: naming the setting and what it contradicts.
        """
        most = self.redis_maxmemory_bytes // 2
        if self.redis_url is None and self.preset == "default" and self.replay_bytes > most:
            raise SettingsError(
                f"{PREFIX}REPLAY_BYTES: expected at most {most}, half of "
                f"{PREFIX}REDIS_MAXMEMORY_BYTES, got {self.replay_bytes}"
            )
        for name in FOREIGN[self.preset]:
            if getattr(self, name) != type(self).model_fields[name].default:
                other = "paper" if self.preset == "default" else "default"
                raise SettingsError(
                    f"{PREFIX}{name.upper()}: preset {self.preset} does not know it; unset it or "
                    f"set {PREFIX}PRESET={other}"
                )
        return self
