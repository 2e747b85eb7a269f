"""Ask questions about a dropped CSV file in plain words, with PandasAI and a language model.

PandasAI pins old versions of pandas, so it has an environment of its own: `PANDASAI_PYTHON` is its
interpreter, which runs `_ask_frame.py` in a process for each question. `MODEL_URL` speaks the
protocol of OpenAI and takes `MODEL_KEY`. The same question about the same content is asked once a
day.
"""

from pathlib import Path

from turnout import by_input, files, flow, gather, limit, retry, secret, shell, task

QUESTIONS = ["Which products sold well?", "How many did we sell?", "Which sold worst?"]
PROGRAM = Path(__file__).with_name("_ask_frame.py")


@task(
    retry=retry(2, delay="1s"), timeout="90s", limit=limit("model", 2), cache=by_input(ttl="1d")
)  # fmt: skip
async def ask(question: str, rows: str) -> str:
    """Return an answer; what the model's code does, it does in a process that ends in time."""
    said = await shell(
        [secret("PANDASAI_PYTHON").reveal(), str(PROGRAM), question], stdin=rows, timeout="60s",
        env={"MODEL_URL": secret("MODEL_URL"), "MODEL_KEY": secret("MODEL_KEY")}, reads=True,
    )  # fmt: skip
    return said.stdout.strip()


@task
def read(path: Path) -> str:
    """Return what the file has."""
    return path.read_text()


@flow(on=files("tables/*.csv"))
async def insights(path: Path) -> list[str]:
    """Answer every question about one file."""
    rows = await read.run(path)
    return list(await gather(*[ask(each, rows) for each in QUESTIONS]))
