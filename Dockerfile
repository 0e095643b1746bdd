# Two images: `operator`, which holds no torch, and `trainer`, which coordinators and workers run.
#
#   docker build --target operator --tag adaptrain-operator .
#   docker build --target trainer --tag adaptrain-trainer .
#
# Dependencies are a layer of their own, our code is the last and small one: a change of code moves little.
# Behind a private certificate authority, mount its bundle and name it with --build-arg SSL_CERT_FILE=...
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS python
# With a name in /etc/passwd: torch asks for it.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/* \
 && find /usr/share/doc -type f ! -name copyright -delete \
 && echo 'adaptrain:x:10001:' >> /etc/group \
 && echo 'adaptrain:x:10001:10001::/tmp:/usr/sbin/nologin' >> /etc/passwd
ENV PATH=/opt/adaptrain/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /tmp

FROM python AS build
ARG SSL_CERT_FILE
RUN apt-get update && apt-get install --yes --no-install-recommends python3-pip
RUN PIP_CERT="${SSL_CERT_FILE}" pip install --break-system-packages --no-cache-dir --only-binary :all: uv==0.13.9
# The root file system is read-only at run time: whatever is imported is compiled when it is installed.
# A script of its own, since the images' last stages borrow it together with uv, and keep neither.
RUN printf '%s\n' '#!/bin/sh -e' \
      'export PATH=/mnt:$PATH PYC_INVALIDATION_MODE=UNCHECKED_HASH UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never' \
      'test -e /opt/adaptrain || uv venv --python /usr/bin/python3 /opt/adaptrain' \
      'exec uv pip install --python /opt/adaptrain/bin/python --no-deps --link-mode copy --compile-bytecode "$@"' \
      > /usr/local/bin/install-python \
 && chmod 755 /usr/local/bin/install-python
COPY requirements/operator.txt requirements/trainer.txt /requirements/

FROM build AS wheel
ARG SSL_CERT_FILE
WORKDIR /src
COPY . .
RUN uv build --no-cache --wheel --out-dir /dist && install-python /dist/*.whl

FROM wheel AS operator-code
RUN rm -r /opt/adaptrain/bin/adaptrain /opt/adaptrain/lib/python3*/site-packages/adaptrain

FROM wheel AS trainer-code
RUN rm -r /opt/adaptrain/bin/adaptrain-operator /opt/adaptrain/lib/python3*/site-packages/adaptrain_operator

FROM python AS operator
ARG SSL_CERT_FILE
# From `build` rather than from here: a copied file makes older versions of buildah mount that stage as it should be.
COPY --from=build /requirements/operator.txt /opt/requirements.txt
# The operator speaks through kubernetes.aio: the other client's classes, each loaded when it is first used, never are.
RUN --mount=type=bind,from=build,source=/usr/local/bin,target=/mnt \
    /mnt/install-python --require-hashes --requirements /opt/requirements.txt \
 && find /opt/adaptrain/lib/python3*/site-packages/kubernetes/client/models \
         /opt/adaptrain/lib/python3*/site-packages/kubernetes/client/api \
         -type f ! -name '__init__*' -delete
COPY --from=operator-code /opt/adaptrain /opt/adaptrain
USER 10001:10001
ENTRYPOINT []
CMD ["adaptrain-operator"]

FROM python AS trainer
ARG SSL_CERT_FILE
# torch.compile makes C++ on CPUs, and C against Python's headers on GPUs (Triton).
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ libpython3-dev \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/* /usr/share/doc/*
COPY --from=build /requirements/trainer.txt /opt/requirements.txt
RUN --mount=type=bind,from=build,source=/usr/local/bin,target=/mnt \
    /mnt/install-python --require-hashes --requirements /opt/requirements.txt
COPY --from=trainer-code /opt/adaptrain /opt/adaptrain
USER 10001:10001
ENTRYPOINT []
CMD ["adaptrain", "--help"]
