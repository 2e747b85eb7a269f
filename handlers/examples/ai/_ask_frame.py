"""Answer a question about the rows on standard input: `_ask_frame.py QUESTION`, with PandasAI.

The model is at `MODEL_URL`, and takes `MODEL_KEY`.
"""

# /// script
# dependencies = ["pandasai==3.0.0"]
# ///

import json
import os
import sys
from typing import Any
from urllib.request import Request, urlopen

import pandas as pd
import pandasai as pai
from pandasai.llm.base import LLM


class Model(LLM):
    """A model that speaks the protocol of OpenAI; PandasAI runs the code it writes."""

    type = "openai"

    def call(self, instruction: Any, context: Any = None) -> str:
        """Ask it."""
        asked = {"role": "user", "content": instruction.to_string()}
        body = json.dumps({"model": "gpt-5", "messages": [asked]}).encode()
        headers = {
            "Authorization": f"Bearer {os.environ['MODEL_KEY']}",
            "Content-Type": "application/json",
        }
        url = os.environ["MODEL_URL"] + "/chat/completions"
        with urlopen(Request(url, body, headers), timeout=60) as answer:
            said: str = json.load(answer)["choices"][0]["message"]["content"]
        return said


pai.config.set({"llm": Model(), "max_retries": 0, "save_logs": False})  # the step tries again
answer = pai.DataFrame(pd.read_csv(sys.stdin)).chat(sys.argv[1])
if answer.type == "error":
    raise SystemExit(answer.error)
sys.stdout.write(f"{answer}\n")
