import csv
import json
import random
import sqlite3
import subprocess
import sys

import pytest

from flambeau.search.algorithm import Random
from flambeau.search.sample import sample
from flambeau.search.study import Study, StudyError, studies
from flambeau.symbolic import oneof, template

SPACE = [oneof([1, 2, 3]), oneof(["a", "b"])]


def fill(path, n=4, name="main"):
    study = Study(path, name)
    for value, feedback in sample(SPACE, Random(), n, study=study):
        feedback.add_measurement(1, 0.5)
        feedback.skip("odd") if feedback.id == 1 else feedback(float(value[0]), {"letter": value[1]})
    return study


def test_several_studies_in_one_file(tmp_path):
    path = tmp_path / "deep" / "study.db"
    fill(path, 4, "a"), fill(path, 2, "b")
    assert [(study.name, study.finished()) for study in studies(path)] == [("a", 4), ("b", 2)]
    with pytest.raises(StudyError, match="no study 'c'; it holds \\['a', 'b'\\]"):
        Study(path, "c", create=False)
    with pytest.raises(StudyError, match="no trial 9"):
        Study(path, "a").trial(9)


def test_a_bank_of_results_warms_up_an_algorithm(tmp_path):
    study, seen = Study(tmp_path / "bank.db"), []
    points = list(template(SPACE).spec.iter())
    study.add(points[0], 3.0, {"task": "cora"})
    study.add(points[1], None)

    class Listener(Random):
        def recover(self, history):
            seen.extend(history)

    for _, feedback in sample(SPACE, Listener(), 3, study=study):
        feedback(1.0)
    assert seen == [(points[0], 3.0), (points[1], None)]
    assert study.best().metadata == {"task": "cora"} and study.trial(1).state == "skipped"


def test_metadata_is_kept(tmp_path):
    study = Study(tmp_path / "study.db")
    study.metadata = {"schedule": [1, {"lr": 0.1}]}
    assert Study(tmp_path / "study.db").metadata == {"schedule": [1, {"lr": 0.1}]}


def test_export(tmp_path):
    study = fill(tmp_path / "study.db")
    study.export(tmp_path / "out.csv")
    study.export(tmp_path / "out.json")
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [row["state"] for row in rows] == ["done", "skipped", "done", "done"]
    assert float(rows[0]["reward"]) == study.trial(0).reward and rows[1]["reward"] == ""
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["study"] == "main" and [t["id"] for t in data["trials"]] == [0, 1, 2, 3]
    assert data["trials"][0]["dna"] == study.trial(0).dna.to_json()
    assert data["trials"][0]["measurements"] == [{"step": 1, "reward": 0.5, "metrics": {}}]
    study.add(study.trial(0).dna, (1.0, 2.0))
    study.export(tmp_path / "out.csv")
    assert list(csv.DictReader((tmp_path / "out.csv").open()))[4]["reward.1"] == "2.0"
    with pytest.raises(ValueError, match="target: expected a name that ends in .csv or .json"):
        study.export(tmp_path / "out.xlsx")
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("kind", ["text", "empty", "foreign", "newer", "folder"])
def test_what_is_not_a_study(tmp_path, kind):
    path = tmp_path / "file"
    if kind == "text":
        path.write_text("not a database, but long enough to look at " * 50)
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "newer":
        Study(path)
        sqlite3.connect(path).execute("PRAGMA user_version = 99")
    else:
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE trial (study TEXT)")
        connection.commit()
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StudyError, match="not a study|cannot be used|format 99"):
        Study(path)
    with pytest.raises(StudyError, match="not a study|cannot be used|format 99"):
        studies(path)
    assert before is None or path.read_bytes() == before


def test_missing_file_is_not_made_by_reading(tmp_path):
    with pytest.raises(StudyError, match="no such study file"):
        studies(tmp_path / "none.db")
    assert list(tmp_path.iterdir()) == []


def test_damaged_pages_and_rows(tmp_path):
    path = tmp_path / "study.db"
    study = fill(path, 200)
    with study.transaction() as db:
        db.execute("UPDATE trial SET measurements = '[[1' WHERE id = 7")
    with pytest.raises(StudyError, match="trial 7 of study 'main' is damaged"):
        Study(path).trials()
    study._store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    study._store.connection.close()
    data = bytearray(path.read_bytes())
    rng, found = random.Random(0), 0
    for _ in range(20):
        torn = bytearray(data)
        for _ in range(40):
            torn[rng.randrange(100, len(torn))] = rng.randrange(256)
        path.write_bytes(torn)
        try:
            Study(path).trials()
        except StudyError:
            found += 1
    assert found == 20
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(StudyError, match="damaged|cannot be used"):
        Study(path)


def test_resume_refuses_what_does_not_fit(tmp_path):
    path = tmp_path / "study.db"
    fill(path)
    with pytest.raises(StudyError, match="made for another space"):
        sample([oneof([1, 2]), oneof(["a", "b"])], Random(), 9, study=path)
    with pytest.raises(StudyError, match="has seed 0, not 1"):
        sample(SPACE, Random(), 9, study=path, seed=1)
    with pytest.raises(StudyError, match="has batch None, not 8"):
        sample(SPACE, Random(), 9, study=path, deterministic=True)


def test_a_failed_transaction_leaves_nothing(tmp_path):
    study = fill(tmp_path / "study.db")
    with pytest.raises(KeyError), study.transaction() as db:
        db.execute("DELETE FROM trial")
        raise KeyError
    assert study.finished() == 4
    with pytest.raises(TypeError, match="in memory"):
        import pickle

        pickle.dumps(Study())


def test_listing_does_not_import_torch(tmp_path):
    fill(tmp_path / "study.db")
    code = (
        "import sys; from flambeau.search.study import studies; studies(sys.argv[1]); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "study.db"], check=True)


def test_every_public_name_can_be_had():
    import flambeau.search

    assert all(getattr(flambeau.search, name) is not None for name in flambeau.search.__all__)
    assert flambeau.search.Algorithm in flambeau.search.RegularizedEvolution.__mro__
    with pytest.raises(ImportError, match="Nothing"):
        from flambeau.search import Nothing  # noqa: F401
