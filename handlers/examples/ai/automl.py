"""Train models on a dropped CSV file with H2O AutoML; its Java server ends with the step.

The column to predict is called `label`. `h2o.init()` would start the server in a session of its
own, where nothing that ends the worker process reaches it: it is started here, and connected to.
It takes a free port, and says which.
"""

# /// script
# dependencies = ["h2o>=3.46"]
# ///

import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from turnout import current, files, flow, task


@task(pool="process", timeout="2h")
def train(path: Path) -> list[list[Any]]:
    """Return H2O's leaderboard, its header first; the server is in the group of the worker."""
    import h2o  # takes seconds, and memory of the worker only
    from h2o.automl import H2OAutoML

    jar = Path(h2o.__file__).parent / "backend" / "bin" / "h2o.jar"
    with TemporaryDirectory() as folder:
        address = Path(folder) / "address"
        command = ["nice", "java", "-Xmx2g", "-jar", str(jar), "-nthreads", "1", "-ip", "127.0.0.1"]
        command += ["-name", current().key(), "-notify_local", str(address)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            try:
                while not address.exists():
                    if server.poll() is not None:
                        raise RuntimeError(f"H2O ended with {server.returncode}")
                    time.sleep(0.5)
                h2o.connect(url=f"http://{address.read_text().strip()}", verbose=False)
                frame = h2o.import_file(str(path.absolute()))
                frame["label"] = frame["label"].asfactor()
                automl = H2OAutoML(max_models=2, seed=1, verbosity=None)
                automl.train(y="label", training_frame=frame)
                rows: list[list[Any]] = automl.leaderboard.as_data_frame(use_pandas=False)
                return rows
            finally:
                server.kill()


@flow(on=files("training/*.csv"))
async def automl(path: Path) -> list[list[Any]]:
    """Return the leaderboard."""
    return await train.run(path)
