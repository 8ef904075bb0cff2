import json

from typer.testing import CliRunner

from flambeau.app.cli import app

run = CliRunner().invoke


def test_solves_a_file(tmp_path):
    file = tmp_path / "tiles.constrint"
    file.write_text("tile * blocks == 96; tile % 8 == 0  # tiles of rows\n")
    result = run(app, ["constrint", str(file), "--prefer", "tile=largest", "--n", "2", "--bounds", "blocks=2:96"])
    assert result.exit_code == 0, result.output
    assert [json.loads(line) for line in result.output.splitlines()] == [
        {"tile": 48, "blocks": 2},
        {"tile": 32, "blocks": 3},
    ]


def test_standard_input_and_no_solution():
    result = run(app, ["constrint", "-"], input="A == 2; A == 3")
    assert result.exit_code == 3 and "no solution" in result.output


def test_faults_are_named(tmp_path):
    file = tmp_path / "bad"
    file.write_text("A == 2;\nB <")
    assert "line 2, column 4" in run(app, ["constrint", str(file)]).output
    for arguments in (["--prefer", "A"], ["--bounds", "A=3"], ["--prefer", "Z=largest"]):
        file.write_text("A == 2")
        result = run(app, ["constrint", str(file), *arguments])
        assert result.exit_code == 2 and arguments[1].split("=")[0] in result.output
    assert run(app, ["constrint", str(tmp_path / "missing")]).exit_code == 2
