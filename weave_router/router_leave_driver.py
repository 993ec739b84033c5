"""The end of a router on its Node (`--uninstall`): what is to be done when the last pod is gone, and staying on.

    quiet     runtimes still send DELs of sandboxes that they clear away; without the list they could not
    remove    network list, plugin, bridge, TAP, rules, state, identity; then this Node's Leases are emptied
    ready     nothing of ours is left but the socket that answers kubelet's probes; it goes with SIGTERM

Whatever ends the process in between, the next start goes on here: each step may be repeated. Holds the TAP's lock all
the time, so that a router that follows starts when this one is through. Called by router.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from pathlib import Path
from typing import Any, Final

import uvloop

from weave_router import store_file
from weave_router.cni import cni_driver, verbs
from weave_router.cni.codes import CniError, Code
from weave_router.config import LaunchConfig
from weave_router.errors import UserError
from weave_router.host import conflist, install_driver, kernel_driver, reset_driver, succession_driver
from weave_router.host.handover_driver import HandoverServer, Request
from weave_router.limits import CNI_ALIVE_SECONDS
from weave_router.store import Attachment, Store
from weave_router.tunnel.identity import Identity

_log = logging.getLogger(__name__)
QUIET_SECONDS: Final = 75.0
"""After the last DEL. kubelet clears dead sandboxes away every minute, and the runtime sends a DEL for each again."""
RETRY_SECONDS: Final = 5.0
LOCK_SECONDS: Final = 60.0
REFUSAL: Final = "weave-router is being uninstalled from this node: no pod gets a network any more"


def attachments(state_dir: str) -> tuple[Attachment, ...]:
    """Pods that the store knows; none where there is no store. UserError for one that cannot be read."""
    if not (Path(state_dir) / "store.db").exists():
        return ()
    with Store.open(state_dir, boot_id="", writer=False) as store:
        return store.attachments()


def standing(config: LaunchConfig) -> bool:
    """Whether a router is still needed: the store knows pods of this boot."""
    boot_id = config.debug_boot_id or kernel_driver.boot_id()
    return any(attachment.boot_id == boot_id for attachment in attachments(config.state_dir))


def waits_for(attached: list[Attachment]) -> str:
    """Status, and the probe: which pods have to go first."""
    names = [attachment.pod or attachment.container for attachment in attached]
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"uninstall waits for the end of {len(names)} pods: {', '.join(names[:10])}{more}"


def run(config: LaunchConfig) -> int:
    """Until SIGTERM or SIGINT."""
    run_dir = Path(config.run_dir)
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    turn = succession_driver.await_turn(run_dir, config.tap, wait=LOCK_SECONDS)
    try:
        turn.take()
        leaving = Leaving(config)
        uvloop.run(leaving.main())
        if not leaving.waits:
            for path in (run_dir / f"tap-{config.tap}.lock", Path(config.state_dir) / "store.lock"):
                path.unlink(missing_ok=True)  # the TAP's other lock still keeps followers out
    finally:
        turn.release()
    return 0


class Leaving:
    """``waits``: what has still to be done, empty at the end."""

    def __init__(self, config: LaunchConfig) -> None:
        self.waits = "uninstall waits for the runtime's last DELs"
        self._config = config
        self._state, self._run = Path(config.state_dir), Path(config.run_dir)
        self._folders = install_driver.standard(self._run, self._state)
        self._files = cni_driver.Files(self._state, self._run, config.debug_boot_id or kernel_driver.boot_id())
        self._heard_at = 0.0

    async def main(self) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        server = HandoverServer(self._run / "attach.sock", self._answer, self._abandoned)
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(server.serve(), name="attach.sock"),
                       tasks.create_task(self._until_done(), name="uninstall")]
            await stop.wait()
            for task in running:
                task.cancel()

    # -- what is asked meanwhile ---------------------------------------------------------------------------------------

    async def _answer(self, request: Request) -> dict[str, Any]:
        if "probe" in request.body:
            return {"error": self.waits} if request.body["probe"] == "ready" and self.waits else {}
        if "cni" not in request.body:
            return {"error": REFUSAL, "exit_status": 1}
        wanted = verbs.request_untrusted(request.body)
        if isinstance(wanted, CniError):
            return verbs.error_reply(wanted)
        if wanted.verb == "ADD":
            return verbs.error_reply(CniError(Code.TRY_LATER, REFUSAL), wanted.version)
        if wanted.verb == "CHECK":
            gone = CniError(Code.UNKNOWN_CONTAINER, f"{wanted.container} {wanted.ifname} is not attached here")
            return verbs.error_reply(gone, wanted.version)
        self._heard_at = asyncio.get_running_loop().time()
        return {}

    async def _abandoned(self, request: Request, reply: dict[str, Any]) -> None:
        """Nothing was done for anybody."""

    # -- what is done --------------------------------------------------------------------------------------------------

    async def _until_done(self) -> None:
        while self.waits:
            try:
                await self._quiet()
                identity = self._identity()
                await asyncio.to_thread(self._remove)
                await self._empty_leases(identity)
                self.waits = ""
            except UserError as error:
                self.waits = str(error)
                _log.warning("uninstall waits", extra={"for": self.waits})
                await asyncio.sleep(RETRY_SECONDS)
        from weave_router.kube.leave_driver import LEFT

        _log.info("uninstalled", extra={"left": LEFT.format(namespace=self._config.namespace)})

    async def _quiet(self) -> None:
        """Needless where there is no list: no runtime sends anything."""
        loop = asyncio.get_running_loop()
        self._heard_at = loop.time()
        seconds = self._config.debug_timers.get("quiet", QUIET_SECONDS)
        while self._config.install_cni and (self._folders.networks / conflist.NAME).exists():
            left = self._heard_at + seconds - loop.time()
            if left <= 0:
                return
            self._files.alive()
            await asyncio.sleep(min(left, CNI_ALIVE_SECONDS))

    def _identity(self) -> str:
        """Empty where the store is gone already, or cannot be read: then the Node's UID alone tells its Leases."""
        if not (self._state / "store.db").exists():
            return ""
        with contextlib.suppress(UserError), Store.open(self._state, boot_id="", writer=False) as store:
            return Identity(*store.identity()).node_id.hex()
        return ""

    def _remove(self) -> None:
        """The list first: what it calls for is still there then."""
        self.waits = "uninstall: this node is being cleared"
        removed = install_driver.remove(self._folders) if self._config.install_cni else []
        files = [self._run / name for name in reset_driver.LEFT_OF_A_ROUTER if (self._run / name).exists()]
        removed += map(str, reset_driver.reset_held(self._config.bridge, files, force=True))
        if self._state.is_dir():
            lock = store_file.take_lock(self._state)
            try:
                removed += store_file.wipe(self._state)
            finally:
                os.close(lock)
        for what in removed:
            _log.info("removed", extra={"what": what})

    async def _empty_leases(self, identity: str) -> None:
        from weave_router.kube import leave_driver, start_driver

        api = start_driver.make_api(self._config)
        try:
            while True:
                try:
                    emptied = await leave_driver.empty_leases(api, self._config.namespace, self._config.node_name,
                                                              identity)
                    break
                except leave_driver.LeaveError as error:
                    self.waits = f"uninstall: this Node's Leases are not emptied yet: {error}"
                    _log.warning("uninstall waits", extra={"for": self.waits})
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            await api.close()
        _log.info("leases emptied", extra={"count": emptied})
