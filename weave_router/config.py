"""What `launch` was told: one frozen value from flags, environment and a TOML file, in this order of precedence.

``OPTIONS`` is the only list of options: the command line, ``WEAVE_ROUTER_<FLAG>`` and the file's keys are made from
it. Every wrong value is a UsageError of one sentence that names where the value came from. Knows nothing of the
rooms; reads one file and touches nothing else. Called by cli/launch.py; every room may read ``LaunchConfig``.
"""

import difflib
import ipaddress
import os
import re
import socket
import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from weave_router import limits
from weave_router.errors import UsageError

ENV_PREFIX: Final = "WEAVE_ROUTER_"
PORT_DEFAULT: Final = 6783
RANGE_DEFAULT: Final = "10.32.0.0/12"
CONFIG_IN_POD: Final = "/etc/weave-router/config.toml"
"""Where deploy/weave-router.yaml mounts the ConfigMap."""

STATE_DIR_DEFAULT: Final = "/var/lib/weave-router"
RUN_DIR_DEFAULT: Final = "/run/weave-router"
SERVICE_ACCOUNT_DEFAULT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
LOG_LEVELS: Final = ("debug", "info", "warning", "error")

REFUSE_WORDS: Final = ("uso", "tso", "csum", "udp_segment", "udp_gro", "bpf", "locked", "ipsec_mb", "realtime")
"""Kernel features that ``WEAVE_ROUTER_REFUSE`` turns off, so that one kernel tests what older ones give."""

OTHER_VARIABLES: Final = frozenset({
    "CONFIG", "REFUSE", "JSON", "IFNAME", "CONTAINER_ID", "REPLACE", "PEER", "POD", "COUNT", "SECONDS", "SNAP", "WRITE",
    "OUTPUT", "FORCE", "DOMAIN_OF", "ADDRESS", "RELEASE", "REPAIR", "BIN", "BIN_DIR", "CONF_DIR", "NETWORK", "CHAIN",
    "FOLLOW", "TIMEOUT", "LOST_MAJORITY", "ABORT",
})
"""Variables of this prefix that are no launch option: the file, the refused features, other commands' flags, and
``BIN``, by which tests and demo name the program."""

DEBUG_TIMERS: Final = (
    "retry_tail", "retry_jitter", "give_up", "back_off", "answer_wait", "unconfirmed", "rekey", "rekey_other", "reject",
    "send_margin", "sending", "crossing", "index_rest", "keepalive", "ping", "suspect", "lost", "nat_keepalive", "roam",
    "challenge", "challenge_repeat", "poll", "poll_idle", "mtu_confirmed", "mtu_interval", "mtu_raise",
)
"""``WEAVE_ROUTER_DEBUG_<NAME>``, in seconds, for tests: the time spans of tunnel/timers.py that are one figure."""

DEBUG_OTHERS: Final = ("cooldown", "fence", "fence_jitter", "idle", "quiet")
"""Likewise, of other rooms: how long a released address rests, how long a machine is gone before its blocks are,
how long a block is idle before it is given back, how long no DEL came before an uninstall goes on."""



class LaunchConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything `launch` decides on. ``mtu`` and ``workers`` 0: chosen at start; ``conn_limit`` 0: the mesh's own."""

    name: str
    nickname: str
    host: str = ""
    port: int = PORT_DEFAULT
    mtu: int = 0
    ipalloc_range: str = RANGE_DEFAULT
    ipalloc_init: str = ""
    """``new``, ``seed=NAME,...``, ``observer``, ``none``; empty: see ``init``."""
    ipalloc_default_subnet: str = ""
    ipalloc_exclude: tuple[str, ...] = ()
    conn_limit: int = 0
    no_discovery: bool = False
    trusted_subnets: tuple[str, ...] = ()
    log_level: str = "info"
    state_dir: str = STATE_DIR_DEFAULT
    run_dir: str = RUN_DIR_DEFAULT
    token_file: str = ""
    """Empty in Kubernetes alone: the token is in the Secret."""
    plaintext: bool = False
    workers: int = 0
    no_realtime: bool = False
    no_masq_local: bool = False
    hairpin: str = "auto"
    bridge_netfilter: str = "auto"
    bridge: str = "weave"
    bridge_address: str = ""
    targets: tuple[str, ...] = ()
    ipv6: str = "auto"
    """Whether pods get IPv6 addresses: ``on``, ``off``; ``auto``: in Kubernetes as its Nodes have it, else on."""
    ipv6_first: bool = False
    """In the order of results; Kubernetes: the first InternalIP of this Node is an IPv6 one."""
    refuse: frozenset[str] = frozenset()
    install_cni: bool = False
    uninstall: bool = False
    debug_timers: dict[str, float] = {}
    """Name out of DEBUG_TIMERS -> seconds, only what is set."""
    kubernetes: bool = False
    node_name: str = ""
    namespace: str = "kube-system"
    kubernetes_api: str = ""
    service_account: str = SERVICE_ACCOUNT_DEFAULT
    range_given: bool = False
    """Whether the range was said on this start, or is the default."""
    debug_boot_id: str = ""
    """Instead of the kernel's boot id: hosts of the laboratory share one kernel."""

    @property
    def tap(self) -> str:
        """Name of the TAP device that belongs to the bridge."""
        return f"{self.bridge}-tap"

    @property
    def cooldown(self) -> float:
        return self.debug_timers.get("cooldown", limits.COOLDOWN_SECONDS)

    @property
    def init(self) -> str:
        """How this node gets its part of the range, as far as the options say: ``new``, ``seed``, ``join``,
        ``observer`` or ``none``. By default a node whose bridge address was named by hand has all addresses by hand, a
        node with targets joins, and one without founds. What the store holds goes before."""
        return self.ipalloc_init.partition("=")[0] or (
            "none" if self.bridge_address else "join" if self.targets else "new"
        )

    @property
    def seed_names(self) -> tuple[str, ...]:
        """Names of ``seed=``."""
        kind, _, names = self.ipalloc_init.partition("=")
        return tuple(names.split(",")) if kind == "seed" else ()

    @property
    def default_subnet(self) -> ipaddress.IPv4Network | None:
        return ipaddress.IPv4Network(self.ipalloc_default_subnet) if self.ipalloc_default_subnet else None

    @property
    def excluded(self) -> tuple[ipaddress.IPv4Network, ...]:
        return tuple(ipaddress.IPv4Network(text) for text in self.ipalloc_exclude)

    @property
    def families(self) -> int:
        """How many a pod and the bridge have addresses of, IPv4 first."""
        return 1 if self.ipv6 == "off" else 2

    def of_pods(self, network: ipaddress.IPv6Network) -> ipaddress.IPv6Network | None:
        """The IPv6 network of the universe, if pods are given addresses of it."""
        return None if self.ipv6 == "off" else network

    @property
    def range_v4(self) -> ipaddress.IPv4Network:
        """The IPv4 part of the universe."""
        return ipaddress.IPv4Network(self.ipalloc_range)


class Option(msgspec.Struct, frozen=True):
    """One option. ``parse`` takes text or a TOML value and raises ValueError with the sentence's second half."""

    flag: str
    parse: Callable[[object], Any]
    help: str
    metavar: str = ""

    @property
    def field(self) -> str:
        return self.flag.replace("-", "_")

    @property
    def variable(self) -> str:
        return ENV_PREFIX + self.field.upper()

    @property
    def is_switch(self) -> bool:
        return not self.metavar


# --- values -----------------------------------------------------------------------------------------------------


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} should be a text in quotes")
    return value.strip()


def _number(least: int, most: int, zero: str = "") -> Callable[[object], int]:
    """A whole number from ``least`` to ``most``; with ``zero`` also 0, which means that."""
    wanted = f"a whole number from {least} to {most}" + (f", or 0 ({zero})" if zero else "")

    def parse(value: object) -> int:
        digits = str(value).strip()
        if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,9}", digits, re.ASCII):
            raise ValueError(f"{digits!r} should be {wanted}")
        number = int(digits)
        if not (least <= number <= most or (zero and number == 0)):
            raise ValueError(f"{number} should be {wanted}")
        return number

    return parse


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"{word!r} should be true or false")


def _name(value: object) -> str:
    name = _text(value)
    if not name or not name.isprintable() or len(name.encode()) > limits.RECORD_NAME_MAX:
        raise ValueError(f"a name has 1 to {limits.RECORD_NAME_MAX} printable bytes")
    return name


def _address(value: object) -> str:
    text = _text(value)
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError(f"{text!r} should be an IP address of this host") from None


def _bridge_address(value: object) -> str:
    text = _text(value)
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise ValueError(f"{text!r} should be one IPv4 address of the range, without a prefix length") from None


def _range(value: object) -> str:
    text = _text(value)
    try:
        interface = ipaddress.IPv4Interface(text)
    except ValueError:
        raise ValueError(f"{text!r} should be an IPv4 network such as {RANGE_DEFAULT}") from None
    network = interface.network
    if interface.ip != network.network_address:
        raise ValueError(f"{text} has bits set beyond its prefix; did you mean {network}?")
    if not limits.RANGE_PREFIX_MIN <= network.prefixlen <= limits.RANGE_PREFIX_MAX:
        least, most = limits.RANGE_PREFIX_MIN, limits.RANGE_PREFIX_MAX
        raise ValueError(f"the prefix of {text} should be from /{least} to /{most}")
    if network.is_multicast or network.is_loopback or network.is_link_local or network.is_reserved:
        raise ValueError(f"{text} is set aside by the IETF; take a private range such as {RANGE_DEFAULT}")
    return str(network)


def _init(value: object) -> str:
    text = _text(value)
    kind, equals, names = text.partition("=")
    if not equals and kind in ("new", "observer", "none"):
        return kind
    if not equals and kind == "join":
        raise ValueError("'join' is not in service yet; give seed=NAME,... on every node, or none")
    if kind != "seed" or not equals:
        raise ValueError(f"{text!r} should be new, seed=NAME,..., observer or none")
    listed = [_name(name) for name in names.split(",")]
    if len(set(listed)) != len(listed) or len(listed) > limits.SEED_NAMES_MAX:
        raise ValueError(f"seed= takes 1 to {limits.SEED_NAMES_MAX} names, each once")
    return "seed=" + ",".join(sorted(listed))


def _subnet(value: object) -> str:
    text = _text(value)
    try:
        return str(ipaddress.IPv4Network(text))
    except ValueError:
        raise ValueError(f"{text!r} should be an IPv4 network inside --ipalloc-range, such as 10.32.1.0/24") from None


def _words(value: object) -> list[str]:
    """A comma or space separated text, or a TOML array of texts."""
    if isinstance(value, str):
        return value.replace(",", " ").split()
    if isinstance(value, Sequence):
        return [_text(item) for item in value]
    raise ValueError(f"{value!r} should be a list of texts")


def _subnets(value: object) -> tuple[str, ...]:
    subnets = []
    for word in _words(value):
        try:
            subnets.append(str(ipaddress.ip_network(word)))
        except ValueError:
            raise ValueError(f"{word!r} should be a network such as 192.0.2.0/24") from None
    return tuple(subnets)


def _tristate(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    word = _text(value).lower()
    if word not in ("auto", "on", "off"):
        raise ValueError(f"{word!r} should be auto, on or off")
    return word


def _one_of(*words: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        word = ("off", "on")[value] if isinstance(value, bool) else _text(value).lower()
        if word not in words:
            raise ValueError(f"{word!r} should be one of {', '.join(words)}")
        return word

    return parse


def _path(value: object) -> str:
    path = _text(value)
    if not path or "\0" in path:
        raise ValueError(f"{path!r} should be a path")
    return path


def _directory(value: object) -> str:
    path = _path(value)
    if not path.startswith("/"):
        raise ValueError(f"{path!r} should be an absolute path")
    return path.rstrip("/") or "/"


def _run_directory(value: object) -> str:
    path = _directory(value)
    if len(os.fsencode(f"{path}/attach.sock.new")) > limits.UNIX_PATH_MAX:
        raise ValueError("the path is too long for a unix socket; take a shorter one")
    return path


def _bridge(value: object) -> str:
    name = _text(value)
    if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{limits.BRIDGE_NAME_MAX - 1}}}", name, re.ASCII):
        raise ValueError(f"{name!r} should be 1 to {limits.BRIDGE_NAME_MAX} letters, digits, '_', '.', '-'")
    return name


def _label(value: object) -> str:
    text = _text(value)
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", text, re.ASCII):
        raise ValueError(f"{text!r} should be the name of a namespace")
    return text


def api_server(value: object) -> str:
    text = _text(value).removeprefix("https://").rstrip("/")
    host, port = parse_target(text, 443)
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)", re.ASCII)


def parse_target(text: str, default_port: int = PORT_DEFAULT) -> tuple[str, int]:
    """``HOST``, ``HOST:PORT``, ``IPV6`` or ``[IPV6]:PORT`` as (host, port). Raises ValueError with a half sentence."""
    host, port = text, str(default_port)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if rest:
            port = rest[1:] if rest.startswith(":") else "?"
        valid = bool(bracket) and _is_address(host, 6)
    else:
        if text.count(":") == 1:
            host, port = text.split(":")
        valid = _is_address(host, 4) or (":" in host and _is_address(host, 6)) or _is_host_name(host)
    if not valid:
        raise ValueError(f"{text!r} should be an address or a host name, with :PORT if it is not {default_port}")
    if not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or not 1 <= int(port) <= 65535:
        raise ValueError(f"the port of {text!r} should be a number from 1 to 65535")
    return host, int(port)


def _is_address(text: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(text).version == version
    except ValueError:
        return False


def _is_host_name(text: str) -> bool:
    """A DNS name; what looks like a number (``10.0.0``, ``1``) is a mistyped address, not a name."""
    labels = text.removesuffix(".").split(".")
    return len(text) <= 253 and all(_LABEL.fullmatch(label) for label in labels) and not labels[-1].isdigit()


def literals(targets: Sequence[str]) -> list[str]:
    """Hosts among the targets that are addresses: names say nothing about the way to them yet."""
    hosts = [parse_target(target)[0] for target in targets]
    return [host for host in hosts if ":" in host or host.replace(".", "").isdigit()]


def parse_targets(value: object) -> tuple[str, ...]:
    """Target addresses as given, each checked, doubles removed. Raises ValueError with a half sentence."""
    targets = tuple(dict.fromkeys(_words(value)))
    if len(targets) > limits.TARGETS_MAX:
        raise ValueError(f"{len(targets)} targets are more than {limits.TARGETS_MAX}; a few are enough")
    for target in targets:
        parse_target(target)
    return targets


# --- the list ---------------------------------------------------------------------------------------------------

OPTIONS: Final = (
    Option("token-file", _path, "The cluster's token (`weave-router token new`), readable by its owner alone.", "FILE"),
    Option("name", _name, "Name of this node [default: the host's name].", "NAME"),
    Option("nickname", _name, "Name shown to people [default: the node's name].", "NAME"),
    Option("host", _address, "Listen on this address alone [default: all].", "ADDRESS"),
    Option("port", _number(1, 65535), f"UDP and TCP port of the router [default: {PORT_DEFAULT}].", "PORT"),
    Option("mtu", _number(limits.POD_MTU_MIN, limits.POD_MTU_MAX, "chosen from the underlay"),
           "MTU of the pods [default: the underlay's less 132].", "BYTES"),
    Option("ipalloc-range", _range, f"Addresses of the pod network [default: {RANGE_DEFAULT}].", "CIDR"),
    Option("ipalloc-init", _init, "How this node gets its part of the range: new, seed=NAME,... (the same on all "
           "nodes, each started with one of the names), observer (none, and founds nothing), none (addresses by hand) "
           "[default: none with --bridge-address, else new].", "HOW"),
    Option("ipalloc-default-subnet", _subnet, "Part of the range for pods that name no address [default: all of it].",
           "CIDR"),
    Option("ipalloc-exclude", _subnets, "Parts of the range that pods never get, such as those of other machines.",
           "CIDR,..."),
    Option("ipv6", _one_of("auto", "on", "off"), "Whether pods get IPv6 addresses: auto (in Kubernetes if its Nodes "
           "have some, else on), on, off [default: auto].", "WHEN"),
    Option("bridge-address", _bridge_address, "Address of this node's bridge, out of the range.", "ADDRESS"),
    Option("bridge", _bridge, "Name of the bridge; the TAP is called BRIDGE-tap [default: weave].", "BRIDGE"),
    Option("conn-limit", _number(1, limits.LINKS_MAX, "as the mesh needs"), "Most control links to other nodes.", "N"),
    Option("no-discovery", _switch, "Link exactly the TARGETs, not the nodes learned from them."),
    Option("trusted-subnets", _subnets, "Send plaintext to nodes there that trust us too.", "CIDR,..."),
    Option("plaintext", _switch, "Do not encrypt the frames of pods; both ends must say so."),
    Option("workers", _number(1, limits.WORKERS_MAX, "chosen from the number of CPUs"),
           "Threads of the fast path [default: by the number of CPUs].", "N"),
    Option("no-realtime", _switch, "Workers stay ordinary threads, also where they have to wait for a CPU."),
    Option("no-masq-local", _switch, "Towards this node's own pods the host keeps its source address."),
    Option("hairpin", _tristate, "Whether a pod reaches itself through its own port [default: auto, where bridge "
           "netfilter is on].", "auto|on|off"),
    Option("bridge-netfilter", _tristate, "Whether frames on the bridge pass iptables and nft, which Services in "
           "Kubernetes need [default: auto, on in Kubernetes, else as it is].", "auto|on|off"),
    Option("state-dir", _directory, f"What must survive a reboot [default: {STATE_DIR_DEFAULT}].", "DIR"),
    Option("run-dir", _run_directory, f"Sockets and locks [default: {RUN_DIR_DEFAULT}].", "DIR"),
    Option("kubernetes", _switch, "Peers, addresses and token come from the cluster's API server."),
    Option("node-name", _name, "Kubernetes: name of this Node (spec.nodeName) [default: --name].", "NAME"),
    Option("namespace", _label, "Kubernetes: where the router's Leases and Secret are [default: kube-system].", "NAME"),
    Option("kubernetes-api", api_server, "Kubernetes: the API server, HOST:PORT [default: its Service].", "SERVER"),
    Option("service-account", _directory, "Kubernetes: directory with token and ca.crt [default: the pod's].", "DIR"),
    Option("install-cni", _switch, "In a container: keep the CNI plugin and its network list installed."),
    Option("uninstall", _switch, "Kubernetes: give no more addresses, and undo all of this node when its last pod is "
           "gone."),
    Option("log-level", _one_of(*LOG_LEVELS), f"One of {', '.join(LOG_LEVELS)} [default: info].", "LEVEL"),
)
_TARGETS: Final = Option("targets", parse_targets, "Addresses of other nodes.", "TARGET")
_BY_FIELD: Final = {option.field: option for option in (*OPTIONS, _TARGETS)}

TOKEN_MISSING: Final = (
    "--token-file is missing: make a token once by `weave-router token new > FILE`, copy FILE to every node, "
    "then run `weave-router launch --token-file FILE ...`"
)


# --- sources ----------------------------------------------------------------------------------------------------


def load(
    flags: Mapping[str, object], targets: Sequence[str], environ: Mapping[str, str], *, hostname: str | None = None
) -> LaunchConfig:
    """The launch configuration. ``flags``: field name -> value, None where not given; ``config`` names the file."""
    _check_variables(environ)
    config_path = flags.get("config") or environ.get(ENV_PREFIX + "CONFIG", "") or _config_of_pod(environ)
    values = _from_file(str(config_path)) if config_path else {}
    values |= _from_environment(environ)
    values |= _from_flags(flags, targets)
    values.setdefault("name", values.get("node_name") or hostname or socket.gethostname())
    values["range_given"] = "ipalloc_range" in values
    values.setdefault("nickname", values["name"])
    if values.get("kubernetes"):
        values.setdefault("node_name", values["name"])
    elif "token_file" not in values:
        raise UsageError(TOKEN_MISSING)
    if environ.get("KUBERNETES_SERVICE_HOST") and values.get("bridge_netfilter", "auto") == "auto":
        values["bridge_netfilter"] = "on"
    debug = _debug(environ)
    boot_id = debug.pop("boot_id", "")
    timers = {name: _seconds(name, text) for name, text in debug.items()}
    config = LaunchConfig(**values, refuse=_refuse(environ), debug_timers=timers, debug_boot_id=boot_id)
    _check_together(config)
    return config


def _parse(option: Option, value: object, source: str) -> Any:
    try:
        return option.parse(value)
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from None


def _from_flags(flags: Mapping[str, object], targets: Sequence[str]) -> dict[str, Any]:
    given = {field: value for field, value in flags.items() if value is not None and field != "config"}
    values = {field: _parse(_BY_FIELD[field], value, f"--{_BY_FIELD[field].flag}") for field, value in given.items()}
    if targets:
        values["targets"] = _parse(_TARGETS, list(targets), "TARGET")
    return values


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """A variable that is empty counts as not set: manifests leave them so."""
    values = {}
    for option in _BY_FIELD.values():
        text = environ.get(option.variable, "").strip()
        if text and option.field == "port" and re.match(r"(tcp|udp|sctp)://", text):
            raise UsageError(f"{option.variable}: {text!r} is a Service's link; set enableServiceLinks: false")
        if text:
            values[option.field] = _parse(option, text, option.variable)
    return values


def _config_of_pod(environ: Mapping[str, str]) -> str:
    """The file of the ConfigMap that the manifest mounts: it may be made or not."""
    in_kubernetes = environ.get(ENV_PREFIX + "KUBERNETES", "").strip()
    return CONFIG_IN_POD if in_kubernetes and os.path.exists(CONFIG_IN_POD) else ""


def _from_file(path: str) -> dict[str, Any]:
    values = {}
    for key, value in _read_toml(path).items():
        option = _BY_FIELD.get(key.replace("-", "_"))
        if option is None or "_" in key:
            raise UsageError(f"{path}: {key!r} is no option{_did_you_mean(key, [o.flag for o in _BY_FIELD.values()])}")
        values[option.field] = _parse(option, value, f"{key} in {path}")
    return values


def _read_toml(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read(limits.CONFIG_FILE_MAX + 1)
    except OSError as error:
        raise UsageError(f"--config: cannot read {path}: {error.strerror}") from None
    if len(data) > limits.CONFIG_FILE_MAX:
        raise UsageError(f"--config: {path} is larger than {limits.CONFIG_FILE_MAX} bytes; is it a configuration file?")
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"--config: {path} is not TOML: {error}") from None


def _refuse(environ: Mapping[str, str]) -> frozenset[str]:
    words = _words(environ.get(ENV_PREFIX + "REFUSE", ""))
    for word in words:
        if word not in REFUSE_WORDS:
            raise UsageError(f"{ENV_PREFIX}REFUSE: {word!r} should be one of {', '.join(REFUSE_WORDS)}")
    return frozenset(words)


_DEBUG_PREFIX: Final = ENV_PREFIX + "DEBUG_"


def _debug(environ: Mapping[str, str]) -> dict[str, str]:
    """Lower-case name -> text. Unknown names are refused: a test with a typing error would pass for nothing."""
    texts = {}
    for variable, text in environ.items():
        if not variable.startswith(_DEBUG_PREFIX) or not text.strip():
            continue
        name = variable.removeprefix(_DEBUG_PREFIX).lower()
        if name != "boot_id" and name not in (*DEBUG_TIMERS, *DEBUG_OTHERS):
            known = (*DEBUG_TIMERS, *DEBUG_OTHERS, "boot_id")
            near = _did_you_mean(variable, [_DEBUG_PREFIX + other.upper() for other in known])
            raise UsageError(f"{variable}: no such variable{near}")
        texts[name] = text.strip()
    return texts


def _seconds(name: str, text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text, re.ASCII):
        raise UsageError(f"{_DEBUG_PREFIX}{name.upper()}: {text!r} should be a number of seconds")
    return float(text)


_SERVICE_LINK = re.compile(r"(SERVICE_(HOST|PORT)|PORT_[0-9]+_(TCP|UDP|SCTP))(_.*)?|.*_SERVICE_(HOST|PORT)(_.*)?")
"""What Kubernetes sets in every pod for a Service whose name begins with ours."""


def _check_variables(environ: Mapping[str, str]) -> None:
    """A misspelt variable would be ignored in silence, so an unknown name under our prefix is refused."""
    known = {option.field.upper() for option in _BY_FIELD.values()} | OTHER_VARIABLES
    for variable in sorted(environ):
        name = variable.removeprefix(ENV_PREFIX)
        if name == variable or name in known or variable.startswith(_DEBUG_PREFIX) or _SERVICE_LINK.fullmatch(name):
            continue
        near = _did_you_mean(variable, [ENV_PREFIX + known_name for known_name in known])
        raise UsageError(f"{variable}: no such variable{near}")


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _check_together(config: LaunchConfig) -> None:
    """What no single value shows."""
    if config.uninstall and not config.kubernetes:
        raise UsageError("--uninstall is for Kubernetes: elsewhere stop the router and run `weave-router reset`")
    _check_addresses(config)
    if not config.bridge_address:
        return
    network, address = config.range_v4, ipaddress.IPv4Address(config.bridge_address)
    if address not in network:
        raise UsageError(f"--bridge-address: {address} is not in {network}; take one of it or change --ipalloc-range")
    if address in (network.network_address, network.broadcast_address):
        raise UsageError(f"--bridge-address: {address} is the first or last address of {network}, which are kept free")


def _check_addresses(config: LaunchConfig) -> None:
    subnet, names = config.default_subnet, config.seed_names
    if subnet is not None and not subnet.subnet_of(config.range_v4):
        raise UsageError(f"--ipalloc-default-subnet: {subnet} is not inside {config.range_v4}; give a part of it")
    if subnet is not None and subnet.prefixlen > limits.SUBNET_PREFIX_MAX:
        raise UsageError(f"--ipalloc-default-subnet: {subnet} has no room for pods; give a /{limits.SUBNET_PREFIX_MAX} "
                         "or larger")
    for excluded in map(ipaddress.ip_network, config.ipalloc_exclude):
        if not isinstance(excluded, ipaddress.IPv4Network) or not excluded.subnet_of(config.range_v4):
            raise UsageError(f"--ipalloc-exclude: {excluded} is not inside {config.range_v4}; give IPv4 networks of "
                             "the range")
        if config.range_v4.subnet_of(excluded) or (subnet is not None and subnet.subnet_of(excluded)):
            raise UsageError(f"--ipalloc-exclude: {excluded} leaves pods no address; exclude less")
    if names and config.name not in names:
        raise UsageError(f"--ipalloc-init: this node's name {config.name} is not among {', '.join(names)}; start it "
                         "with one of them as --name, or add it on every node")
    if len(names) > (1 << (min(30, max(26, config.range_v4.prefixlen + 6)) - config.range_v4.prefixlen)):
        raise UsageError(f"--ipalloc-init: {config.range_v4} has fewer blocks than seed= has names; give a larger "
                         "--ipalloc-range")
