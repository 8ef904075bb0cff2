import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent.parent / "search"))
import search_workers as w

from flambeau.app.study import study_app
from flambeau.search import Random, Study, StudyError, search
from flambeau.symbolic import SymbolicError, floatv, oneof, symbolize


def run(*arguments):
    return CliRunner().invoke(study_app, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "study.db"
    for name, n in (("a", 3), ("b", 30)):
        search(w.space, Random(), w.score, n, study=path, name=name)
    return path


def test_ls(path):
    lines = run("ls", path).stdout.splitlines()
    assert lines[0].split() == ["study", "status", "trials", "finished", "best", "trial"]
    assert [line.split()[:4] for line in lines[1:]] == [["a", "open", "3", "3"], ["b", "open", "30", "30"]]
    rows = json.loads(run("ls", path, "--json").stdout)["studies"]
    assert rows[1]["best"] == Study(path, "b").best().reward


def test_show(path):
    study = Study(path, "b")
    lines = run("show", path, "--name", "b", "--top", 5).stdout.splitlines()
    assert len(lines) == 7 and lines[1].split()[0] == str(study.best().id) and lines[6] == "... and 25 more"
    assert json.loads(run("show", path, "--name", "b", "--trial", 4).stdout)["dna"] == study.trial(4).dna.to_json()
    with pytest.raises(StudyError, match="choose one by --name: \\['a', 'b'\\]"):
        run("show", path)
    with pytest.raises(StudyError, match="no study 'c'"):
        run("show", path, "--name", "c")


def test_export(path, tmp_path):
    assert run("export", path, tmp_path / "out.csv", "--name", "b").exit_code == 0
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 31


def test_resume(tmp_path):
    path = tmp_path / "study.db"
    space, algorithm = [oneof([0, 1]), floatv(0.0, 1.0), oneof([2.0, 3.0])], symbolize(Random)()
    whole = search(space, algorithm, w.score, 12)
    search(space, algorithm, w.score, 5, study=path)
    with pytest.raises(SymbolicError, match="search_workers"):
        run("resume", path)
    assert run("resume", path, "--trials", 12, "--trusted").exit_code == 0
    assert w.outcome(Study(path)) == w.outcome(whole)


def test_resume_finds_arguments_of_the_evaluation(tmp_path):
    path = tmp_path / "study.db"
    evaluate = symbolize(w.score_or_die).partial(trials=[], folder=str(tmp_path))
    for n in (2, 4):
        if n == 2:
            search([oneof([0, 1]), 0.5, 0.5], symbolize(Random)(), evaluate, n, study=path)
        else:
            assert run("resume", path, "--trials", n, "--trusted").exit_code == 0
        assert Study(path).finished() == n


def test_resume_needs_a_search_that_can_be_written_down(tmp_path):
    path = tmp_path / "study.db"
    search([oneof([0, 1])], Random(), lambda value, feedback: 0.0, 3, study=path)
    with pytest.raises(StudyError, match="run the script that made it again"):
        run("resume", path)


def test_no_torch_to_look_at_a_study(path):
    code = """
import sys
from typer.testing import CliRunner
from flambeau.app.study import study_app
assert CliRunner().invoke(study_app, ["show", sys.argv[1], "--name", "a"]).exit_code == 0
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, path], check=True)
