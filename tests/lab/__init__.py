"""The lab: hosts, switches, wires, NATs, captures and routers as network namespaces on one machine.

Used alike by the demo, the kernel tests and the benchmarks, from the repository's root. It treats the product as a
black box: it starts the installed program and asks it through its command line. Everything here is made inside
``with Lab() as lab:`` and is gone when that ends, however it ends.
"""

from .capture import Capture, read_pcap
from .lab import Lab
from .namespace import LabError, Namespace, sweep
from .network import Cable, Gateway, Host, Nat, Pod, Switch
from .router import Router, RouterError
from .traffic import Task, Traffic
from .wire import Faults, Wire

__all__ = [
    "Cable",
    "Capture",
    "Faults",
    "Gateway",
    "Host",
    "Lab",
    "LabError",
    "Namespace",
    "Nat",
    "Pod",
    "Router",
    "RouterError",
    "Switch",
    "Task",
    "Traffic",
    "Wire",
    "read_pcap",
    "sweep",
]
