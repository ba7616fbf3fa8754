"""Models on a GPU: against the published implementations' stored outputs, and against the plain backend on the CPU."""

import functools

import pytest
import torch

parity = pytest.importorskip("parity")
timm = pytest.importorskip("timm")

import vision_ssm  # noqa: E402
from vision_ssm.ops import use_backend  # noqa: E402

MODELS = {
    "vim_tiny": "vim_tiny_patch16_224",
    "vmamba_tiny_s1l8": "vmamba_tiny_s1l8",
    "vmamba_tiny_s1l8_zerod": "vmamba_tiny_s1l8",
    "localmamba_local_vssm_tiny": "local_vmamba_tiny",
    "localmamba_local_vssm_tiny_zerod": "local_vmamba_tiny",
}
SMALL = {"vim_test": 16, "vmamba_test": 32, "local_vmamba_test": 32}


@functools.lru_cache(maxsize=1)
def _loaded(name: str) -> tuple[torch.nn.Module, dict]:
    entry = parity.load(name)
    state_dict = {key: torch.from_numpy(value) for key, value in parity.make_state_dict(entry).items()}
    model = vision_ssm.load_checkpoint(timm.create_model(MODELS[name]), {"model": state_dict})
    return model.eval(), entry


@pytest.mark.parametrize("name", MODELS)
def test_golden(name, cuda):
    """What the published implementation computes on a CPU in float32; a GPU's roundings are others."""
    model, entry = _loaded(name)
    model.to(cuda)
    for shape in entry["inputs"]:
        with torch.inference_mode():
            y = model(torch.from_numpy(parity.make_input(shape)).to(cuda))
        error = parity.compare(y.cpu().numpy(), entry["outputs"]["x".join(map(str, shape)) + ":out"])
        assert error <= 10 * entry["tolerance"], f"{shape} is off by {error:.1e}"


@pytest.mark.parametrize("name", ["vim_tiny_patch16_224", "vmamba_tiny_s1l8", "local_vmamba_tiny"])
def test_output_on_the_cpu(name, cuda):
    """Random weights, as they are initialised, at the size that they are made for."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        with use_backend("chunked"):
            expected = model(x)
        y = model.to(cuda)(x.to(cuda)).cpu()
        low = model.to(torch.bfloat16)(x.to(cuda, torch.bfloat16)).float().cpu()
    assert ((y - expected).norm() / expected.norm()).item() <= 1e-4
    assert ((low - expected).norm() / expected.norm()).item() <= 0.03


def _step(model: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    y = model(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.device)
    (y.float() * weights).sum().backward()
    return dict(y=y.detach()) | {name: p.grad.clone() for name, p in model.named_parameters()}


def _compare(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Norms of differences; a gradient may be zero, as that of A is for a single token."""
    for key, value in expected.items():
        error, scale = (ours[key].cpu() - value.cpu()).norm().item(), value.norm().item()
        assert error <= 1e-3 * scale, f"{key} is off by {error:.1e} of {scale:.1e}"


@pytest.mark.parametrize("name", SMALL)
def test_gradients_on_the_cpu(name, sized, device):
    if name == sized("", "local_vmamba_test"):
        pytest.skip("it takes the interpreter minutes")
    torch.manual_seed(0)
    model = timm.create_model(name, **(dict(img_size=SMALL[name]) if name == "vim_test" else {})).eval()
    x = torch.randn(sized(4, 1), 3, SMALL[name], SMALL[name])
    with use_backend("chunked"):
        expected = _step(model, x)
    ours = _step(model.to(device), x.to(device))
    _compare(ours, expected)


@pytest.mark.parametrize("name", SMALL)
def test_two_runs_are_bitwise_equal(name, cuda):
    model = timm.create_model(name).to(cuda).eval()
    x = torch.randn(2, 3, 64, 64, device=cuda)
    with torch.inference_mode(), torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("name", ["vim_test", "vmamba_test"])
def test_compiled_training(name, cuda):
    torch.manual_seed(0)
    model = timm.create_model(name).to(cuda).eval()
    x = torch.randn(2, 3, 64, 64, device=cuda)
    expected = _step(model, x)
    torch._dynamo.reset()
    ours = _step(torch.compile(model, fullgraph=True), x)
    _compare({key.removeprefix("_orig_mod."): value for key, value in ours.items()}, expected)


def test_training_under_autocast_learns(cuda):
    """Ten steps in float16 with a scaler, all finite; the loss goes down."""
    torch.manual_seed(0)
    model = timm.create_model("vmamba_test", num_classes=10).to(cuda)
    x, target = torch.randn(16, 3, 64, 64, device=cuda), torch.arange(16, device=cuda) % 10
    optimizer, scaler, losses = torch.optim.AdamW(model.parameters(), 1e-3), torch.amp.GradScaler("cuda"), []
    for _ in range(10):
        with torch.autocast("cuda", torch.float16):
            loss = torch.nn.functional.cross_entropy(model(x), target)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert all(value == value for value in losses) and losses[-1] < losses[0]
