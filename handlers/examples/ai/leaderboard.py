"""Train models on a dropped CSV file with AutoGluon, in a worker process, and rank them.

The column to predict is called `label`. The models are in `models/`, in a folder named after the
key of the step: a step that is cut off, and runs again, begins it anew.
"""

# /// script
# dependencies = ["autogluon.tabular[lightgbm]>=1.4"]
# ///

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from turnout import current, files, flow, task


@dataclass(frozen=True)
class Trained:
    """Where the models are, and how good: the best first."""

    folder: str
    scores: dict[str, float]


@task(pool="process", timeout="2h")
def train(path: Path) -> Trained:
    """Train for hours if need be; the service and its other flows go first."""
    from autogluon.tabular import TabularPredictor  # takes seconds, and memory of the worker only

    os.setpriority(os.PRIO_PROCESS, 0, 10)
    folder = Path("models") / current().key()
    shutil.rmtree(folder, ignore_errors=True)
    predictor = TabularPredictor(label="label", path=str(folder), verbosity=0)
    predictor.fit(str(path), hyperparameters={"GBM": {}}, num_cpus=1)
    board = predictor.leaderboard().set_index("model")
    return Trained(str(folder), board["score_val"].astype(float).to_dict())


@flow(on=files("training/*.csv"))
async def leaderboard(path: Path) -> Trained:
    """Return where the models are, and their scores."""
    return await train.run(path)
