"""Draw the plots that kept results ask for: RESULTS_JSON FOLDER; a picture each, named for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

results, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
folder.mkdir(exist_ok=True)
drawn = 0
for table in results.values():
    plot = table.get("plot")
    if not plot:
        continue
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for marker, (name, points) in zip("osv^Dx*+", plot["lines"].items(), strict=False):
        axes.plot(*zip(*points, strict=True), marker=marker, label=name)
    if plot["logarithmic"]:
        axes.set_xscale("log", base=2)
        ticks = sorted({x for points in plot["lines"].values() for x, _ in points})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set(title=table["title"], xlabel=plot["across"], ylabel=plot["up"])
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / f"{plot['name']}.png", dpi=110)
    plt.close(figure)
    drawn += 1
sys.stdout.write(json.dumps({"drawn": drawn}) + "\n")
