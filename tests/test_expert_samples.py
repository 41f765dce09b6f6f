"""GET /experts/{expert}/samples: real samples that an expert answers, and drawn ones."""

import base64
import io

import httpx
import numpy as np
import pytest
from PIL import Image

from service.api.pictures import shown
from service.engine.levit import LevitEngines
from service.engine.protocol import Array, ExpertInfo
from service.inputs import InputSchema
from service.settings import Settings
from tests.conftest import MakeSettings
from tests.served import assert_problem, publish, remember, running_api, until_served
from tests.test_absent_redis import absent_redis, mortal_redis, silent_redis

__all__ = ["absent_redis", "mortal_redis", "silent_redis"]

EXPERTS = [
    ExpertInfo(
        id=id_,
        state="frozen",
        born_step=0,
        frozen_step=1,
        novelty=None,
        samples=1,
        classes=(),
        parameters=1,
        bytes=1,
    )
    for id_ in (1, 3)
]
MEMBERS = {(n, 0): (np.full((8, 8, 1), n, np.uint8), n % 4) for n in range(1, 31)}


def pixels(png: str) -> Array:
    return np.array(Image.open(io.BytesIO(base64.b64decode(png))))


async def test_an_expert_shows_what_it_answers_and_what_it_draws(
    api_settings: Settings, redis_server: str
) -> None:
    publish(api_settings.state_dir, classes=[5], experts=EXPERTS)
    remember(redis_server, MEMBERS)

    async with running_api(api_settings) as client:
        await until_served(client)
        three = (await client.get("/experts/3/samples", params={"n": 4})).json()
        one = (await client.get("/streams/default/experts/1/samples")).json()

    assert [s["sample_id"] for s in three["replay"]] == ["1:0", "11:0", "20:0", "30:0"]
    assert [s["label"] for s in three["replay"]] == [1, 3, 0, 2]
    shown_pixels = [pixels(s["png"]) for s in three["replay"]]
    assert [(p.shape, p[0, 0]) for p in shown_pixels] == [((8, 8), n) for n in (1, 11, 20, 30)]
    assert [pixels(png).tolist() for png in three["drawn"]] == [[[3] * 4] * 4] * 4
    assert (three["expert"], three["model_version"], three["replay_reason"]) == (3, 1, None)
    assert (one["replay"], len(one["drawn"])) == ([], 8)  # the model lets expert 3 answer all


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/experts/2/samples", 404, "unknown_expert"),
        ("/experts/x/samples", 422, "bad_parameter"),
        ("/experts/3/samples?n=0", 422, "bad_parameter"),
        ("/experts/3/samples?n=33", 422, "bad_parameter"),
    ],
)
async def test_what_is_not_there_or_too_much_is_refused(
    api_settings: Settings, path: str, status: int, code: str
) -> None:
    publish(api_settings.state_dir, classes=[5], experts=EXPERTS)

    async with running_api(api_settings) as client:
        await until_served(client)

        assert (await client.get("/experts/3/samples?n=32")).status_code == 200
        assert_problem(await client.get(path), status, code)


async def test_before_the_first_model_no_expert_is_known(api: httpx.AsyncClient) -> None:
    assert_problem(await api.get("/experts/0/samples"), 404, "unknown_expert")


async def test_without_redis_there_are_drawn_samples_and_a_reason(
    settings: MakeSettings, absent_redis: str
) -> None:
    chosen = settings(insecure=True, redis_url=absent_redis)
    publish(chosen.state_dir, classes=[5], experts=EXPERTS)

    async with running_api(chosen) as client:
        await until_served(client)
        answer = await client.get("/experts/3/samples")

    said = answer.json()
    assert answer.status_code == 200
    assert (said["replay"], said["replay_reason"]) == (None, "redis does not answer")
    assert len(said["drawn"]) == 8


@pytest.mark.parametrize("preset", ["paper", "default"])
@pytest.mark.parametrize("kind", ["image:8x8x1", "image:8x8x3", "vector:5", "series:6x2"])
def test_what_a_learner_draws_has_the_form_of_its_samples(preset: str, kind: str) -> None:
    schema, engines = InputSchema.parse(kind), LevitEngines(threads=1)
    small = {"statistics_bytes": 2**20, "budget": 4} if preset == "default" else {}
    settings = Settings.read(preset=preset, capacity=40, **small)
    engine = engines.create(settings, schema)
    generator = np.random.default_rng(0)
    for number in range(1, 25):
        x = generator.random((10, *schema.shape), np.float32)
        engine.observe((number, 0), x, generator.integers(0, 3, 10))

    drawn = engines.predictor(engine.dump()).draw(0, 3)

    assert drawn.shape == (3, *schema.shape)
    assert drawn.dtype == (np.uint8 if schema.kind == "image" else np.float32)
    assert isinstance(shown(drawn[0]), str) == (schema.kind == "image")
