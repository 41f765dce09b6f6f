"""The API process: what it is made of, how it starts and stops, how an error becomes an answer.

event loop            routes, the codec's small bodies, Redis
thread `decode` x 2   big bodies
thread `inference`    waits for every forward pass
thread `follow`       loads published snapshots, sends them to where they answer
inference process     the learner's libraries, every forward pass: `service.engine.remote`
"""

import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache

from fastapi import APIRouter, Depends, FastAPI
from prometheus_client import CollectorRegistry

from service import __version__, logs, tracing
from service.api.access import STREAM_PREFIX
from service.api.answers import ERRORS, answer_error
from service.api.auth import Authentication
from service.api.codec import Codec
from service.api.documents import DocumentedApp
from service.api.hosts import OnlyHosts, known_hosts
from service.api.keyring import Keyring
from service.api.listeners import server_of
from service.api.predictor import Predictors
from service.api.routes_checkpoints import checkpoint_routes
from service.api.routes_events import event_routes
from service.api.routes_labels import label_routes
from service.api.routes_learn import learn_routes
from service.api.routes_live import live_routes
from service.api.routes_oip import oip_routes
from service.api.routes_page import page_routes
from service.api.routes_predict import predict_routes
from service.api.routes_quarantine import quarantine_routes
from service.api.routes_samples import sample_routes
from service.api.routes_streams import stream_routes
from service.api.routes_timeline import timeline_routes
from service.api.routes_watch import probe_routes, watch_routes
from service.api.streams import Streams, named_stream
from service.exposure import check_exposure
from service.learned import LearningCollector
from service.metrics import ApiMetrics
from service.settings import Settings
from service.store import directory


def create_app(settings: Settings, load_predictors: Callable[[], Predictors]) -> FastAPI:
    """Return the API; everything that runs begins and ends with its lifespan.

    `app.state.probes` is the app of the second listener; it lives by the first one's lifespan.
    `app.state.end_waiting` ends the requests that only wait; to be called before it is stopped.

    Args:
        settings: where Redis and the snapshots are, what requests may carry.
        load_predictors: returns what makes predictors; called in a thread.

    Raises:
        SettingsError: it would be open to strangers.
    """
    check_exposure(settings)
    registry = CollectorRegistry()
    metrics = ApiMetrics(registry)
    streams = Streams(settings, _once(load_predictors), metrics)
    keyring = Keyring(settings.state_dir, insecure=settings.insecure)
    codec = Codec(settings)
    registry.register(
        LearningCollector(lambda: streams.facts, max_classes=settings.metrics_max_classes)
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        """Start the threads; stop them in reverse order of who needs whom."""
        await streams.start()
        yield
        await streams.stop()
        codec.close()

    app = DocumentedApp(
        title="LEViT Stream",
        version=__version__,
        description="An online, task-free streaming learner: observe batches, predict samples.",
        lifespan=lifespan,
        docs_url=None,  # ours is in routes_watch: FastAPI's page loads scripts from a CDN
        redoc_url=None,
        redirect_slashes=False,
    )
    app.keys_optional = settings.insecure
    # A request is compared with one route after the other: first come those of every batch.
    for router in (
        predict_routes(streams.of, codec),
        learn_routes(streams.of, codec),
        label_routes(streams.of, codec),
        quarantine_routes(streams.of),
        checkpoint_routes(streams.of),
        event_routes(streams.of),
        timeline_routes(streams.of),
        sample_routes(streams.of),
        live_routes(streams.of),
    ):
        app.include_router(router)
        app.include_router(router, prefix=STREAM_PREFIX, dependencies=[Depends(named_stream)])
    for router in (
        oip_routes(streams, codec),
        stream_routes(streams),
        watch_routes(),
        page_routes(),
    ):
        app.include_router(router)
    app.add_middleware(Authentication, keyring, metrics.refusals)
    app.state.end_waiting = streams.end_waiting
    _finish(app, settings, probes=probe_routes(streams, keyring, metrics, registry))
    return app


def _once(load_predictors: Callable[[], Predictors]) -> Callable[[], Predictors]:
    """Return what loads them for whoever asks first and gives them to all."""
    loading = threading.Lock()
    loaded = cache(load_predictors)

    def load() -> Predictors:
        """Wait for whoever is loading them."""
        with loading:
            return loaded()

    return load


def serve(settings: Settings, load_predictors: Callable[[], Predictors]) -> None:
    """Serve the API until SIGTERM or SIGINT.

    Raises:
        SettingsError: it would be open to strangers.
    """
    logs.configure("api")
    tracing.configure("api")
    directory.sign_with(settings.state_hmac_key_file)
    # uvicorn stops in order and then raises the signal once more, which would be the exit code.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    app = create_app(settings, load_predictors)
    with suppress(KeyboardInterrupt):
        server_of(app, app.state.probes, settings, end_waiting=app.state.end_waiting).run()


def _finish(app: FastAPI, settings: Settings, *, probes: APIRouter) -> None:
    """Give an app its probes, a second app of them alone, and to both who may ask at all."""
    hosts = known_hosts(settings.allowed_hosts)
    if settings.insecure:
        app.add_middleware(OnlyHosts, names=hosts)
    alone = FastAPI(openapi_url=None, redirect_slashes=False)
    alone.add_middleware(OnlyHosts, names=hosts)  # nobody needs a key there
    for one in (app, alone):
        one.include_router(probes)
        for kind in ERRORS:
            one.add_exception_handler(kind, answer_error)
    app.state.probes = alone
