"""Models fit every input, keep to layers Opacus knows, and never couple images."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from client.privacy.dpsgd import per_image_gradients
from shared.errors import StudyError
from shared.models import MODELS, build_model, get_weights, initial_weights, set_weights
from shared.models.attention import Attention
from shared.models.front import WAVELET_CHANNELS, contrast_channels, wavelet_channels
from shared.models.layers import StandardisedConv2d
from shared.study import Study, Task

SIZES = (28, 32, 33, 56, 64, 65, 84, 112, 128, 130, 196, 224, 252, 256)


def make_study(model: str, size: int = 28, channels: int = 1, **plan: object) -> Study:
    if model == "attention" and size % 7 and "patch" not in plan:
        plan["patch"] = next(p for p in range(8, size) if size % p == 0)
    values = {
        "name": "t",
        "task": {"classes": ["a", "b", "c"]},
        "input": {"size": size, "channels": channels},
        "model": {"name": model} | plan,
    }
    return Study.model_validate(values)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", sorted(MODELS))
def test_default_models_are_small_and_take_every_size(name: str, size: int) -> None:
    for channels in (1, 3):
        model = build_model(make_study(name, size, channels))
        assert sum(p.numel() for p in model.parameters()) <= 200_000
        assert model(torch.zeros(2, channels, size, size)).shape == (2, 3)


@pytest.mark.parametrize("plan", [{"widths": [8, 12]}, {"widths": [4, 8, 16]}, {"hidden": 0}])
def test_the_cnn_follows_its_plan(plan: dict[str, object]) -> None:
    model = build_model(make_study("cnn", **{"widths": [16, 32, 64]} | plan))
    widths = [m.out_channels for m in model.modules() if isinstance(m, StandardisedConv2d)]
    assert widths == plan.get("widths", [16, 32, 64])
    assert model(torch.zeros(1, 1, 28, 28)).shape == (1, 3)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_opacus_accepts_every_layer_and_knows_its_gradient(name: str) -> None:
    from opacus import GradSampleModule
    from opacus.validators import ModuleValidator

    model = build_model(make_study(name)).train()
    assert ModuleValidator.validate(model, strict=False) == []
    with per_image_gradients(model):
        known = set(GradSampleModule.GRAD_SAMPLERS)
    for module in model.modules():
        if list(module.parameters(recurse=False)):
            assert type(module) in known


@pytest.mark.parametrize("name", sorted(MODELS))
def test_an_images_logits_do_not_depend_on_the_others(name: str) -> None:
    model = stirred(name)
    images = torch.randn(4, 1, 28, 28, dtype=torch.float64)
    together = model(images)
    alone = torch.cat([model(image[None]) for image in images])
    assert torch.allclose(together, alone, rtol=1e-9)
    assert together.std(dim=0).min() > 1e-3, "the logits do not depend on the image"


@pytest.mark.parametrize("size", [28, 56, 224])
def test_contrast_channels_do_not_depend_on_exposure(size: int) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(3, 1, 8, 8, generator=generator, dtype=torch.float64)
    images = functional.interpolate(images, size=size, mode="bicubic") * 2 - 1
    seen = contrast_channels(images)
    assert seen.shape == (3, 2, size, size)
    assert torch.allclose(seen[:, 0].mean(dim=(1, 2)), torch.zeros(3).double(), atol=1e-9)
    assert torch.allclose(seen[:, 0].std(dim=(1, 2)), torch.ones(3).double(), rtol=1e-2)
    assert torch.allclose(contrast_channels(images + 0.3), seen, atol=1e-9)
    duller = contrast_channels(0.7 * images)
    assert (duller[:, 0] - seen[:, 0]).abs().max() < 0.02
    assert torch.corrcoef(torch.stack([duller[:, 1].flatten(), seen[:, 1].flatten()]))[0, 1] > 0.99
    brighter_left = images + torch.linspace(0.5, 0, size).double()
    change = (contrast_channels(brighter_left) - seen).square().mean(dim=(0, 2, 3))
    assert change[1] < 0.1 * change[0], "a slow change of brightness shows in the local contrast"


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (33, 3), (64, 1)])
def test_wavelet_channels_are_the_modulus_of_morlet_wavelets(size: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(2, channels, 8, 8, generator=generator, dtype=torch.float64)
    images = functional.interpolate(images, size=size, mode="bicubic") * 2 - 1
    seen = wavelet_channels(images)
    assert seen.shape == (2, WAVELET_CHANNELS * channels, size // 2, size // 2)
    contrast = contrast_channels(images)[1, 2 * channels - 1].numpy()  # the last channel's
    for octave, radius in ((0, 3), (1, 5)):
        r = np.arange(-radius, radius + 1)
        for direction in (0, 3, 6):
            # The same function of the plane in the complex form of Bruna and Mallat (2013).
            wavelet = morlet(r[None, :], r[:, None], 0.8 * 2**octave, np.pi * direction / 8)
            strength = [
                abs((contrast[y + r[:, None], x + r] * wavelet).sum())
                for y in range(11, 15)
                for x in range(13, 17)
            ]
            band = (2 + 8 * octave) * channels + 8 * (channels - 1) + direction
            expected = (np.mean(strength) - 0.1) / 0.06
            assert seen[1, band, 6, 7].item() == pytest.approx(expected, abs=1e-5)


def test_wavelet_channels_tell_directions_and_widths_apart_and_not_exposure() -> None:
    at = torch.arange(64.0)
    upright = torch.sin(2 * torch.pi * at / 3).expand(64, 64)
    waves = torch.stack([upright, upright.T, torch.sin(2 * torch.pi * at / 6).expand(64, 64)])
    strength = wavelet_channels(0.5 * waves[:, None])[:, 2:].mean(dim=(2, 3))
    assert strength.argmax(dim=1).tolist() == [0, 4, 8]
    changed = wavelet_channels(0.3 * waves[:, None] + 0.2)[:, 2:].mean(dim=(2, 3))
    assert torch.allclose(changed, strength, rtol=0.15, atol=0.15)


def test_the_cnn_sees_a_large_image_averaged_down() -> None:
    large = torch.randn(2, 1, 128, 128, generator=torch.Generator().manual_seed(3))
    model = build_model(make_study("cnn", 128))
    torch.nn.init.normal_(model.get_parameter("head.weight"))
    small = build_model(make_study("cnn", 64))
    set_weights(small, get_weights(model))
    assert torch.allclose(model(large), small(functional.avg_pool2d(large, 2)), atol=1e-5)


def test_filters_are_standardised() -> None:
    layer = StandardisedConv2d(3, 8, 5).double()
    weight, _ = layer.standardised()
    assert torch.allclose(weight.mean(dim=(1, 2, 3)), torch.zeros(8).double(), atol=1e-12)
    assert torch.allclose(weight.flatten(1).norm(dim=1), torch.ones(8).double(), rtol=1e-3)
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    before = layer(x)
    with torch.no_grad():
        layer.weight.mul_(1000).add_(5)
    assert torch.allclose(layer(x), before, rtol=1e-2, atol=1e-3)


def test_the_attention_map_is_the_attention_used() -> None:
    model = stirred("attention", patch=7, width=48, depth=2, heads=4)
    assert isinstance(model, Attention)
    images = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    maps = model.attention_map(images)
    assert maps.shape == (2, 2, 4, 16, 16)
    assert torch.allclose(maps.sum(dim=-1), torch.ones(()).double())
    assert maps.std() > 1e-3
    layer = model.blocks[0].attention
    tokens = torch.randn(2, 16, 48, dtype=torch.float64)
    value = layer.query_key_value(tokens)[..., 96:].view(2, 16, 4, 12).transpose(1, 2)
    mixed = (layer.map(tokens) @ value).transpose(1, 2).flatten(2)
    assert torch.allclose(layer(tokens), layer.out(mixed), rtol=1e-9)


def test_too_many_patches_are_refused_with_the_smallest_that_will_do() -> None:
    with pytest.raises(StudyError, match=r"model.patch.*at least 8"):
        build_model(make_study("attention", 256, patch=4))


def test_attention_knows_where_a_patch_is() -> None:
    model = stirred("attention")
    images = torch.randn(1, 1, 28, 28, dtype=torch.float64)
    swapped = images.roll(7, dims=3)
    assert not torch.allclose(model(images), model(swapped), rtol=1e-3)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_initial_weights_follow_from_what_defines_the_model_alone(name: str) -> None:
    study = make_study(name)
    state = torch.random.get_rng_state()
    first = initial_weights(study)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(123)
    again = initial_weights(study)
    named = initial_weights(study.model_copy(update={"name": "another"}))
    other = initial_weights(study.model_copy(update={"task": Task(classes=("a", "b", "z"))}))
    assert first.keys() == again.keys() == dict(build_model(study).named_parameters()).keys()
    assert all(a.dtype == np.float32 and np.array_equal(a, again[n]) for n, a in first.items())
    assert all(np.array_equal(a, named[n]) for n, a in first.items())
    differs = any(not np.array_equal(a, other[n]) for n, a in first.items())
    assert differs == (name != "linear")  # whose only layer is the head, which starts at zero
    assert all(np.isfinite(a).all() for a in first.values())
    assert not first["head.weight"].any()


def test_weights_go_out_and_in_unchanged_and_are_copies() -> None:
    study = make_study("cnn")
    source = stirred("cnn").float()
    weights = get_weights(source)
    target = build_model(study)
    set_weights(target, weights)
    for array in weights.values():
        array += 1
    assert all(
        torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True)
    )


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_weights_of_another_model_are_refused_whole(fault: str) -> None:
    model = build_model(make_study("cnn"))
    before = get_weights(model)
    weights = {name: array + 1 for name, array in before.items()}
    if fault == "missing":
        del weights["head.bias"]
    elif fault == "unknown":
        weights["extra"] = np.zeros(3, np.float32)
    else:
        weights["head.bias"] = np.zeros((3, 1), np.float32)
    with pytest.raises(StudyError, match="extra" if fault == "unknown" else "head.bias"):
        set_weights(model, weights)
    assert all(np.array_equal(a, before[n]) for n, a in get_weights(model).items())


def morlet(
    x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], sigma: float, angle: float
) -> np.ndarray[Any, Any]:
    """A wave of 0.6 pi / sigma radians a pixel along `angle`, under a Gaussian."""
    turned = (x + 1j * y) * np.exp(-1j * angle)
    hill = np.exp(-(turned.real**2 + turned.imag**2 / 4) / 2 / sigma**2) / (4 * np.pi * sigma**2)
    wave = np.exp(0.6j * np.pi / sigma * turned.real)
    return hill * (wave - (hill * wave).sum() / hill.sum())


def stirred(name: str, **plan: object) -> torch.nn.Module:
    """A model in float64 whose last layer is no longer zero."""
    model = build_model(make_study(name, **plan)).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model


def test_the_linear_model_weighs_the_wavelets_of_each_place() -> None:
    model = build_model(make_study("linear", grid=2)).double()
    weights = torch.randn(
        3, WAVELET_CHANNELS * 4, generator=torch.Generator().manual_seed(1)
    ).double()
    with torch.no_grad():
        model.get_parameter("head.weight").copy_(weights)
    images = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(2)).double() * 2 - 1
    seen = wavelet_channels(images)
    quarters = seen.unflatten(3, (2, 7)).unflatten(2, (2, 7)).mean(dim=(3, 5)).flatten(1)
    expected = quarters @ weights.T / (WAVELET_CHANNELS * 4) ** 0.5 + model.get_parameter(
        "head.bias"
    )
    assert torch.allclose(model(images), expected, rtol=1e-9)
    assert torch.equal(model(seen), model(images))


def test_the_linear_model_has_a_tenth_of_the_cnns_parameters() -> None:
    linear, cnn = (
        sum(p.numel() for p in build_model(make_study(name)).parameters())
        for name in ("linear", "cnn")
    )
    assert 10 * linear < 1.2 * cnn
