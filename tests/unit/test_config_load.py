"""config.py: where a value comes from, what it may be, and the sentence for each that may not."""

import re
from pathlib import Path

import pytest

from weave_router import limits
from weave_router.config import (
    DEBUG_TIMERS,
    OPTIONS,
    OTHER_VARIABLES,
    REFUSE_WORDS,
    TOKEN_MISSING,
    LaunchConfig,
    load,
    parse_target,
    parse_targets,
)
from weave_router.errors import UsageError

TOKEN = {"token_file": "/t"}
ROOT = Path(__file__).resolve().parents[2]


def loaded(flags: dict | None = None, targets: tuple[str, ...] = (), environ: dict | None = None) -> LaunchConfig:
    return load({**TOKEN, **(flags or {})}, targets, environ or {}, hostname="host-a")


def test_defaults() -> None:
    config = loaded()
    assert (config.name, config.nickname, config.port, config.mtu, config.workers) == ("host-a", "host-a", 6783, 0, 0)
    assert (config.ipalloc_range, config.bridge, config.tap) == ("10.32.0.0/12", "weave", "weave-tap")
    assert (config.state_dir, config.run_dir, config.targets) == ("/var/lib/weave-router", "/run/weave-router", ())
    assert (config.host, config.conn_limit, config.plaintext, config.no_discovery) == ("", 0, False, False)


def test_the_file_that_a_configmap_may_bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in Kubernetes, if it is there; variables and --config come before it."""
    file = tmp_path / "config.toml"
    monkeypatch.setattr("weave_router.config.CONFIG_IN_POD", str(file))
    pod = {"WEAVE_ROUTER_KUBERNETES": "1"}
    assert loaded(environ=pod).mtu == 0
    file.write_text("mtu = 1300\n")
    assert loaded(environ=pod).mtu == 1300 and loaded().mtu == 0
    assert loaded(environ=pod | {"WEAVE_ROUTER_MTU": "1400"}).mtu == 1400
    other = tmp_path / "other.toml"
    other.write_text("mtu = 1350\n")
    assert loaded({"config": str(other)}, environ=pod).mtu == 1350


def test_who_gets_addresses_how() -> None:
    assert loaded().init == "new" and loaded({}, ("h2",)).init == "join"
    assert loaded({"bridge_address": "10.32.0.1"}, ("h2",)).init == "none"
    seeded = loaded({"ipalloc_init": "seed=b,host-a", "bridge_address": "10.32.0.1"})
    assert (seeded.init, seeded.seed_names) == ("seed", ("b", "host-a"))
    assert loaded({"ipalloc_init": "seed=host-a,b"}).ipalloc_init == seeded.ipalloc_init  # the order says nothing
    assert str(loaded({"ipalloc_default_subnet": "10.32.1.0/24"}).default_subnet) == "10.32.1.0/24"
    assert loaded(environ={"WEAVE_ROUTER_DEBUG_COOLDOWN": "0.5"}).cooldown == 0.5
    assert loaded().cooldown == limits.COOLDOWN_SECONDS
    with pytest.raises(UsageError, match="has fewer blocks than seed= has names"):
        loaded({"ipalloc_init": "seed=host-a,b,c,d,e", "ipalloc_range": "10.32.0.0/28"})


# One option of each kind: (field, in the file, in the environment, as flag) with the values they give.
SOURCES = [
    ("mtu", "mtu = 1400", ("1500", 1500), ("1600", 1600), 1400),
    ("name", 'name = "f"', ("e", "e"), ("g", "g"), "f"),
    ("plaintext", "plaintext = true", ("0", False), ("true", True), True),
    ("no_discovery", "no-discovery = false", ("yes", True), ("true", True), False),
    (
        "trusted_subnets",
        'trusted-subnets = ["10.0.0.0/8"]',
        ("192.0.2.0/24,2001:db8::/64", ("192.0.2.0/24", "2001:db8::/64")),
        ("198.51.100.0/24", ("198.51.100.0/24",)),
        ("10.0.0.0/8",),
    ),
    ("ipalloc_range", 'ipalloc-range = "10.0.0.0/16"', ("10.1.0.0/16",) * 2, ("10.2.0.0/16",) * 2, "10.0.0.0/16"),
    ("state_dir", 'state-dir = "/f/"', ("/e", "/e"), ("/g", "/g"), "/f"),
]


@pytest.mark.parametrize(("field", "line", "environment", "flag", "from_file"), SOURCES)
def test_flags_before_environment_before_file(tmp_path, field, line, environment, flag, from_file) -> None:
    file = tmp_path / "config.toml"
    file.write_text(line)
    variable = f"WEAVE_ROUTER_{field.upper()}"
    assert getattr(loaded({"config": str(file)}), field) == from_file
    assert getattr(loaded({"config": str(file)}, environ={variable: environment[0]}), field) == environment[1]
    everything = loaded({"config": str(file), field: flag[0]}, environ={variable: environment[0]})
    assert getattr(everything, field) == flag[1]


def test_targets_come_from_arguments_environment_and_file(tmp_path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('targets = ["192.0.2.1", "node-b:7000"]')
    environ = {"WEAVE_ROUTER_CONFIG": str(file)}
    assert loaded(environ=environ).targets == ("192.0.2.1", "node-b:7000")
    environ["WEAVE_ROUTER_TARGETS"] = "192.0.2.2, 192.0.2.3 192.0.2.2"
    assert loaded(environ=environ).targets == ("192.0.2.2", "192.0.2.3")
    assert loaded(targets=("192.0.2.4",), environ=environ).targets == ("192.0.2.4",)


def test_the_flag_names_the_file_before_the_environment(tmp_path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(f'name = "{name}"')
    environ = {"WEAVE_ROUTER_CONFIG": str(tmp_path / "a")}
    assert loaded(environ=environ).name == "a"
    assert loaded({"config": str(tmp_path / "b")}, environ=environ).name == "b"


def test_an_empty_variable_is_not_set() -> None:
    assert loaded(environ={"WEAVE_ROUTER_MTU": "", "WEAVE_ROUTER_TARGETS": " ", "WEAVE_ROUTER_REFUSE": ""}).mtu == 0


def test_nickname_follows_the_name() -> None:
    assert loaded({"name": "a"}).nickname == "a"
    assert loaded({"name": "a", "nickname": "b"}).nickname == "b"


def test_every_option_is_a_field_with_the_default_of_its_struct() -> None:
    fields = set(LaunchConfig.__struct_fields__)
    others = {"targets", "refuse", "debug_timers", "debug_boot_id", "range_given", "ipv6_first"}
    assert {option.field for option in OPTIONS} | others == fields


def test_refused_features_and_debug_variables() -> None:
    config = loaded(environ={
        "WEAVE_ROUTER_REFUSE": "uso,tso bpf",
        "WEAVE_ROUTER_DEBUG_REKEY": "2.5",
        "WEAVE_ROUTER_DEBUG_LOST": "",
        "WEAVE_ROUTER_DEBUG_BOOT_ID": "b-1",
    })
    assert config.refuse == {"uso", "tso", "bpf"}
    assert config.debug_timers == {"rekey": 2.5}
    assert config.debug_boot_id == "b-1"
    assert loaded(environ={"WEAVE_ROUTER_REFUSE": ",".join(REFUSE_WORDS)}).refuse == set(REFUSE_WORDS)


def test_debug_timers_are_those_of_the_tunnel() -> None:
    from dataclasses import fields

    from weave_router.tunnel.timers import Timers

    assert set(DEBUG_TIMERS) == {field.name for field in fields(Timers) if isinstance(field.default, float)}


def test_variables_that_kubernetes_sets_for_a_service_of_our_name_are_left_alone() -> None:
    loaded(environ={
        "WEAVE_ROUTER_SERVICE_HOST": "10.96.0.1",
        "WEAVE_ROUTER_SERVICE_PORT_METRICS": "6782",
        "WEAVE_ROUTER_PORT_6782_TCP_ADDR": "10.96.0.1",
        "WEAVE_ROUTER_PORT_6782_TCP": "tcp://10.96.0.1:6782",
        "WEAVE_ROUTER_METRICS_SERVICE_HOST": "10.96.0.1",
    })


def test_variables_of_the_systemd_unit_and_of_other_commands_are_known() -> None:
    unit = (ROOT / "deploy" / "weave-router.service").read_text()
    names = re.findall(r"(WEAVE_ROUTER_[A-Z_]+)=/", unit) + [f"WEAVE_ROUTER_{name}" for name in OTHER_VARIABLES]
    loaded(environ={name: "" for name in names})


# --- every sentence ---------------------------------------------------------------------------------------------

LONG = "x" * (limits.RECORD_NAME_MAX + 1)
BAD_FLAGS = [
    ("name", LONG, "--name: a name has 1 to 253 printable bytes"),
    ("name", "", "--name: a name has 1 to 253 printable bytes"),
    ("name", "a\nb", "--name: a name has 1 to 253 printable bytes"),
    ("nickname", "\udcff", "--nickname: a name has 1 to 253 printable bytes"),
    ("host", "localhost", "--host: 'localhost' should be an IP address of this host"),
    ("port", "0", "--port: 0 should be a whole number from 1 to 65535"),
    ("port", "65536", "--port: 65536 should be a whole number from 1 to 65535"),
    ("port", "http", "--port: 'http' should be a whole number from 1 to 65535"),
    ("port", "٣", "--port: '٣' should be a whole number from 1 to 65535"),
    ("mtu", "1279", "--mtu: 1279 should be a whole number from 1280 to 65000, or 0 (chosen from the underlay)"),
    ("mtu", "65001", "--mtu: 65001 should be a whole number from 1280 to 65000, or 0 (chosen from the underlay)"),
    ("mtu", "-1", "--mtu: '-1' should be a whole number from 1280 to 65000, or 0 (chosen from the underlay)"),
    ("workers", "16", "--workers: 16 should be a whole number from 1 to 15, or 0 (chosen from the number of CPUs)"),
    ("conn_limit", "49", "--conn-limit: 49 should be a whole number from 1 to 48, or 0 (as the mesh needs)"),
    ("ipalloc_range", "pods", "--ipalloc-range: 'pods' should be an IPv4 network such as 10.32.0.0/12"),
    ("ipalloc_range", "fd00::/8", "--ipalloc-range: 'fd00::/8' should be an IPv4 network such as 10.32.0.0/12"),
    ("ipalloc_range", "10.33.0.0/12",
     "--ipalloc-range: 10.33.0.0/12 has bits set beyond its prefix; did you mean 10.32.0.0/12?"),
    ("ipalloc_range", "10.0.0.0/7", "--ipalloc-range: the prefix of 10.0.0.0/7 should be from /8 to /28"),
    ("ipalloc_range", "10.0.0.0/29", "--ipalloc-range: the prefix of 10.0.0.0/29 should be from /8 to /28"),
    ("ipalloc_range", "127.0.0.0/8",
     "--ipalloc-range: 127.0.0.0/8 is set aside by the IETF; take a private range such as 10.32.0.0/12"),
    ("ipalloc_range", "224.0.0.0/8",
     "--ipalloc-range: 224.0.0.0/8 is set aside by the IETF; take a private range such as 10.32.0.0/12"),
    ("ipalloc_init", "old", "--ipalloc-init: 'old' should be new, seed=NAME,..., observer or none"),
    ("ipalloc_init", "join",
     "--ipalloc-init: 'join' is not in service yet; give seed=NAME,... on every node, or none"),
    ("ipalloc_init", "seed=a,a", f"--ipalloc-init: seed= takes 1 to {limits.SEED_NAMES_MAX} names, each once"),
    ("ipalloc_init", "seed=" + ",".join(f"n{n}" for n in range(limits.SEED_NAMES_MAX + 1)),
     f"--ipalloc-init: seed= takes 1 to {limits.SEED_NAMES_MAX} names, each once"),
    ("ipalloc_init", "seed=a,", f"--ipalloc-init: a name has 1 to {limits.RECORD_NAME_MAX} printable bytes"),
    ("ipalloc_init", "seed=a,b", "--ipalloc-init: this node's name host-a is not among a, b; start it with one of "
     "them as --name, or add it on every node"),
    ("ipalloc_default_subnet", "10.32.1.1/24", "--ipalloc-default-subnet: '10.32.1.1/24' should be an IPv4 network "
     "inside --ipalloc-range, such as 10.32.1.0/24"),
    ("ipalloc_exclude", "10.32.1.1/24", "--ipalloc-exclude: '10.32.1.1/24' should be a network such as 192.0.2.0/24"),
    ("ipalloc_exclude", "fd00::/64",
     "--ipalloc-exclude: fd00::/64 is not inside 10.32.0.0/12; give IPv4 networks of the range"),
    ("ipalloc_exclude", "10.0.0.0/8",
     "--ipalloc-exclude: 10.0.0.0/8 is not inside 10.32.0.0/12; give IPv4 networks of the range"),
    ("ipalloc_exclude", "10.32.0.0/12", "--ipalloc-exclude: 10.32.0.0/12 leaves pods no address; exclude less"),
    ("ipalloc_default_subnet", "192.0.2.0/24",
     "--ipalloc-default-subnet: 192.0.2.0/24 is not inside 10.32.0.0/12; give a part of it"),
    ("ipalloc_default_subnet", "10.32.1.0/31",
     f"--ipalloc-default-subnet: 10.32.1.0/31 has no room for pods; give a /{limits.SUBNET_PREFIX_MAX} or larger"),
    ("bridge_address", "10.32.0.1/12",
     "--bridge-address: '10.32.0.1/12' should be one IPv4 address of the range, without a prefix length"),
    ("bridge_address", "192.0.2.1",
     "--bridge-address: 192.0.2.1 is not in 10.32.0.0/12; take one of it or change --ipalloc-range"),
    ("bridge_address", "10.32.0.0",
     "--bridge-address: 10.32.0.0 is the first or last address of 10.32.0.0/12, which are kept free"),
    ("bridge_address", "10.47.255.255",
     "--bridge-address: 10.47.255.255 is the first or last address of 10.32.0.0/12, which are kept free"),
    ("bridge", "x" * (limits.BRIDGE_NAME_MAX + 1),
     "--bridge: 'xxxxxxxxxxxx' should be 1 to 11 letters, digits, '_', '.', '-'"),
    ("bridge", "a/b", "--bridge: 'a/b' should be 1 to 11 letters, digits, '_', '.', '-'"),
    ("bridge", "..", "--bridge: '..' should be 1 to 11 letters, digits, '_', '.', '-'"),
    ("trusted_subnets", "192.0.2.1/24", "--trusted-subnets: '192.0.2.1/24' should be a network such as 192.0.2.0/24"),
    ("ipv6", "maybe", "--ipv6: 'maybe' should be one of auto, on, off"),
    ("log_level", "loud", "--log-level: 'loud' should be one of debug, info, warning, error"),
    ("state_dir", "state", "--state-dir: 'state' should be an absolute path"),
    ("state_dir", "", "--state-dir: '' should be a path"),
    ("run_dir", "/" + "r" * 100, "--run-dir: the path is too long for a unix socket; take a shorter one"),
    ("token_file", "", "--token-file: '' should be a path"),
]


@pytest.mark.parametrize(("field", "value", "sentence"), BAD_FLAGS)
def test_a_wrong_flag_is_one_sentence(field, value, sentence) -> None:
    with pytest.raises(UsageError) as caught:
        loaded({field: value})
    assert str(caught.value) == sentence
    assert caught.value.exit_status == 2


def test_the_same_value_from_elsewhere_names_where_it_came_from(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"^WEAVE_ROUTER_MTU: 12 should be"):
        loaded(environ={"WEAVE_ROUTER_MTU": "12"})
    file = tmp_path / "c.toml"
    file.write_text("mtu = 12")
    with pytest.raises(UsageError, match=rf"^mtu in {file}: 12 should be"):
        loaded({"config": str(file)})


BAD_FILES = [
    ("mtuu = 1400", "{path}: 'mtuu' is no option; did you mean 'mtu'?"),
    ("state_dir = '/s'", "{path}: 'state_dir' is no option; did you mean 'state-dir'?"),
    ("zzz = 1", "{path}: 'zzz' is no option"),
    ("port = true", "port in {path}: 'True' should be a whole number from 1 to 65535"),
    ("port = 1400.5", "port in {path}: '1400.5' should be a whole number from 1 to 65535"),
    ("name = 5", "name in {path}: 5 should be a text in quotes"),
    ("plaintext = 'maybe'", "plaintext in {path}: 'maybe' should be true or false"),
    ("targets = 5", "targets in {path}: 5 should be a list of texts"),
    ("targets = [5]", "targets in {path}: 5 should be a text in quotes"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "sentence"), BAD_FILES)
def test_a_wrong_file_is_one_sentence(tmp_path, content, sentence) -> None:
    path = tmp_path / "config.toml"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        loaded({"config": str(path)})
    assert str(caught.value) == sentence.format(path=path)


def test_a_file_that_is_none(tmp_path) -> None:
    cases = {
        "not-there": "--config: cannot read {path}: No such file or directory",
        "directory": "--config: cannot read {path}: Is a directory",
        "large": "--config: {path} is larger than 65536 bytes; is it a configuration file?",
    }
    (tmp_path / "directory").mkdir()
    (tmp_path / "large").write_bytes(b"#" * (limits.CONFIG_FILE_MAX + 1))
    for name, sentence in cases.items():
        path = tmp_path / name
        with pytest.raises(UsageError) as caught:
            loaded({"config": str(path)})
        assert str(caught.value) == sentence.format(path=path)
    for content in (b"\xff\xfe", b"name = ", b"[" * 30_000):
        (tmp_path / "broken").write_bytes(content)
        with pytest.raises(UsageError, match="is not TOML"):
            loaded({"config": str(tmp_path / "broken")})
    (tmp_path / "full").write_bytes(b"#" * limits.CONFIG_FILE_MAX)
    loaded({"config": str(tmp_path / "full")})


BAD_VARIABLES = [
    ("WEAVE_ROUTER_PORT", "tcp://10.96.0.1:6783",
     "WEAVE_ROUTER_PORT: 'tcp://10.96.0.1:6783' is a Service's link; set enableServiceLinks: false"),
    ("WEAVE_ROUTER_IPALOC_RANGE", "",
     "WEAVE_ROUTER_IPALOC_RANGE: no such variable; did you mean 'WEAVE_ROUTER_IPALLOC_RANGE'?"),
    ("WEAVE_ROUTER_REFUSE", "uso,usb",
     "WEAVE_ROUTER_REFUSE: 'usb' should be one of uso, tso, csum, udp_segment, udp_gro, bpf, locked, ipsec_mb, "
     "realtime"),
    ("WEAVE_ROUTER_DEBUG_REKEYS", "5",
     "WEAVE_ROUTER_DEBUG_REKEYS: no such variable; did you mean 'WEAVE_ROUTER_DEBUG_REKEY'?"),
    ("WEAVE_ROUTER_DEBUG_REKEY", "soon", "WEAVE_ROUTER_DEBUG_REKEY: 'soon' should be a number of seconds"),
    ("WEAVE_ROUTER_DEBUG_REKEY", "nan", "WEAVE_ROUTER_DEBUG_REKEY: 'nan' should be a number of seconds"),
]  # fmt: skip


@pytest.mark.parametrize(("variable", "value", "sentence"), BAD_VARIABLES)
def test_a_wrong_variable_is_one_sentence(variable, value, sentence) -> None:
    with pytest.raises(UsageError) as caught:
        loaded(environ={variable: value})
    assert str(caught.value) == sentence


@pytest.mark.parametrize("flags", [{}, {"plaintext": "true"}])
def test_without_a_token_it_names_the_two_commands(flags) -> None:
    with pytest.raises(UsageError) as caught:
        load(flags, (), {}, hostname="h")
    assert str(caught.value) == TOKEN_MISSING
    assert "weave-router token new > FILE" in TOKEN_MISSING and "launch --token-file FILE" in TOKEN_MISSING


# --- targets ----------------------------------------------------------------------------------------------------

GOOD_TARGETS = [
    ("192.0.2.1", ("192.0.2.1", 6783)),
    ("192.0.2.1:7000", ("192.0.2.1", 7000)),
    ("2001:db8::1", ("2001:db8::1", 6783)),
    ("[2001:db8::1]", ("2001:db8::1", 6783)),
    ("[2001:db8::1]:7000", ("2001:db8::1", 7000)),
    ("node-b.example.org", ("node-b.example.org", 6783)),
    ("node_b:1", ("node_b", 1)),
    ("1.node.", ("1.node.", 6783)),
]
BAD_TARGETS = [
    ":6783", "10.0.0", "1", "256.1.1.1", "192.0.2.1:", "192.0.2.1:0", "192.0.2.1:65536", "192.0.2.1:x", "[::1",
    "[::1]x", "[192.0.2.1]:1", "::1::2", "-a", "a-", "a..b", "x" * 64, "a b", "http://a", "a/b", "ä",
    "٣.example", "a:b:c", "[]",
]  # fmt: skip


@pytest.mark.parametrize(("text", "endpoint"), GOOD_TARGETS)
def test_targets(text, endpoint) -> None:
    assert parse_target(text) == endpoint


@pytest.mark.parametrize("text", BAD_TARGETS)
def test_what_is_no_target(text) -> None:
    with pytest.raises(ValueError, match=r"should be (an address or a host name|a number from 1 to 65535)"):
        parse_target(text)
    with pytest.raises(UsageError, match=r"^TARGET: "):
        loaded(targets=(text, "192.0.2.1"))


def test_the_number_of_targets_is_bounded() -> None:
    many = [f"10.0.{n // 256}.{n % 256}" for n in range(limits.TARGETS_MAX + 1)]
    assert len(parse_targets(many[:-1])) == limits.TARGETS_MAX
    with pytest.raises(ValueError, match="257 targets are more than 256"):
        parse_targets(many)


def test_the_bounds_themselves_are_in() -> None:
    for field, bound in (
        ("workers", limits.WORKERS_MAX), ("conn_limit", limits.LINKS_MAX),
        ("mtu", limits.POD_MTU_MIN), ("mtu", limits.POD_MTU_MAX),
    ):  # fmt: skip
        assert getattr(loaded({field: str(bound)}), field) == bound
    for prefix in (limits.RANGE_PREFIX_MIN, limits.RANGE_PREFIX_MAX):
        assert loaded({"ipalloc_range": f"10.0.0.0/{prefix}"}).range_v4.prefixlen == prefix
    assert loaded({"name": "x" * limits.RECORD_NAME_MAX}).name == "x" * limits.RECORD_NAME_MAX
    assert loaded({"bridge": "x" * limits.BRIDGE_NAME_MAX}).tap == "x" * limits.BRIDGE_NAME_MAX + "-tap"


def test_an_uninstall_is_for_kubernetes() -> None:
    with pytest.raises(UsageError, match="--uninstall is for Kubernetes: elsewhere stop the router and run"):
        load({"uninstall": "true", "token_file": "/t"}, (), {})
    assert load({"uninstall": "true", "kubernetes": "true"}, (), {}, hostname="n").uninstall
