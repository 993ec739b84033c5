"""The files that tell network managers to keep off our links, and where each goes. Pure.

``make install`` puts them there; the doctor looks for them. They name the default bridge and every pod port; who
launches with another ``--bridge`` name adds it.
"""

from typing import Final

SOURCE_DIR: Final = "files"
INSTALLED: Final = {
    "networkmanager.conf": "/etc/NetworkManager/conf.d/90-weave-router.conf",
    "networkd.network": "/etc/systemd/network/05-weave-router.network",
    "networkd.link": "/etc/systemd/network/05-weave-router.link",
}
KEEPS_OFF: Final = {
    "NetworkManager": ("networkmanager.conf",),
    "systemd-networkd": ("networkd.network",),
    "systemd-udevd": ("networkd.link",),
}
RUN_MARKS: Final = {
    # Exists while the program runs.
    "NetworkManager": "/run/NetworkManager",
    "systemd-networkd": "/run/systemd/netif/links",
    "systemd-udevd": "/run/udev/control",
}
