"""The reconstruction grid and the curves are pictures of what they were given."""

import pytest
import torch

from flambeau.data.images.image_set import to_image_tensor
from flambeau.experiment.representation.figures import loss_curves, reconstruction_grid


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_grid_is_written_as_a_picture(tmp_path, channels):
    clean = torch.rand(5, channels, 8, 12)
    mask = torch.zeros(5, 1, 8, 12, dtype=torch.bool)
    mask[:, :, :4] = True
    figure = reconstruction_grid(clean, torch.where(mask, 0, clean), clean, mask)
    assert len(figure.axes) == 4
    shown = [torch.from_numpy(axis.images[0].get_array().filled()) for axis in figure.axes]
    assert torch.equal(shown[0], shown[2]) and not torch.equal(shown[0], shown[1])
    assert shown[3][:4, :12].min() == 1 and shown[3][4:, :12].max() == 0
    figure.savefig(tmp_path / "grid.png")
    from PIL import Image

    assert to_image_tensor(Image.open(tmp_path / "grid.png").convert("RGB")).std() > 0.05


def test_values_are_scaled():
    clean = torch.full((2, 1, 4, 4), -1.0)
    clean[1] = 1.0
    figure = reconstruction_grid(clean, clean, clean, torch.ones(2, 1, 4, 4, dtype=torch.bool), low=-1, high=1)
    shown = figure.axes[0].images[0].get_array()
    assert shown[0, 0] == 0 and shown[0, 5] == 1


def test_bad_grids():
    x, mask = torch.rand(2, 1, 4, 4), torch.ones(2, 1, 4, 4, dtype=torch.bool)
    for arguments, message in (
        ((x, x, x[:1], mask), "of one shape"),
        ((x, x, x, mask[:, :, :2]), "mask must be"),
        ((x, x, x, mask, 1.0, 1.0), "low must lie below high"),
    ):
        with pytest.raises(ValueError, match=message):
            reconstruction_grid(*arguments)


def test_curves_show_the_losses_alone():
    history = [{"step": n, "loss": 1 / n, "rec": 2 / n, "lr": 0.1, "grad_norm": 3.0} for n in range(1, 30)]
    figure = loss_curves({"one": history, "two": history[:3]})
    assert [line.get_label() for line in figure.axes[0].lines] == ["loss", "rec"]
    assert figure.axes[0].lines[0].get_ydata()[0] == pytest.approx(sum(1 / n for n in range(1, 11)) / 10)
