import pytest
import torch
from torch import nn

from flambeau.nn.projector import projector


def test_layers_follow_the_widths():
    head = projector((6, 10, 10, 4), activation=nn.GELU)
    kinds = [type(layer).__name__ for layer in head]
    assert kinds == ["Linear", "BatchNorm1d", "GELU", "Linear", "BatchNorm1d", "GELU", "Linear"]
    assert head[0].bias is None and head[-1].bias is not None
    assert head(torch.randn(5, 6)).shape == (5, 4)
    assert [type(layer).__name__ for layer in projector((6, 4))] == ["Linear"]
    assert all(layer.bias is not None for layer in projector((6, 8, 4), norm=False) if isinstance(layer, nn.Linear))


def test_the_last_norm_has_no_scale_and_no_shift():
    head = projector((6, 8, 4), norm=False, final_norm=True)
    assert list(head[-1].parameters()) == []
    y = head(3 + 5 * torch.randn(64, 6))
    torch.testing.assert_close(y.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(0, unbiased=False), torch.ones(4), atol=1e-2, rtol=0)


def test_bad_widths_are_named():
    with pytest.raises(ValueError, match=r"widths must be at least two positive numbers, got \(6,\)"):
        projector((6,))
