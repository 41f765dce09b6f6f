"""An API process with toy predictors: `python -m tests.toy_api`; settings as `levit api`."""

import sys

from service.api.app import serve
from service.settings import Settings
from tests.toy_engine import ToyEngines

if __name__ == "__main__":
    serve(Settings.read(), ToyEngines)
    sys.exit(0)
