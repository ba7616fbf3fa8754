"""The networks compute what the published implementations compute, with weights in the published names.

Beside the numerics this holds the architecture and the checkpoint conversion: every name and shape of an official file
must find its place, or be known to have no effect on the output.
"""

from collections.abc import Iterator

import parity
import pytest
import timm
import torch

import vision_ssm


def _plan(entry: dict) -> dict:
    """The arguments of a network that follows an nnU-Net plan, from the reference's."""
    given = entry["constructor"]["kwargs"]
    arguments = dict(
        features=given["features_per_stage"],
        kernels=given["kernel_sizes"],
        strides=given["strides"],
        in_chans=given["input_channels"],
        num_classes=given["num_classes"],
        deep_supervision=given["deep_supervision"],
    )
    return arguments | ({"input_size": given["input_size"]} if "input_size" in given else {})


def _light(entry: dict) -> dict:
    """The arguments of LightM-UNet from the reference's."""
    given = entry["constructor"]["kwargs"]
    names = {"in_channels": "in_chans", "out_channels": "num_classes", "init_filters": "features"}
    return {ours: given[theirs] for theirs, ours in names.items()}


# Golden file: model, and its arguments or what makes them from the file.
MODELS = {
    "umamba_bot_2d_small": ("umamba_bot_2d", _plan),
    "umamba_bot_2d_abdomenmr": ("umamba_bot_2d", _plan),
    "umamba_enc_2d_small": ("umamba_enc_2d", _plan),
    "umamba_enc_2d_abdomenmr": ("umamba_enc_2d", dict(deep_supervision=True)),
    "umamba_bot_3d_small": ("umamba_bot_3d", _plan),
    "umamba_bot_3d_abdomenmr": ("umamba_bot_3d", dict(deep_supervision=True)),
    "umamba_enc_3d_small": ("umamba_enc_3d", _plan),
    "umamba_enc_3d_small_anis": ("umamba_enc_3d", _plan),
    "umamba_enc_3d_abdomenmr_patch16x64x96": ("umamba_enc_3d", _plan),
    "umamba_v1_bot_3d_small": ("umamba_v1_bot_3d", _plan),
    "umamba_v1_enc_2d_small": ("umamba_v1_enc_2d", _plan),
    "lmaunet_2d_small": ("lma_unet_2d", _plan),
    "lmaunet_2d": ("lma_unet_2d", _plan),
    "lmaunet_3d_small": ("lma_unet_3d", _plan),
    "segmamba_default": ("segmamba", {}),
    "segmamba_brats": ("segmamba", dict(in_chans=4, num_classes=4)),
    "vmunet_isic": ("vm_unet", dict(activation=True)),
    "vmunet_synapse": ("vm_unet", dict(num_classes=9)),
    "vmunet_synapse_zerod": ("vm_unet", dict(num_classes=9)),
    "vmunet_v2": ("vm_unet_v2", dict(activation=True)),
    "vmunet_v2_logits": ("vm_unet_v2", {}),
    "mambaunet_tiny": ("mamba_unet", {}),
    "mambaunet_tiny_zerod": ("mamba_unet", {}),
    "mambaunet_semi_unet": ("unet_semi", {}),
    "mambaunet_weak_swinunet": ("swin_unet_weak", {}),
    "medmamba_t": ("medmamba_tiny", {}),
    "medmamba_t_zerod": ("medmamba_tiny", {}),
    "swinumamba_swinumamba": ("swin_umamba", dict(deep_supervision=True)),
    "swinumamba_sizes": ("swin_umamba", dict(deep_supervision=True)),
    "swinumamba_d": ("swin_umamba_d", dict(deep_supervision=True)),
    "swinumamba_d_small": (
        "swin_umamba_d",
        dict(deep_supervision=True, depths=(1, 1, 2, 1), dim=16, num_classes=4),
    ),
    "nnmamba_seg": ("nnmamba_seg", {}),
    "nnmamba_nnunet": ("nnmamba_nnunet", dict(deep_supervision=True)),
    "nnmamba_cls": ("nnmamba_cls", {}),
    "nnmamba_land": ("nnmamba_landmark", {}),
    "lightmunet_2d": ("lightm_unet_2d", _light),
    "lightmunet_3d": ("lightm_unet_3d", _light),
    "lightmunet_3d_small": ("lightm_unet_3d", _light),
    "vivim_segformer_b3": ("vivim", {}),
    "vivim_segformer_b3_edge": ("vivim", dict(edge=True)),
    "mamband_3d_small_btcv": ("mamba_nd_small_btcv", dict(input_size=64)),
}


def _outputs(entry: dict, shape: list[int]) -> dict[str, dict]:
    """The expected outputs for one input, by name."""
    start = "x".join(map(str, shape)) + ":"
    return {key.removeprefix(start): value for key, value in entry["outputs"].items() if key.startswith(start)}


# Golden file: modules whose outputs it holds, under the reference's names of them.
MODULES = {
    "vmunet_v2_logits": {f"Translayer_{i + 1}": f"decoder.gates.{i}" for i in range(4)}
    | {f"sdi_{i + 1}": f"decoder.products.{i}" for i in range(4)},
}


def _state_dict(entry: dict) -> dict[str, torch.Tensor]:
    """The reference's, with the counters of its batch norms, which are no floating-point entries."""
    state = {key: torch.from_numpy(value) for key, value in parity.make_state_dict(entry).items()}
    norms = [key.removesuffix("running_mean") for key in state if key.endswith(".running_mean")]
    return state | {f"{norm}num_batches_tracked": torch.tensor(0) for norm in norms}


def _recorded(model: torch.nn.Module, modules: dict[str, str]) -> dict[str, torch.Tensor]:
    """A dictionary that the outputs of the named modules are written to."""
    found = {}
    for name, module in modules.items():
        model.get_submodule(module).register_forward_hook(lambda *call, name=name: found.update({name: call[-1]}))
    return found


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Some of the networks amplify rounding so much that even the order of sums shows."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("one_thread")
def test_golden(name):
    entry, (model_name, arguments) = parity.load(name), MODELS[name]
    model = timm.create_model(model_name, **(arguments(entry) if callable(arguments) else arguments)).eval()
    vision_ssm.load_checkpoint(model, _state_dict(entry))
    recorded = _recorded(model, MODULES.get(name, {}))
    for shape in entry["inputs"]:
        with torch.inference_mode():
            y = model(torch.from_numpy(parity.make_input(shape)))
        for output, expected in _outputs(entry, shape).items():
            part = output.removeprefix("out.")
            found = recorded[part] if part in recorded else y[int(part)] if isinstance(y, (list, tuple)) else y
            if model_name == "vivim":  # the reference merges the frames into the batch
                found = found.flatten(0, 1)
            error = parity.compare(found.numpy(), expected)
            assert error <= entry["tolerance"], f"{output} of {shape} is off by {error:.1e}"
