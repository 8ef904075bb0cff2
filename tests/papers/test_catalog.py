import importlib

import pytest

from flambeau.papers import catalog, describe, find, load

RUNNING = [key for key, paper in catalog().items() if paper.runs]


def test_the_catalog_is_complete():
    papers = catalog()
    assert len(papers) == 74
    assert {"pyglove", "flashrnn", "autoformer", "sjd", "prototype_reasoning"} <= set(RUNNING)
    for paper in papers.values():
        assert paper.title and paper.authors and 1990 < paper.year < 2030 and paper.family, paper.key
        assert not paper.code or paper.code.startswith("https://"), paper.key
    assert len({paper.title for paper in papers.values()}) == 74


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(ValueError, match="autoformer"):
        find("autofromer")
    with pytest.raises(ValueError, match="sjd"):
        find("jacobi")
    waiting = next(key for key, paper in catalog().items() if not paper.runs)
    with pytest.raises(ValueError, match="sjd"):
        load(waiting)


@pytest.mark.parametrize("key", RUNNING)
def test_the_description_from_source_is_what_the_module_declares(key):
    experiment, description = load(key), describe(key)
    assert experiment.key == key
    assert tuple(description.claims) == experiment.claims
    assert {n: set(p) for n, p in description.presets.items()} == {n: set(p) for n, p in experiment.presets.items()}
    assert {"smoke", "paper"} <= set(experiment.presets)
    assert description.summary and description.documentation
    for name, _, default in description.parameters:
        assert name in description.documentation, f"{key}: the parameter {name} is not documented"
        assert default
    assert any(claim.target for claim in experiment.claims)
    assert importlib.import_module(f"flambeau.papers.{key}").__doc__


@pytest.mark.parametrize("key", RUNNING)
def test_every_preset_is_a_tree_that_can_be_saved(key):
    from flambeau.symbolic import digest, from_json, to_json

    for preset in ["cpu", *load(key).presets]:
        tree = load(key).tree(preset)
        assert digest(from_json(to_json(tree))) == digest(tree)
