"""Fine-tune a face detector with frozen batch statistics: in eval mode, then in tune mode."""

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from flambeau.data import faces, photos
from flambeau.deployment.rewriting import tune_mode
from flambeau.models.vision import ResNet
from flambeau.nn import freeze_statistics
from flambeau.training import Trainer

crops, scenes = faces().images[:100], photos(crop=64, count=180).images


def batch(step, generator):  # a face in each scene; the target marks the cell of 8x8 pixels that holds its centre
    images, target = scenes[torch.randint(180, (8,), generator=generator)].clone(), torch.zeros(8, 64)
    for image, cells, (y, x, n) in zip(images, target, torch.randint(39, (8, 3), generator=generator).tolist()):
        image[:, y : y + 25, x : x + 25], cells[(y + 12) // 8 * 8 + (x + 12) // 8] = crops[n], 1
    return images, target


for mode in ("eval", "tune"):
    torch.manual_seed(0)
    backbone = ResNet((1, 1, 1), (16, 32, 64), in_channels=1, stem="small")  # load_state_dict: weights of your own
    model = torch.nn.Sequential(*list(backbone.children())[:-2], torch.nn.Conv2d(64, 1, 3, 2, 1), torch.nn.Flatten())
    freeze_statistics(model)
    if mode == "tune":
        print(tune_mode(model).n_pairs, "pairs of a convolution and a normalisation run as one")
    fit = Trainer(steps=40).fit(model, lambda m, b: binary_cross_entropy_with_logits(m(b[0]), b[1]), batch)
    print(f"{mode} mode: loss {fit.history[-1]['loss']:.5f} after {fit.seconds:.1f} s")
