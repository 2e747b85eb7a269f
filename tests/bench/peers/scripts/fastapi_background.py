"""FastAPI that answers 202 and then runs the same handler as a background task: PORT."""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from fastapi import BackgroundTasks, FastAPI

app = FastAPI()


async def bill(order: dict[str, Any]) -> None:
    return None


@app.post("/hooks/orders", status_code=202)
async def take(order: dict[str, Any], tasks: BackgroundTasks) -> dict[str, Any]:
    tasks.add_task(bill, order)
    return {"event": "0", "runs": ["0"], "duplicate": False}


uvicorn.run(
    app, host="127.0.0.1", port=int(sys.argv[1]), loop="uvloop", http="httptools",
    log_level="warning", access_log=False,
)  # fmt: skip
