import pytest
import torch

from flambeau.data.recall import Recall


def test_every_question_has_its_answer_far_before_it():
    task = Recall(pairs=8, distractors=10, values=5)
    tokens, answers = task.sample(6, torch.Generator().manual_seed(0))
    assert tokens.shape == (6, 26, 2) and answers.shape == (6, 8) and task.length == 26
    for row in range(6):
        value_of = dict(tokens[row, :8].tolist())
        assert sorted(value_of) == list(range(8)) == sorted(tokens[row, 18:, 0].tolist())
        assert [value_of[key] for key in tokens[row, 18:, 0].tolist()] == answers[row].tolist()
    assert (tokens[:, 8:18, 0] >= 8).all() and (tokens[:, 18:, 1] == 5).all() and answers.max() < 5


def test_the_generator_decides():
    first, second = (Recall().sample(2, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize(("name", "value"), [("pairs", 0), ("distractors", -1), ("values", 1)])
def test_bad_sizes(name, value):
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        Recall(**{name: value})
