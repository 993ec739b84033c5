"""The image: what our layers add to the base, what is not in it, and `make image` with a name."""

import json
import subprocess
import tarfile
from pathlib import Path

import pytest
from kubernetes import images

MEGABYTES = 90
"""Unpacked, beside the base."""


@pytest.fixture(scope="module")
def layers() -> list[list[tarfile.TarInfo]]:
    """Of the archive that the nodes import, the base's first."""
    with tarfile.open(images.router()) as whole:
        (manifest,) = json.load(whole.extractfile("manifest.json"))  # type: ignore[arg-type]
        return [tarfile.open(fileobj=whole.extractfile(name)).getmembers() for name in manifest["Layers"]]


def test_what_our_layers_add(layers: list[list[tarfile.TarInfo]]) -> None:
    added = sum(member.size for layer in layers[1:] for member in layer) / 1e6
    print(f"our layers add {added:.1f} MB unpacked")
    assert len(layers) > 1
    assert 20 < added <= MEGABYTES


def test_no_compiler_and_no_pip(layers: list[list[tarfile.TarInfo]]) -> None:
    programs = [Path(member.name) for layer in layers for member in layer if not member.isdir()]
    names = {path.name for path in programs if path.parent.name in ("bin", "sbin")}
    assert "weave-router" in names and "weave-router-init" in names
    assert not names & {"gcc", "cc", "cc1", "ld", "pip", "pip3", "make"}


def test_make_image_takes_a_name() -> None:
    """`make image IMAGE=...` as documented; every layer of it is there already."""
    name = "registry.example/weave-router:0.1.0"
    base, flags = images.debian()
    environment = {"BASE": base, "BUILD_FLAGS": f"--layers {' '.join(flags)}", "BUILDER": "buildah"}
    images.run(["make", "-C", str(images.ROOT), "image", f"IMAGE={name}"], environment)
    try:
        assert subprocess.run(["buildah", "images", "-q", name], capture_output=True, text=True).stdout.strip()
    finally:
        subprocess.run(["buildah", "rmi", name], capture_output=True, check=True)
