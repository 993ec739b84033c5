"""The images that Kubernetes' own network tests ask for, under the names that their program lists.

agnhost is the same module's program on Debian, with the tools its own image has; busybox and pause are those of
images.py under other names. Kept in the cache outside the clone. Called by conformance.py.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Final

from kubernetes import images
from kubernetes.cluster import KUBERNETES, PROGRAMS

_DOCKERFILE: Final = """\
ARG BASE
FROM ${BASE}
RUN apt-get update \\
 && apt-get install -y --no-install-recommends bash bind9-dnsutils curl iperf iproute2 iputils-ping netcat-openbsd \\
 && rm -rf /var/lib/apt/lists/* && mkdir -p /uploads
COPY agnhost localhost.crt localhost.key /
RUN ln -s agnhost /agnhost-2
ENTRYPOINT ["/agnhost"]
CMD ["pause"]
"""


def names(wanted: str) -> list[str]:
    """As e2e.test asks for them: registry, name and version."""
    said = subprocess.run([PROGRAMS / "e2e.test", "--list-images"], capture_output=True, text=True, check=True).stdout
    return [line for line in said.split() if f"/{wanted}:" in line]


def archives() -> list[Path]:
    """Of all that the specs need."""
    folder = images.CACHE / "images" / f"e2e-{KUBERNETES}"
    folder.mkdir(parents=True, exist_ok=True)
    (agnhost_name,) = names("e2e-test-images/agnhost")
    made = [_agnhost(folder, agnhost_name)]
    for serial, name in enumerate(names("pause") + names("e2e-test-images/busybox")):
        write = images.pause if "/pause:" in name else images.busybox
        (folder / str(serial)).mkdir(exist_ok=True)
        made.append(write(folder / str(serial), name))
    return made


def _agnhost(folder: Path, name: str) -> Path:
    path = folder / "agnhost.tar"
    if path.exists():
        return path
    source = folder / "source"
    source.mkdir(exist_ok=True)
    for file in ("agnhost", "localhost.crt", "localhost.key"):
        shutil.copy(PROGRAMS / file, source)
    (source / "Dockerfile").write_text(_DOCKERFILE)
    base, flags = images.debian()
    images.run(["buildah", "build", "-q", "--isolation", "chroot", "--network", "host", *flags, "--build-arg",
                    f"BASE={base}", "-t", name, str(source)])
    images.save(name, path)
    shutil.rmtree(source)
    return path
