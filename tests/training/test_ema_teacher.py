import math

import pytest
import torch
from torch import nn

from flambeau.training.ema_teacher import EMATeacher


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_parameters_and_statistics_follow_the_closed_form():
    student = network()
    teacher = EMATeacher(student, 0.9)
    first = {name: value.clone() for name, value in teacher.module.state_dict().items()}
    with torch.no_grad():
        for value in student.state_dict().values():
            value.copy_(torch.randn_like(value) if value.is_floating_point() else torch.tensor(7))
    for _ in range(5):
        teacher.update(student)
    for name, value in teacher.module.state_dict().items():
        if value.is_floating_point():
            expected = 0.9**5 * first[name] + (1 - 0.9**5) * student.state_dict()[name]
            torch.testing.assert_close(value, expected)
        else:
            assert value == 7


def test_momentum_rises_along_a_cosine():
    student = nn.Linear(1, 1, bias=False)
    teacher = EMATeacher(student, 0.5, final=1.0, total=10)
    weight = student.weight.item()
    with torch.no_grad():
        student.weight.fill_(0.0)
    for step in range(12):
        weight *= 1 - 0.5 * (math.cos(math.pi * min(step / 10, 1)) + 1) / 2
        teacher.update(student)
        assert teacher.module.weight.item() == pytest.approx(weight, rel=1e-5)


def test_the_teacher_takes_no_gradient_and_shares_nothing():
    student = network()
    teacher = EMATeacher(student)
    x = torch.randn(6, 3, requires_grad=True)
    assert not teacher(x).requires_grad
    assert not any(p.requires_grad for p in teacher.parameters())
    with torch.no_grad():
        student[0].weight.add_(1.0)
    assert not torch.equal(student[0].weight, teacher.module[0].weight)


def test_its_state_is_part_of_a_checkpoint():
    student = network()
    teacher, other = EMATeacher(student, 0.5, total=4), EMATeacher(network(), 0.5, total=4)
    teacher.update(network())
    other.load_state_dict(teacher.state_dict())
    assert other.updates == 1
    new = network()
    teacher.update(new)
    other.update(new)
    assert all(torch.equal(a, b) for a, b in zip(teacher.state_dict().values(), other.state_dict().values()))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="momentum must lie in"):
        EMATeacher(network(), 1.5)
    with pytest.raises(ValueError, match="total"):
        EMATeacher(network(), total=0)
    with pytest.raises(ValueError, match="the student differs in"):
        EMATeacher(network()).update(nn.Linear(3, 4))
