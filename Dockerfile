# Two images: `operator`, which holds no torch, and `trainer`, which coordinators and workers run.
#
#   docker build --target operator --tag adaptrain-operator .
#   docker build --target trainer --tag adaptrain-trainer .
#
# Dependencies are a layer of their own, our code is the last and small one: a change of code moves little.
# Behind a private certificate authority, mount its bundle and name it with --build-arg SSL_CERT_FILE=...; build
# stages alone see it.
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS python
# With a name in /etc/passwd: torch asks for it.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/* /usr/share/doc/* \
 && echo 'adaptrain:x:10001:' >> /etc/group \
 && echo 'adaptrain:x:10001:10001::/tmp:/usr/sbin/nologin' >> /etc/passwd
# The root file system is read-only at run time: whatever is imported was compiled when it was installed.
ENV PATH=/opt/adaptrain/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /tmp

FROM python AS build
ARG SSL_CERT_FILE
RUN apt-get update && apt-get install --yes --no-install-recommends python3-pip ca-certificates
RUN PIP_CERT="${SSL_CERT_FILE}" pip install --break-system-packages --no-cache-dir --only-binary :all: uv==0.13.9
ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1 \
    UV_PYTHON_DOWNLOADS=never \
    PYC_INVALIDATION_MODE=UNCHECKED_HASH \
    VIRTUAL_ENV=/opt/adaptrain
RUN uv venv --python /usr/bin/python3 /opt/adaptrain

FROM build AS operator-dependencies
ARG SSL_CERT_FILE
COPY requirements/operator.txt /tmp/
# The operator speaks through kubernetes.aio: the other client's classes, each loaded when it is first used, never are.
RUN uv pip install --require-hashes --no-deps --requirements /tmp/operator.txt \
 && find /opt/adaptrain/lib/python3*/site-packages/kubernetes/client/models \
         /opt/adaptrain/lib/python3*/site-packages/kubernetes/client/api \
         -type f ! -name '__init__*' -delete

FROM build AS trainer-dependencies
ARG SSL_CERT_FILE
COPY requirements/trainer.txt /tmp/
RUN uv pip install --require-hashes --no-deps --requirements /tmp/trainer.txt

FROM build AS wheel
ARG SSL_CERT_FILE
WORKDIR /src
COPY . .
RUN uv build --wheel --out-dir /dist \
 && uv pip install --no-deps /dist/*.whl

FROM wheel AS operator-code
RUN rm -r /opt/adaptrain/bin/adaptrain /opt/adaptrain/lib/python3*/site-packages/adaptrain

FROM wheel AS trainer-code
RUN rm -r /opt/adaptrain/bin/adaptrain-operator /opt/adaptrain/lib/python3*/site-packages/adaptrain_operator

FROM python AS operator
COPY --from=operator-dependencies /opt/adaptrain /opt/adaptrain
COPY --from=operator-code /opt/adaptrain /opt/adaptrain
USER 10001:10001
ENTRYPOINT []
CMD ["adaptrain-operator"]

FROM python AS trainer
COPY --from=trainer-dependencies /opt/adaptrain /opt/adaptrain
COPY --from=trainer-code /opt/adaptrain /opt/adaptrain
USER 10001:10001
ENTRYPOINT []
CMD ["adaptrain", "--help"]
