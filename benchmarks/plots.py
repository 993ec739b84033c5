"""Pictures of what ``results/latest.json`` says, for the README: ``docs/images/speed`` and ``curves``, SVG and PNG.

speed: one row of bars per figure, one panel per wire; every bar is the median of its runs, the thin line their range.
curves: one panel per curve, each line in parts of its first point. Reads the file and nothing else, so that no picture
shows what was not measured. Needs matplotlib (dependency group bench).
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from _results import load  # noqa: E402
from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

IMAGES: Final = ROOT / "docs" / "images"
NAMES: Final = {"vxlan": "kernel VXLAN (plaintext)", "encrypted": "Weave Router"}
FIGURES: Final = {
    "tcp1": "TCP, one stream (Mbit/s)",
    "udp64": "64-byte UDP (frames/s)",
    "rtt.p50": "round trip p50 (µs)",
}
CURVE_FIGURES: Final = ("tcp1", "udp64", "udp64x64")
OURS, YARDSTICK, OTHERS = "#c2410c", "#64748b", "#94a3b8"
WIRES: Final = {"segmented": "wire without offloads", "offloads": "wire with offloads"}


def bars(axes: Axes, taken: dict[str, list[float]], middle: dict[str, float], title: str) -> None:
    names = list(middle)[::-1]
    colours = [OURS if name == "encrypted" else YARDSTICK if name == "vxlan" else OTHERS for name in names]
    spread = [[middle[name] - min(taken[name]) for name in names], [max(taken[name]) - middle[name] for name in names]]
    drawn = axes.barh([NAMES.get(name, name) for name in names], [middle[name] for name in names], xerr=spread,
                      color=colours, error_kw={"elinewidth": 0.8, "ecolor": "#0f172a"})
    axes.bar_label(drawn, labels=[f" {middle[name]:,.0f}" for name in names], padding=3, fontsize=8)
    axes.set_title(title, fontsize=9, loc="left")
    axes.margins(x=0.18)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def draw(others: dict[str, Any]) -> None:
    wires = [wire for wire in WIRES if wire in others]
    figure, grid = pyplot.subplots(len(FIGURES), len(wires), figsize=(5.5 * len(wires), 8), squeeze=False)
    for column, wire in enumerate(wires):
        for row, (metric, title) in enumerate(FIGURES.items()):
            found = others[wire]
            bars(grid[row][column], found["samples"][metric], found["medians"][metric], f"{title}, {WIRES[wire]}")
    how = others[wires[0]]
    machine = f"{how['cpu']}, {how['cpus']} CPUs, Linux {how['kernel']}"
    run = f"{how['at'][:10]}, commit {how['commit']}, medians of {how['rounds']}"
    figure.text(0.01, 0.005, f"{machine}, {run}", fontsize=7, color="#475569")
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    save(figure, "speed")


def draw_curves(curves: dict[str, Any]) -> None:
    figure, grid = pyplot.subplots(1, len(curves), figsize=(4 * len(curves), 3), squeeze=False)
    for axes, (curve, per) in zip(grid[0], curves.items(), strict=True):
        points = sorted((int(at), found["samples"]) for at, found in per.items())
        for name in (name for name in points[0][1] if name in CURVE_FIGURES):
            values = [statistics.median(samples[name]) for _, samples in points]
            axes.plot([at for at, _ in points], [value / values[0] for value in values], marker="o", label=name)
        axes.set_xscale("log" if points[-1][0] > 4 else "linear")
        axes.set_xticks([at for at, _ in points], [f"{at:,}" for at, _ in points])
        axes.set_ylim(bottom=0)
        axes.set_title(f"{curve}, in parts of {points[0][0]}", fontsize=9, loc="left")
        axes.legend(fontsize=8)
        axes.tick_params(labelsize=8)
    figure.tight_layout()
    save(figure, "curves")


def save(figure: Figure, name: str) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    for kind in ("svg", "png"):
        figure.savefig(IMAGES / f"{name}.{kind}", dpi=120)
    print(f"written to {(IMAGES / name).relative_to(ROOT)}.svg and .png")


def main() -> int:
    found = load()
    if "others" not in found:
        print("no figures of others yet: run benchmarks/others.py", file=sys.stderr)
        return 1
    draw(found["others"])
    if "curves" in found:
        draw_curves(found["curves"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
