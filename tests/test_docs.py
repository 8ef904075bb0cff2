"""The Python of the documentation runs as it stands there."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
BLOCKS = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in sorted(DOCS.rglob("*.md"))
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    if "read_csv" not in block
]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_of_the_documentation_runs(block):
    exec(compile(block, "documentation", "exec"), {})


def test_the_forecast_of_a_csv_file_runs(tmp_path, monkeypatch):
    pandas = pytest.importorskip("pandas", reason="needs the extra series: pip install 'flambeau[series]'")
    import math

    dates = pandas.date_range("2024-01-01", periods=1500, freq="h")
    load = [100 + 20 * math.sin(2 * math.pi * hour / 24) + hour % 7 for hour in range(len(dates))]
    pandas.DataFrame({"date": dates, "MW": load}).to_csv(tmp_path / "load.csv", index=False)
    monkeypatch.chdir(tmp_path)
    (block,) = [
        b for b in re.findall(r"```python\n(.*?)```", (DOCS / "your-data.md").read_text(), re.DOTALL) if "read_csv" in b
    ]
    exec(compile(block, "documentation", "exec"), {})
