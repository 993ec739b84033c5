"""`make test-kubernetes CONFORMANCE=1`: Kubernetes' own network tests, with the reference plugins and with ours.

    python -P -m kubernetes.conformance [--only reference|weave-router]

The specs are those marked sig-network and Conformance; those about names of Services are left out, and named with the
reason in the results. Each plugin gets a cluster of its own. Each spec that passes with the reference must pass with
ours: else the exit status is 1. Writes docs/results/conformance.json. Called by the Makefile only.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

from kubernetes import e2e_images, product, reference
from kubernetes.cluster import CLUSTER_V4, KUBERNETES, PROGRAMS, Cluster, ClusterError
from kubernetes.images import ROOT

RESULTS: Final = ROOT / "docs" / "results" / "conformance.json"
FOCUS: Final = r"\[sig-network\].*\[Conformance\]"
DNS: Final = r"\[sig-network\] DNS "
WHY_NOT_DNS: Final = "tests the name server, here a process beside the API server: no part of the network plugin"
LIMIT_SECONDS: Final = 1800
PLUGINS: Final = {"reference": str(reference.RANGE), "weave-router": CLUSTER_V4}
"""Name -> what kube-proxy takes for the pods' range."""

Verdicts = dict[str, dict[str, Any]]


def say(line: str) -> None:
    print(f"== {line}", flush=True)


def verdicts(report: Path) -> Verdicts:
    """Name of a spec -> what became of it, and its seconds; of those that ran."""
    found: Verdicts = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name, status = case.attrib["name"], case.attrib["status"]
        if name.startswith("[It] ") and status != "skipped":
            found[name.removeprefix("[It] ")] = {"verdict": status, "seconds": round(float(case.attrib["time"]), 1)}
    return found


def excluded(folder: Path) -> list[str]:
    """What is left out, by the program's own list."""
    report = folder / "excluded"
    subprocess.run([PROGRAMS / "e2e.test", "--ginkgo.dry-run", f"--ginkgo.focus={DNS}.*\\[Conformance\\]",
                    "--provider=skeleton", f"--report-dir={report}"], check=True, capture_output=True, timeout=120)
    return sorted(verdicts(report / "junit_01.xml"))


def specs(cluster: Cluster, log: Path) -> Verdicts:
    """Runs them one after the other; the program's exit status says no more than its report."""
    report = cluster.folder / "e2e"
    command = [
        "nsenter", f"--net=/run/netns/{cluster.nodes[0].netns}", f"{PROGRAMS}/e2e.test",
        f"--kubeconfig={cluster.control}/admin.kubeconfig", f"--kubectl-path={PROGRAMS}/kubectl",
        "--provider=skeleton", f"--num-nodes={len(cluster.nodes)}", f"--report-dir={report}", "--disable-log-dump",
        "--ginkgo.v", "--ginkgo.no-color", f"--ginkgo.timeout={LIMIT_SECONDS}s", f"--ginkgo.focus={FOCUS}",
        f"--ginkgo.skip={DNS}",
    ]  # fmt: skip
    began, done = time.monotonic(), 0
    with open(log, "w") as written:
        running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   text=True, errors="replace")  # fmt: skip
        assert running.stdout is not None
        try:
            for line in running.stdout:
                written.write(line)
                if line.startswith("• ["):
                    done += 1
                    say(f"{done} specs, {time.monotonic() - began:.0f} s: {line.strip()}")
        finally:
            running.kill()
            running.wait()
    if not (report / "junit_01.xml").exists():
        raise ClusterError(f"e2e.test wrote no report; it said: {log.read_text()[-3000:]}")
    return verdicts(report / "junit_01.xml")


def with_plugin(name: str, log: Path) -> Verdicts:
    with Cluster(say=say, names=True) as cluster:
        cluster.boot(cidr=PLUGINS[name], more_images=e2e_images.archives())
        if name == "reference":
            reference.install(cluster)
            product.wait_ready(cluster)
        else:
            product.install(cluster)
        say(f"{name} is installed: the specs run, log {log}")
        return specs(cluster, log)


def merged(held: dict[str, Any], name: str, found: Verdicts, left_out: list[str]) -> dict[str, Any]:
    """The results with those of one plugin put in."""
    table = {row["spec"]: row for row in held.get("specs", [])}
    for spec in found:
        table.setdefault(spec, {"spec": spec})[name] = found[spec]
    return {
        "kubernetes": KUBERNETES, "focus": FOCUS, "skip": DNS, "specs": [table[spec] for spec in sorted(table)],
        "excluded": [{"spec": spec, "reason": WHY_NOT_DNS} for spec in left_out],
    }  # fmt: skip


def worse(results: dict[str, Any]) -> list[str]:
    """Specs that pass with the reference and do not with ours."""
    def passes(row: dict[str, Any], name: str) -> bool:
        return bool(row.get(name, {}).get("verdict") == "passed")
    return [row["spec"] for row in results["specs"] if passes(row, "reference") and not passes(row, "weave-router")]


def main() -> int:
    parser = argparse.ArgumentParser(prog="conformance")
    parser.add_argument("--only", choices=sorted(PLUGINS))
    wanted = parser.parse_args().only
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logs = ROOT / "build" / "test-results"
    logs.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if wanted and RESULTS.exists() else {}
    left_out = excluded(logs)
    for name in [wanted] if wanted else PLUGINS:
        found = with_plugin(name, logs / f"conformance-{name}.log")
        results = merged(results, name, found, left_out)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        passed = sum(each["verdict"] == "passed" for each in found.values())
        say(f"{name}: {passed} of {len(found)} specs passed, {len(left_out)} left out")
    missed = worse(results)
    for spec in missed:
        say(f"passes with the reference only: {spec}")
    return 1 if missed or not results["specs"] else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ClusterError as error:
        sys.exit(f"conformance: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
