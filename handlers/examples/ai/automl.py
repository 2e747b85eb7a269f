"""Train models on a dropped CSV file with H2O AutoML; its Java server ends with the step.

The column to predict is called `label`. `h2o.init()` would start the server in a session of its
own, where nothing that ends the worker process reaches it: it is started here, and connected to.
"""

# /// script
# dependencies = ["h2o>=3.46"]
# ///

import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from turnout import files, flow, task


@task(pool="process", timeout="2h")
def train(path: Path) -> list[list[Any]]:
    """Return H2O's leaderboard, its header first; the server is in the group of the worker."""
    import h2o  # takes seconds, and memory of the worker only
    from h2o.automl import H2OAutoML

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    jar = Path(h2o.__file__).parent / "backend" / "bin" / "h2o.jar"
    command = ["nice", "java", "-Xmx2g", "-jar", str(jar), "-ip", "127.0.0.1", "-port", str(port)]
    with subprocess.Popen([*command, "-nthreads", "1"], stdout=subprocess.DEVNULL) as server:
        try:
            while True:
                try:
                    h2o.connect(ip="127.0.0.1", port=port, verbose=False)
                    break
                except h2o.exceptions.H2OConnectionError:
                    if server.poll() is not None:
                        raise
                    time.sleep(0.5)
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
