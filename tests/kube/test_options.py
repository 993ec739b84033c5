"""Options of a router in Kubernetes that no other test of this room sets."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

from kube.server import Server
from kube.test_api_server import SECRETS, asked, launch

from weave_router.kube.api_driver import Api
from weave_router.kube.start_driver import Beginning, make_api
from weave_router.tunnel.token import Token, TokenSet


async def test_the_token_of_a_file_comes_before_the_secret(server: Server, tmp_path: Path) -> None:
    """No Secret is made, and the universe's Lease names the file's token."""
    settings = launch(server, tmp_path / "a")
    held = TokenSet([Token.new(os.urandom)])
    api: Api = make_api(settings)
    try:
        start = await Beginning(settings, api, Random(1), held).run()
    finally:
        await api.close()
    assert start.tokens is held and start.universe.token_id == f"{held.first.id:08x}"
    assert not (await asked(server, "GET", SECRETS))["items"]
