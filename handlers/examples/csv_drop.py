"""Take in CSV files as they are dropped: validate every row, summarise, move the file away.

Drop files into `inbox/`. A good one ends in `inbox/done/` with its summary as the run's result; a
bad one ends in `inbox/failed/`, and the run names every bad line.
"""

import csv
from datetime import date
from decimal import Decimal
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from turnout import Fail, files, flow, move


class Sale(BaseModel):
    """One row."""

    day: date
    product: str = Field(min_length=1)
    amount: Decimal = Field(ge=0)


class Summary(BaseModel):
    """What a file came to."""

    rows: int
    total: Decimal
    by_product: dict[str, Decimal]


@flow(on=files("inbox/*.csv", settle="500ms", then=move("done/"), on_failure=move("failed/")))
def sales(path: Path) -> Summary:
    """Return the sums of one file; raises `Fail`, since a retry would read the same rows."""
    rows = 0
    by_product: dict[str, Decimal] = {}
    bad: list[str] = []
    with path.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        if lacking := [name for name in Sale.model_fields if name not in (reader.fieldnames or ())]:
            raise Fail(f"line 1 names no column {', '.join(lacking)}")
        for row in reader:
            if None in row:
                bad.append(f"line {reader.line_num}: more fields than the header names")
                continue
            try:
                sale = Sale.model_validate(row)
            except ValidationError as error:
                first = error.errors()[0]
                bad.append(f"line {reader.line_num}: {first['loc'][0]}: {first['msg']}")
                continue
            rows += 1
            by_product[sale.product] = by_product.get(sale.product, Decimal(0)) + sale.amount
    if bad:
        raise Fail("; ".join(bad))
    total = sum(by_product.values(), Decimal(0))
    return Summary(rows=rows, total=total, by_product=by_product)
