"""The files that tell network managers to keep off our links, and where each goes. Pure.

``make install`` puts them there; the doctor looks for them. They name the default bridge and every pod port; who
launches with another ``--bridge`` name adds it.
"""

from pathlib import PurePosixPath
from typing import Final

SOURCE_DIR: Final = "files"
INSTALLED: Final = {
    "networkmanager.conf": PurePosixPath("/etc/NetworkManager/conf.d/90-weave-router.conf"),
    "networkd.network": PurePosixPath("/etc/systemd/network/05-weave-router.network"),
    "networkd.link": PurePosixPath("/etc/systemd/network/05-weave-router.link"),
}
KEEPS_OFF: Final = {
    "NetworkManager": ("networkmanager.conf",),
    "systemd-networkd": ("networkd.network",),
    "systemd-udevd": ("networkd.link",),
}
RUN_MARKS: Final = {
    # Exists while the program runs.
    "NetworkManager": PurePosixPath("/run/NetworkManager"),
    "systemd-networkd": PurePosixPath("/run/systemd/netif/links"),
    "systemd-udevd": PurePosixPath("/run/udev/control"),
}
