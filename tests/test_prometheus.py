"""Every query of every dashboard, asked of a Prometheus that scrapes a service that learns."""

import subprocess
import time
from pathlib import Path

import pytest

from service.client import Client
from service.demo.data import load_data
from service.demo.process import free_port, running_service
from tests.dashboards import QUERIES
from tests.scraping import DEPLOY, fired, has_data, prometheus, targets_up, wait_for
from tests.system_packages import require

LEARNER = {
    "statistics_bytes": 2**20,
    "budget": 8,
    "capacity": 200,
    "false_expansion_probability": 0.5,
    "false_expansion_horizon": 100,
    "max_experts": 2,
}
"""Small, and expanding on little evidence; the second time it is refused."""
OF_THE_CAP = {"LevitExpertCapNear", "LevitExpansionsRefused"}


def test_the_shipped_configuration_is_valid() -> None:
    done = subprocess.run(
        [require("promtool"), "check", "config", DEPLOY / "prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_query_of_the_dashboards_returns_data_and_the_cap_of_experts_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("prometheus")
    monkeypatch.chdir(tmp_path)
    began = time.time()
    ports = {"port": free_port(0), "worker_metrics_port": free_port(0)}
    data = load_data("digits", None, limit=500)
    x, y = data.x_train, data.y_train
    with running_service({**LEARNER, **ports}) as url:
        targets = {
            "api": url.removeprefix("http://"),
            "worker": f"127.0.0.1:{ports['worker_metrics_port']}",
        }
        with prometheus(tmp_path, targets) as client, Client(url) as levit:
            wait_for(lambda: targets_up(client) == 2)
            assert targets_up(client) == 2

            def without_data() -> list[str]:
                levit.predict(data.x_test[:20])
                return [query for query in QUERIES if not has_data(client, query, since=began)]

            for images in (x, x.max() - x, x[:, ::-1], x.max() - x[:, ::-1]):  # ever new inputs
                if fired(client, since=began) >= OF_THE_CAP:
                    break
                for at in range(0, len(x), 10):
                    levit.observe(images[at : at + 10], y[at : at + 10])
                    time.sleep(0.1)  # so that scrapes fall between what happens
            wait_for(lambda: not without_data())
            wait_for(lambda: fired(client, since=began) >= OF_THE_CAP)

            assert without_data() == []
            assert not has_data(client, "levit_no_such_metric", since=began)
            assert fired(client, since=began) >= OF_THE_CAP
