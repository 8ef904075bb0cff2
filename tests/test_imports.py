"""What must not import torch, and how long it takes: a papers page has to answer at once."""

import subprocess
import sys

import pytest

COMMAND = "from typer.testing import CliRunner; from flambeau.app.cli import app; "


@pytest.mark.parametrize(
    "code",
    [
        "import flambeau",
        "import flambeau.symbolic",
        "import flambeau.experiment",
        "import flambeau.papers",
        "import flambeau.app.cli",
        "import flambeau.app.board",
        COMMAND + "assert CliRunner().invoke(app, ['list']).exit_code == 0",
        COMMAND + "assert CliRunner().invoke(app, ['show', 'sjd']).exit_code == 0",
    ],
)
def test_torch_is_not_imported(code):
    check = f"{code}\nimport sys\nassert not {{'torch', 'numpy'}} & set(sys.modules), 'torch or numpy was imported'"
    subprocess.run([sys.executable, "-c", check], check=True)
