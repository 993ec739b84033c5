# The image of the router: a multi-stage build, so that no compiler, no pip and no header stands in what runs on nodes.
#
#   make image            builds it with docker, podman or buildah, whichever is there; IMAGE=name:tag names it
#
# Built and tested for amd64. Nothing in it names the architecture, but arm64 is untested.
ARG BASE=docker.io/library/debian:bookworm-slim

# -- build: wheel of the router, its dependencies, one virtual environment without pip ---------------------------------
FROM ${BASE} AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
      build-essential libssl-dev musl-tools pkg-config python3-dev python3-venv
RUN python3 -m venv /build
COPY pyproject.toml .ci/constraints.txt .ci/requirements /src/
RUN mkdir /src/.ci && mv /src/requirements /src/constraints.txt /src/.ci/ \
 && python3 /src/.ci/requirements > /src/run.txt && python3 /src/.ci/requirements build > /src/build.txt \
 && /build/bin/pip install -q -c /src/.ci/constraints.txt --upgrade pip \
 && /build/bin/pip install -q -c /src/.ci/constraints.txt -r /src/build.txt \
 && python3 -m venv --without-pip /opt/weave-router \
 && /build/bin/pip --python /opt/weave-router/bin/python install -q --no-compile -c /src/.ci/constraints.txt -r /src/run.txt
COPY . /src
RUN cd /src \
 && PATH=/build/bin:$PATH pip wheel -q --no-build-isolation --no-deps -w /wheel . \
 && /build/bin/pip --python /opt/weave-router/bin/python install -q --no-compile --no-deps /wheel/*.whl \
 && cd /opt/weave-router/lib/python3*/site-packages \
 && find . -name '*.so' -exec strip --strip-unneeded {} + \
 && find . \( -name '*.pyx' -o -name '*.pxd' -o -name '*.c' -o -name '*.h' -o -name '*.cpp' \) -delete \
 && find . -depth -type d \( -name tests -o -name test -o -name __pycache__ \) -exec rm -rf {} + \
 && /opt/weave-router/bin/python -m compileall -q --invalidation-mode unchecked-hash . \
 && mkdir -p /opt/weave-router/sbin && ln -s "$PWD/weave_router/_bin/weave-router-cni" \
      "$PWD/weave_router/_bin/weave-router-init" /opt/weave-router/sbin/

# -- what runs --------------------------------------------------------------------------------------------------------
FROM ${BASE}
RUN apt-get update \
 && apt-get install -y --no-install-recommends libnftables1 libssl3 python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* /usr/share/doc /usr/share/man /usr/share/locale
COPY --from=build /opt/weave-router /opt/weave-router
ENV PATH=/opt/weave-router/bin:/opt/weave-router/sbin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ENTRYPOINT ["weave-router-init", "weave-router", "launch"]
