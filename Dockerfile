# One image for `levit serve`, `levit api` and `levit worker`; on the CPU, unless built with
#   docker build --build-arg TORCH_INDEX= .        (PyPI's default build for Linux, which is CUDA)

FROM python:3.11.14-slim-bookworm AS build
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
COPY requirements.lock requirements-build.lock /build/
RUN /venv/bin/pip install --require-hashes -r /build/requirements.lock
RUN python -m venv /builder && /builder/bin/pip install --require-hashes -r /build/requirements-build.lock
# Last, so that what it needs is there: of its own index only PyTorch itself is taken.
RUN /venv/bin/pip install ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} "${TORCH}"
COPY pyproject.toml README.md LICENSE /build/
COPY learner /build/learner
COPY service /build/service
RUN /builder/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheel /build \
    && /venv/bin/pip install --no-deps --no-index /wheel/*.whl

FROM python:3.11.14-slim-bookworm
COPY --from=build /venv /venv
RUN install --directory --owner=10001 --group=10001 --mode=700 /state
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    OMP_WAIT_POLICY=PASSIVE KMP_BLOCKTIME=0 LEVIT_STATE_DIR=/state LEVIT_HOST=0.0.0.0 LEVIT_PROBE_PORT=8001
USER 10001:10001
VOLUME /state
EXPOSE 8000 8001 9101
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8001/livez', timeout=4)"]
ENTRYPOINT ["levit"]
CMD ["serve"]
