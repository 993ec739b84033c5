"""The command line against a served router: what each command prints, and what it ends with.

The router is the small real one of api_router.py behind its real socket; pods, devices and launch have their own
tests on the real kernel.
"""

import io
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from unit.api_router import FRAMES, ID_A, POD, Served, serve

from weave_router import limits
from weave_router.api import schema, text
from weave_router.cli.main import COMMANDS, cli
from weave_router.config import ENV_PREFIX, OPTIONS, OTHER_VARIABLES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def served(tmp_path) -> Iterator[Served]:
    with serve(tmp_path) as served:
        yield served


def run(*words: str, run_dir: Path | None = None, env: dict[str, str] | None = None) -> Result:
    where = {"WEAVE_ROUTER_RUN_DIR": str(run_dir)} if run_dir else {}
    return CliRunner().invoke(cli, words, prog_name="weave-router", env={**where, **(env or {})})


def done(*words: str, run_dir: Path | None = None, env: dict[str, str] | None = None) -> str:
    result = run(*words, run_dir=run_dir, env=env)
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    return result.stdout


def said(result: Result) -> tuple[int, str]:
    """Exit status and the one line on stderr, without the program's name."""
    assert result.stdout == ""
    assert result.stderr.startswith("weave-router: ") and result.stderr.count("\n") == 1, result.stderr
    return result.exit_code, result.stderr.removeprefix("weave-router: ").rstrip("\n")


def program(*words: str, **options: object) -> "subprocess.Popen[bytes]":
    """The program as a process of its own."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-m", "weave_router", *words], env=env, **options)  # type: ignore[call-overload]


# --- status -----------------------------------------------------------------------------------------------------


def test_status_prints_the_page(served) -> None:
    page = done("status", run_dir=served.run_dir)
    assert "           Name: 0a1b2c3d4e5f(node-a)\n" in page
    assert done("status", "--run-dir", str(served.run_dir)) == page


def test_status_as_json(served) -> None:
    assert json.loads(done("status", "--json", run_dir=served.run_dir))["service"]["id"] == ID_A
    assert json.loads(done("status", run_dir=served.run_dir, env={"WEAVE_ROUTER_JSON": "1"}))["drops"]["replay"] == 2


@pytest.mark.parametrize("subject", list(text.SUBJECTS))
def test_every_subject(served, subject) -> None:
    assert done("status", subject, run_dir=served.run_dir).strip()
    json.loads(done("status", subject, "--json", run_dir=served.run_dir))
    assert f"  {subject} " in done("status", "--help"), "the help page does not explain it"


# --- connect, forget, detach ------------------------------------------------------------------------------------


def test_connect_and_forget(served) -> None:
    targets = done("connect", "192.0.2.13", "node-d:7000", run_dir=served.run_dir)
    assert targets == "targets: 192.0.2.12 192.0.2.14 192.0.2.13 node-d:7000\n"
    assert json.loads(done("connect", "--replace", "192.0.2.1", "--json", run_dir=served.run_dir)) == {
        "targets": ["192.0.2.1"]
    }
    assert done("forget", "192.0.2.1", run_dir=served.run_dir) == "targets: none\n"
    assert done("connect", "--replace", run_dir=served.run_dir) == "targets: none\n"


def test_detach_by_name_path_and_address(served) -> None:
    assert done("detach", "blue", run_dir=served.run_dir) == "detached eth0 10.32.0.5/12 blue\n"
    assert done("detach", "/run/netns/blue", run_dir=served.run_dir) == "nothing was attached there\n"
    served.router.pods = (POD,)
    gone = json.loads(done("detach", "--address", "10.32.0.5/12", "--json", run_dir=served.run_dir))
    assert gone["detached"][0]["address"] == "10.32.0.5/12"


# --- addresses --------------------------------------------------------------------------------------------------


def test_claim_expose_hide(served) -> None:
    assert done("claim", "10.32.0.50", "--container-id", "x", run_dir=served.run_dir) == "claimed 10.32.0.50\n"
    assert done("claim", "10.32.0.50", "--release", run_dir=served.run_dir) == "released 10.32.0.50\n"
    assert done("expose", run_dir=served.run_dir) == "exposed 10.32.0.9\n"
    assert json.loads(done("hide", "10.32.0.9", "--json", run_dir=served.run_dir)) == {"addresses": ["10.32.0.9"]}
    assert done("status", "addresses", run_dir=served.run_dir).splitlines() == [
        "ADDRESS    STATE  HOLDER                 IPV6",
        "10.32.0.5  used   container blue (eth0)  fd00::a20:5",
    ]
    assert json.loads(done("status", "addresses", "--json", run_dir=served.run_dir))[0]["container_id"] == "blue"


def test_check_says_what_is_wrong_and_ends_with_1_until_it_is_mended(served) -> None:
    checked = CliRunner().invoke(cli, ["ipam", "check", "--run-dir", str(served.run_dir)])
    assert (checked.exit_code, checked.stdout) == (1, "10.32.0.7 is on a port\n")
    assert "1 findings: mend them by `weave-router ipam check --repair`" in checked.stderr
    assert done("ipam", "check", "--repair", run_dir=served.run_dir) == "10.32.0.7 is on a port\nrepair: entered\n"
    assert done("ipam", "check", run_dir=served.run_dir) == "all agree\n"
    assert done("ipam", "ungate", run_dir=served.run_dir) == "gate: own\n"


# --- rmpeer -----------------------------------------------------------------------------------------------------


def test_rmpeer_waits_for_promises_and_says_who_is_missing(served) -> None:
    served.router.rounds = [
        schema.Retirement(state="open", victims=("c",), promised=("a",), missing=("b", "d")),
        schema.Retirement(state="open", victims=("c",), promised=("a", "b"), missing=("d",)),
        schema.Retirement(state="done", victims=("c",), blocks=2, addresses=128)]
    result = run("rmpeer", "c", run_dir=served.run_dir)
    assert (result.exit_code, result.stdout) == (0, "retired c: 128 addresses are this node's now\n")
    assert result.stderr.splitlines() == ["waiting for the promise of b, d; a promised",
                                          "waiting for the promise of d; a, b promised"]  # fmt: skip
    assert served.router.retired == schema.RetireRequest(peers=("c",))
    served.router.rounds = [schema.Retirement(state="done", victims=("c",))]
    assert done("rmpeer", "c", run_dir=served.run_dir) == "c: retired before, or without an address\n"
    assert done("rmpeer", "--abort", run_dir=served.run_dir) == "given up: the retirement of c\n"
    served.router.rounds = [schema.Retirement(state="done", victims=("c",), blocks=1, addresses=64)]
    assert json.loads(done("rmpeer", "c", "--json", run_dir=served.run_dir))["addresses"] == 64


def test_rmpeer_ends_with_1_when_a_promise_is_missing_or_refused(served) -> None:
    served.router.rounds = [schema.Retirement(state="open", victims=("c",), promised=("a",), missing=("b",))]
    late = run("rmpeer", "c", "--timeout", "0", run_dir=served.run_dir)
    assert late.exit_code == 1 and late.stdout == ""
    assert "b did not promise within 0 s: the retirement of c stays open and is completed when they do" in late.stderr
    for reason, shown in (("d has another open", "d has another open"), ("", "the router was started anew; ask again")):
        served.router.rounds = [schema.Retirement(state="failed", victims=("c",), reason=reason)]
        assert said(run("rmpeer", "c", run_dir=served.run_dir)) == (1, f"not retired: {shown}")


def test_rmpeer_without_a_majority_asks_for_the_word(served) -> None:
    served.router.rounds = [schema.Retirement(state="done", victims=("c", "d"), blocks=1, addresses=64)]
    words = ["rmpeer", "c", "d", "--lost-majority", "--run-dir", str(served.run_dir)]
    for typed in ("yes\n", ""):
        refused = CliRunner().invoke(cli, words, input=typed)
        assert refused.exit_code == 1 and served.router.retired is None
        assert "You promise that c, d are off and never start again with what is on their disks" in refused.stderr
        assert "nothing was retired: --lost-majority asks for the word lost-majority" in refused.stderr
    assert CliRunner().invoke(cli, words, input="lost-majority\n").exit_code == 0
    assert served.router.retired == schema.RetireRequest(peers=("c", "d"), lost_majority=True)


# --- token ------------------------------------------------------------------------------------------------------


def test_token_new_and_the_next_of_its_domain(tmp_path) -> None:
    first = done("token", "new")
    assert re.fullmatch(r"wr1\.[a-z2-7]+\.[a-z2-7]+\.[a-z2-7]+\n", first)
    assert done("token", "new") != first
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text(first)
    second = json.loads(done("token", "new", "--domain-of", str(file), "--json"))
    assert second["token"].split(".")[1] == first.split(".")[1]
    assert second["token"].split(".")[2] != first.split(".")[2]
    assert re.fullmatch(r"[0-9a-f]{8}", second["id"])


def test_a_token_redirected_into_a_file_can_be_used_at_once(tmp_path) -> None:
    from weave_router.tunnel.token_driver import load_tokens

    path = tmp_path / "token"
    with open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o644)) as file:
        assert program("token", "new", stdout=file).wait(20) == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(load_tokens(path)) == 1


def test_token_status(served) -> None:
    shown = done("token", "status", run_dir=served.run_dir)
    assert shown.startswith("sending with 1a2b3c4d, accepting 1a2b3c4d, 5e6f7081\n")
    assert json.loads(done("token", "status", "--json", run_dir=served.run_dir))["sending"] == "1a2b3c4d"


# --- capture ----------------------------------------------------------------------------------------------------


def frames_of(data: bytes) -> list[bytes]:
    from scapy.utils import RawPcapNgReader

    return [frame for frame, _ in RawPcapNgReader(io.BytesIO(data))]


def test_capture_into_a_file(served, tmp_path) -> None:
    path = tmp_path / "out.pcapng"
    assert done("capture", "--peer", "node-b", "-c", "2", "-w", str(path), run_dir=served.run_dir) == ""
    assert frames_of(path.read_bytes()) == [frame for *_, frame in FRAMES[:2]]
    assert path.stat().st_mode & 0o077 == 0


def test_capture_into_a_pipe_ends_well_by_ctrl_c(served) -> None:
    capture = program("capture", "-w", "-", "--run-dir", str(served.run_dir), stdout=subprocess.PIPE)
    assert capture.stdout is not None
    data = b""
    while len(data) < 2500:  # header and all three frames
        data += capture.stdout.read1(65_536)  # type: ignore[attr-defined]
    capture.send_signal(signal.SIGINT)
    data += capture.stdout.read()
    capture.stdout.close()
    assert capture.wait(10) == 0
    assert frames_of(data) == [frame for *_, frame in FRAMES]


def test_capture_to_a_reader_that_went_away(served) -> None:
    read, write = os.pipe()
    os.close(read)
    capture = program("capture", "-w", "-", "--run-dir", str(served.run_dir), stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert capture.communicate(timeout=10) == (None, b"")
    assert capture.returncode == 1


# --- report -----------------------------------------------------------------------------------------------------


def test_report_as_json_and_as_zip(served, tmp_path) -> None:
    path = tmp_path / "report.zip"
    assert re.fullmatch(rf"{path}: \d+ bytes\n", done("report", "-o", str(path), run_dir=served.run_dir))
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == [
            "status.json", "status.txt", "tables/routes.json", "tables/stations.json", "trace.json", "truncated.json",
        ]  # fmt: skip
        assert json.loads(archive.read("status.json"))["service"]["id"] == ID_A
        assert b"== connections\n" in archive.read("status.txt")
    assert path.stat().st_mode & 0o077 == 0
    printed = program("report", "--run-dir", str(served.run_dir), stdout=subprocess.PIPE).communicate(timeout=20)[0]
    assert json.loads(printed)["tables"]["routes"] == [["10.32.0.1/32", 1]]


# --- doctor -----------------------------------------------------------------------------------------------------


def test_doctor_without_a_router_looks_at_the_machine(tmp_path) -> None:
    result = run("doctor", "--json", run_dir=tmp_path)
    checks = json.loads(result.stdout)
    assert checks[0] == {
        "name": "router", "verdict": "ok", "sentence": "not running: only this machine was looked at", "way_out": "",
    }  # fmt: skip
    assert {check["name"] for check in checks} >= {"/dev/net/tun", "capabilities", "kernel: uso", "underlay MTU"}
    assert result.exit_code == (1 if any(check["verdict"] == "fail" for check in checks) else 0)


def test_doctor_adds_what_the_router_complains_of(served) -> None:
    served.router.known_targets = ()
    served.router.complaints = ("two nodes are called node-a",)
    served.router.peers = lambda: ()  # type: ignore[method-assign]
    result = run("doctor", run_dir=served.run_dir)
    lines = result.stdout.splitlines()
    assert "ok    router: 0.1.0 runs: ready" in lines
    assert "warn  router: two nodes are called node-a" in lines
    no_proof = "failed: no proof from peer (wrong token, or not a weave-router)"
    assert f"fail  connection to 192.0.2.14:6783: {no_proof}" in lines
    refused = "the path refuses UDP_SEGMENT: datagrams are sent one by one"
    assert f"warn  connection to b1b1b1b1b1b1(node-b): {refused}" in lines
    assert result.exit_code == 1


def test_doctor_tries_each_target(served) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        lines = run("doctor", f"127.0.0.1:{port}", run_dir=served.run_dir).stdout.splitlines()
    assert f"ok    peer 127.0.0.1: TCP port {port} answers" in lines
    lines = run("doctor", f"127.0.0.1:{port}", run_dir=served.run_dir).stdout.splitlines()
    assert f"fail  peer 127.0.0.1: nothing listens on TCP {port}" in lines


# --- the frame around all commands ------------------------------------------------------------------------------


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_help_with_an_example(command) -> None:
    page = done(*words_of(command), "--help")
    assert f"    weave-router {command}" in page


def test_every_printing_command_takes_json() -> None:
    silent = {"launch", "capture"}
    for command in set(COMMANDS) - silent:
        assert "--json" in done(*words_of(command), "--help"), command


def words_of(command: str) -> tuple[str, ...]:
    """Of a group its first command."""
    return {"token": ("token", "new"), "ipam": ("ipam", "check")}.get(command, (command,))


def test_the_variable_of_every_flag_is_known_to_launch() -> None:
    known = {option.field.upper() for option in OPTIONS} | OTHER_VARIABLES
    context = cli.make_context("weave-router", ["status"])
    for name in COMMANDS:
        command = cli.get_command(context, name)
        for each in getattr(command, "commands", {"": command}).values():
            for parameter in each.params:
                if parameter.envvar:
                    assert parameter.envvar.removeprefix(ENV_PREFIX) in known, parameter


def test_the_launch_page_lists_every_option() -> None:
    page = done("launch", "--help")
    for option in OPTIONS:
        assert f"--{option.flag} " in page
    assert "--config FILE" in page


def test_version() -> None:
    assert re.fullmatch(r"weave-router (\d+\.\d+\.\d+.*|\(not installed\))\n", done("--version"))


def test_output_that_nobody_reads_is_no_traceback(served) -> None:
    read, write = os.pipe()
    os.close(read)
    status = program("status", "--run-dir", str(served.run_dir), stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert status.communicate(timeout=10) == (None, b"")
    assert status.returncode == 1


HEAVY = ("aiohttp", "pyroute2", "asyncio", "uvloop", "cryptography", "prometheus_client", "rich", "pytun", "sqlite3")


def test_status_imports_nothing_slow(served) -> None:
    """Without a limit on time, which would measure the machine: what is imported is what it costs."""
    script = (
        "import sys\nfrom weave_router.__main__ import main\nsys.argv = ['weave-router', 'status']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0, end.code\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "WEAVE_ROUTER_RUN_DIR": str(served.run_dir)}
    ended = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=20)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[-1] == "", f"slow imports: {ended.stdout.splitlines()[-1]}"


# --- every sentence ---------------------------------------------------------------------------------------------

TOKEN_MISSING = (
    "--token-file is missing: make a token once by `weave-router token new > FILE`, copy FILE to every node, then run "
    "`weave-router launch --token-file FILE ...`"
)
NOBODY = "no router answers on {run_dir}/api.sock; start one by `weave-router launch`, or name its --run-dir"
SENTENCES = [
    ([], 2, "no command given; see `weave-router --help`"),
    (["lunch"], 2, "there is no command lunch; did you mean launch?"),
    (["xyzzy"], 2, "No such command 'xyzzy'; see `weave-router --help`"),
    (["ps"], 2, "there is no command ps; what does it here: `weave-router status attachments`"),
    (["rmpeer"], 2, "rmpeer: name at least one PEER (see `weave-router status ipam`), or give --abort alone"),
    (["rmpeer", "a", "--abort"], 2,
     "rmpeer: name at least one PEER (see `weave-router status ipam`), or give --abort alone"),
    (["token"], 2, "Missing command; see `weave-router token --help`"),
    (["launch"], 2, TOKEN_MISSING),
    (["launch", "--plaintext"], 2, TOKEN_MISSING),
    (["launch", "--mtu"], 2, "Option '--mtu' requires an argument; see `weave-router --help`"),
    (["launch", "--port", "0"], 2, "--port: 0 should be a whole number from 1 to 65535"),
    (["launch", "--no-such"], 2,
     "No such option '--no-such'; did you mean '--no-discovery'; see `weave-router launch --help`"),
    (["launch", "--zz"], 2, "No such option '--zz'; see `weave-router launch --help`"),
    (["launch", "--token-file", "/t", "10.0.0"], 2,
     "TARGET: '10.0.0' should be an address or a host name, with :PORT if it is not 6783"),
    (["launch", "--config", "/nowhere"], 2, "--config: cannot read /nowhere: No such file or directory"),
    (["status"], 3, NOBODY),
    (["status", "conns"], 2, "Invalid value for '[SUBJECT]': 'conns' is not one of 'connections', 'peers', 'targets', "
     "'ipam', 'attachments', 'workers', 'drops', 'counters', 'tokens', 'warnings', 'addresses'; "
     "see `weave-router status --help`"),
    (["status", "drops", "more"], 2, "Got unexpected extra argument (more); see `weave-router status --help`"),
    (["connect"], 2, "connect: name at least one TARGET, such as 192.0.2.13"),
    (["connect", "a:0"], 2, "TARGET: the port of 'a:0' should be a number from 1 to 65535"),
    (["connect", "192.0.2.1"], 3, NOBODY),
    (["forget"], 2, "forget: name at least one TARGET; `weave-router status targets` lists them"),
    (["forget", "192.0.2.1"], 3, NOBODY),
    (["attach"], 2, "Missing argument 'NETNS'; see `weave-router attach --help`"),
    (["claim", "ten"], 2, "ADDRESS: 'ten' should be an IPv4 address such as 10.32.0.5"),
    (["claim", "10.32.0.5", "--container-id", "x" * 256], 2,
     f"--container-id: '{'x' * 20}'... is longer than 255 characters"),
    (["expose", "::1"], 2, "ADDRESS: '::1' should be an IPv4 address such as 10.32.0.5"),
    (["ipam", "check"], 3, NOBODY),
    (["attach", "blue", "10.32.0.5"], 2,
     "ADDRESS/LEN: 10.32.0.5 lacks the range's prefix length; did you mean 10.32.0.5/12?"),
    (["attach", "blue", "here"], 2, "ADDRESS/LEN: 'here' should be an IPv4 address and a length: 10.32.0.5/12"),
    (["attach", "blue", "fd00::5/96"], 2,
     "ADDRESS/LEN: fd00::5/96 is IPv6; give an IPv4 address, the IPv6 one follows from it"),
    (["attach", "blue", "10.32.0.5/12", "--ifname", "x" * 16], 2,
     "--ifname: 'xxxxxxxxxxxxxxxx'... is longer than 15 characters"),
    (["attach", "/nowhere/net", "10.32.0.5/12"], 1,
     "cannot open network namespace /nowhere/net: ENOENT (No such file or directory); "
     "give a path like /proc/PID/ns/net or /run/netns/NAME"),
    (["detach"], 2, "detach: say which by NETNS, --address or --container-id (`weave-router status attachments`)"),
    (["detach", "--address", "x"], 2, "--address: 'x' should be an IPv4 address such as 10.32.0.5"),
    (["detach", "blue"], 3, NOBODY),
    (["token", "status"], 3, NOBODY),
    (["token", "new", "--domain-of", "/nowhere"], 2,
     "token file /nowhere does not exist: run `weave-router token new > /nowhere` on the first node "
     "and copy the file to the others"),
    (["doctor", "a b"], 2, "TARGET: 'a b' should be an address or a host name, with :PORT if it is not 6783"),
    (["capture"], 2, "capture: say where to write, by -w FILE or -w - for a pipe"),
    (["capture", "-w", "/nowhere/x"], 1, "--write: cannot write /nowhere/x: No such file or directory"),
    (["capture", "-w", "{run_dir}/x"], 3, NOBODY),
    (["capture", "-w", "x", "--snap", "1"], 2,
     f"Invalid value for '--snap': 1 is not in the range 14<=x<={limits.CAPTURE_SNAP_MAX}; "
     "see `weave-router capture --help`"),
    (["report"], 3, NOBODY),
    (["reset", "--bridge", "a/b"], 2,
     "--bridge 'a/b' is no usable interface name; take 1 to 15 letters, digits, '_', '.', '-'"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "status", "sentence"), SENTENCES, ids=lambda value: " ".join(value) or "nothing"
                         if isinstance(value, list) else "")  # fmt: skip
def test_a_failure_is_one_sentence(tmp_path, words, status, sentence) -> None:
    words = [word.format(run_dir=tmp_path) for word in words]
    assert said(run(*words, run_dir=tmp_path)) == (status, sentence.format(run_dir=tmp_path))


SERVED_SENTENCES = [
    (["forget", "a"], 1, "a is no target; `weave-router status targets` lists them"),
    (["capture", "-w", "{run_dir}/x", "--peer", "z"], 1, "no peer is called z"),
    (["report", "-o", "/nowhere/x"], 1, "--output: cannot write /nowhere/x: No such file or directory"),
    (["report", "-o", "/dev/full"], 1, "--output: cannot write /dev/full: No space left on device"),
    (["capture", "-w", "/dev/full"], 1,
     "cannot write /dev/full: No space left on device; what was written so far is readable"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "status", "sentence"), SERVED_SENTENCES)
def test_what_the_router_refuses_is_one_sentence_too(served, words, status, sentence) -> None:
    words = [word.format(run_dir=served.run_dir) for word in words]
    assert said(run(*words, run_dir=served.run_dir)) == (status, sentence)


def test_a_wrong_variable_of_a_command_is_one_sentence(tmp_path) -> None:
    status, sentence = said(run("capture", run_dir=tmp_path, env={"WEAVE_ROUTER_COUNT": "many"}))
    assert status == 2
    assert sentence.startswith("Invalid value for '--count' / '-c': 'many' is not a valid integer range; see ")
    status, sentence = said(run("launch", env={"WEAVE_ROUTER_PORTS": "1"}))
    assert (status, sentence) == (2, "WEAVE_ROUTER_PORTS: no such variable; did you mean 'WEAVE_ROUTER_PORT'?")


def test_a_socket_that_one_may_not_open() -> None:
    from weave_router.api.client import ApiClient

    error = ApiClient("/run/weave-router")._no_answer(PermissionError(13, "Permission denied"))
    assert (str(error), error.exit_status) == ("may not open /run/weave-router/api.sock; run this as root (sudo)", 1)
