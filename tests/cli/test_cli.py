"""The command line: every command, and every way to get it wrong."""

import json
import subprocess
import sys
import urllib.error

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

import vision_ssm
from vision_ssm.cli import main

CLASSES = 3


@pytest.fixture
def no_rich(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model("vim_test", num_classes=CLASSES).eval()


@pytest.fixture
def checkpoint(model, tmp_path):
    path = tmp_path / "vim_test.pth"
    torch.save({"model": model.state_dict(), "epoch": 7}, path)
    return path


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "[red].png"  # brackets would be markup in a table
    Image.new("RGB", (70, 50), (200, 30, 30)).save(path)
    return path


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "data"
    for i, name in enumerate(("ant", "bee", "cow")):
        folder = root / "val" / name
        folder.mkdir(parents=True)
        for k in range(2):
            Image.new("RGB", (64, 64), (100 * i, 90 * k, 200 - 60 * i)).save(folder / f"{k}.png")
    return root


def _of(weights) -> tuple:
    return ("--model", "vim_test", "--num-classes", CLASSES, "--checkpoint", weights)


# The program


def test_help_of_every_command(capsys):
    for argv in ([], ["list"], ["info"], ["predict"], ["convert"], ["evaluate"]):
        with pytest.raises(SystemExit) as stop:
            main([*argv, "--help"])
        assert stop.value.code == 0
        assert "example: vision-ssm " in capsys.readouterr().out


def test_wrong_arguments(fails):
    assert "COMMAND" in fails()
    assert "invalid choice: 'paint'" in fails("paint")
    assert "--model" in fails("predict", "image.png")
    assert "from 1, got '0'" in fails("predict", "image.png", "--model", "vim_test", "--top-k", "0")
    assert "not allowed with" in fails("predict", "x", "--model", "vim_test", "--pretrained", "--checkpoint", "y")


def test_interrupted(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("vision_ssm.cli.info.run", interrupted)
    assert main(["info", "vim_test"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_module_without_rich():
    code = (
        "import runpy, sys; sys.argv[1:] = ['list', 'vim_test', '--json']\n"
        "try: runpy.run_module('vision_ssm', run_name='__main__')\n"
        "except SystemExit as stop: sys.exit(stop.code or ('rich' in sys.modules and 'rich was imported'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["name"] == "vim_test"


@pytest.mark.usefixtures("no_rich")
def test_rich_is_missing(fails, prints, image, data):
    hint = 'this command needs rich: pip install "vision-ssm[cli]"'
    assert fails("list") == hint
    assert fails("info", "vim_test") == hint
    assert fails("predict", image, "--model", "vim_test") == hint
    assert fails("evaluate", "--data", data, "--model", "vim_test") == hint
    json.loads(prints("info", "vim_test", "--json"))


# list, info


def test_list(prints):
    table = prints("list")
    assert all(name in table for name in vision_ssm.model_names())
    row = next(line for line in table.splitlines() if line.startswith("vmamba_tiny_s1l8 "))
    assert row.split() == ["vmamba_tiny_s1l8", "30.2", "4.9", "82.6", "MIT", "yes"]
    row = next(line for line in table.splitlines() if line.startswith("vim_test "))
    assert row.split() == ["vim_test", "0.1", "-", "-", "-", "no"]
    lines = table.splitlines()
    for title in ("classification 2D", "segmentation 2D", "segmentation 3D", "landmarks 3D", "video segmentation"):
        assert lines.count(title) == 1
    assert lines.index("segmentation 3D") < next(i for i, line in enumerate(lines) if line.startswith("segmamba "))


def test_list_json(prints):
    entries = {entry["name"]: entry for entry in json.loads(prints("list", "vim_*", "--json"))}
    assert list(entries) == vision_ssm.model_names("vim_*")
    assert entries["vim_test"]["params"] == sum(p.numel() for p in timm.create_model("vim_test").parameters())
    assert entries["vim_tiny_patch16_224"] == {
        "name": "vim_tiny_patch16_224",
        "task": "classification 2D",
        "params": 7148008,
        "gflops": 1.819,
        "top1": 76.1,
        "license": "Apache-2.0",
        "weights": True,
    }


def test_list_without_match(fails):
    assert "did you mean" in fails("list", "VMamba_tset*")
    assert "vision-ssm list" in fails("list", "[")


def test_info(prints):
    text = prints("info", "local_vim_small")
    assert "https://arxiv.org/abs/2403.09338" in text
    assert "no file is known" in text
    assert "The reference links the file of local_vmamba_small by mistake" in text
    assert "directions='h h- w2 w2-'" in text
    assert "blocks.0 to blocks.19" in text


@pytest.mark.parametrize("name", ["vim_tiny_patch16_stride8_224", "vmamba_test", "local_vmamba_tiny"])
def test_info_json(prints, name):
    about = json.loads(prints("info", name, "--json"))
    model = timm.create_model(name, device="meta")
    assert about["params"] == sum(p.numel() for p in model.parameters())
    assert [(f["channels"], f["reduction"]) for f in about["features"]] == [
        (f["num_chs"], f["reduction"]) for f in model.feature_info
    ]
    assert about["input_size"] == [3, 224, 224]
    assert bool(about["paper_url"]) == (name != "vmamba_test")


def test_info_arguments_build_the_model(prints):
    arguments = json.loads(prints("info", "vim_tiny_patch16_stride8_224", "--json"))["arguments"]
    assert arguments["stride"] == 8
    rebuilt = timm.create_model("vim_tiny_patch16_224", device="meta", **arguments)
    assert rebuilt.grid_size == (27, 27)


def test_unknown_model(fails, image, checkpoint, data, tmp_path):
    wrong = ("--model", "vmamba_tset")
    for argv in (
        ("info", "vmamba_tset"),
        ("predict", image, *wrong),
        ("convert", checkpoint, *wrong, "-o", tmp_path / "out.safetensors"),
        ("evaluate", "--data", data, *wrong),
    ):
        message = fails(*argv)
        assert message.startswith("unknown model 'vmamba_tset': did you mean ")
        assert "vmamba_test" in message


# predict


def test_predict_is_the_model(prints, model, checkpoint, image):
    (result,) = json.loads(prints("predict", image, *_of(checkpoint), "--json"))
    assert result["image"] == str(image)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.inference_mode():
        expected = model(transform(Image.open(image))[None]).softmax(-1)[0]
    predictions = result["predictions"]
    assert [p["index"] for p in predictions] == expected.argsort(descending=True).tolist()  # 5 of 3 classes are 3
    assert [p["probability"] for p in predictions] == pytest.approx(expected.sort(descending=True).values.tolist())
    assert {p["label"] for p in predictions} == {None}


def test_predict_table(prints, checkpoint, image, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("[bold]ant\n:bee:\ncow\n", encoding="utf-8")
    text = prints("predict", image, image, *_of(checkpoint), "--labels", labels)
    assert text.count(str(image)) == 2
    assert "[bold]ant" in text and ":bee:" in text


def test_predict_without_weights(capsys, image):
    assert main(["predict", str(image), "--model", "vim_test", "--top-k", "1000", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "weights are random" in err
    (result,) = json.loads(out)
    assert len(result["predictions"]) == 1000
    assert "tench, Tinca tinca" in {p["label"] for p in result["predictions"]}


def test_predict_reads_16_bits_as_8(prints, checkpoint, tmp_path):
    grey = np.random.default_rng(0).integers(0, 120, (40, 40), np.uint8)
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    eight, sixteen = json.loads(prints("predict", tmp_path / "8.png", tmp_path / "16.png", *_of(checkpoint), "--json"))
    assert eight["predictions"] == sixteen["predictions"]


def test_predict_bad_images(fails, checkpoint, image, tmp_path):
    assert fails("predict", tmp_path / "no.png", *_of(checkpoint)) == f"no image at {tmp_path / 'no.png'}"
    broken = tmp_path / "broken.png"
    broken.write_bytes(image.read_bytes()[:60])
    noise = tmp_path / "noise.jpg"
    noise.write_bytes(bytes(range(200)))
    for path in (broken, noise):
        assert f"{path} cannot be read: " in fails("predict", image, path, *_of(checkpoint))


def test_predict_bad_labels(fails, checkpoint, image, tmp_path):
    labels = tmp_path / "labels.txt"
    arguments = ("predict", image, *_of(checkpoint), "--labels", labels)
    assert fails(*arguments) == f"no labels at {labels}"
    labels.write_text("ant\nbee\n", encoding="utf-8")
    assert fails(*arguments).endswith("has 2 labels, the model 3 classes")
    labels.write_bytes(b"\xff\xfe\xff")
    assert "cannot be read as names of classes" in fails(*arguments)


def test_no_published_weights(fails, image):
    message = fails("predict", image, "--model", "vim_test", "--pretrained")
    assert message == "no published weights are known for vim_test"


def test_no_network(fails, image, monkeypatch):
    def create_model(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("vision_ssm.cli.inputs.timm.create_model", create_model)
    message = fails("predict", image, "--model", "vim_tiny_patch16_224", "--pretrained")
    assert message.startswith("no weights from https://") and "no route" in message


# convert


def test_convert_round_trip(prints, model, checkpoint, image, tmp_path):
    out = tmp_path / "out.safetensors"
    prints("convert", checkpoint, "--model", "vim_test", "--num-classes", CLASSES, "-o", out)
    tensors = safetensors.torch.load_file(out)
    assert tensors.keys() == model.state_dict().keys()
    assert all(torch.equal(tensors[name], value) for name, value in model.state_dict().items())
    before, after = (prints("predict", image, *_of(weights), "--json") for weights in (checkpoint, out))
    assert before == after
    assert {path.name for path in tmp_path.iterdir()} == {checkpoint.name, image.name, out.name}


def test_convert_overwrites_only_with_force(fails, prints, checkpoint, tmp_path):
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"precious")
    arguments = ("convert", checkpoint, "--model", "vim_test", "--num-classes", CLASSES, "-o", out)
    assert "--force" in fails(*arguments)
    assert out.read_bytes() == b"precious"
    prints(*arguments, "--force")
    assert safetensors.torch.load_file(out)


def test_full_disk_leaves_the_old_file(fails, checkpoint, tmp_path, monkeypatch):
    def replace(*args):
        raise OSError(28, "No space left on device")

    out = tmp_path / "out.safetensors"
    out.write_bytes(b"precious")
    monkeypatch.setattr("os.replace", replace)
    message = fails("convert", checkpoint, "--model", "vim_test", "--num-classes", CLASSES, "-o", out, "--force")
    assert message == f"{out} cannot be written: No space left on device"
    assert out.read_bytes() == b"precious"
    assert {path.name for path in tmp_path.iterdir()} == {checkpoint.name, out.name}


def test_convert_bad_files(fails, checkpoint, tmp_path):
    def convert(source, out="out.safetensors"):
        return fails("convert", source, "--model", "vim_test", "-o", tmp_path / out)

    text = tmp_path / "notes.pth"
    text.write_text("no tensors here")
    assert convert(tmp_path / "no.pth") == f"no checkpoint at {tmp_path / 'no.pth'}"
    assert "cannot be read as a checkpoint" in convert(text)
    assert "does not end in .safetensors" in convert(checkpoint, "out.pth")
    assert "no folder" in convert(checkpoint, "nowhere/out.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    assert "is a folder" in convert(checkpoint, "folder.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_checkpoint_of_another_model(fails, tmp_path):
    other = tmp_path / "other.pth"
    torch.save(timm.create_model("vmamba_test").state_dict(), other)
    message = fails("convert", other, "--model", "vim_test", "-o", tmp_path / "out.safetensors")
    assert "missing: " in message and "blocks.0.norm.weight" in message
    assert message.endswith("it fits vmamba_test")
    assert not (tmp_path / "out.safetensors").exists()


# evaluate


@pytest.fixture
def best_at_bee(checkpoint):
    """The checkpoint, but its classifier always answers with class 1, then 0, then 2."""
    content = torch.load(checkpoint)
    content["model"]["head.weight"].zero_()
    content["model"]["head.bias"].copy_(torch.tensor([1.0, 2.0, 0.0]))
    torch.save(content, checkpoint)
    return checkpoint


def test_evaluate(prints, best_at_bee, data, tmp_path):
    out = tmp_path / "result.json"
    text = prints("evaluate", "--data", data, *_of(best_at_bee), "--batch-size", 4, "--workers", 1, "-o", out)
    assert "33.333 %" in text and "Top-3" in text
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["model"] == "vim_test" and result["checkpoint"] == str(best_at_bee)
    assert result["top1"] == pytest.approx(100 / 3) and result["top5"] == 100
    assert result["images"] == 6 and result["img_size"] == [64, 64] and result["seconds"] > 0
    assert result["versions"]["torch"] == torch.__version__


def test_evaluate_says_which_class_is_which(capsys, best_at_bee, data, tmp_path):
    (data / "val" / "ant" / "9.heif").write_bytes(b"")
    out, order = tmp_path / "result.json", tmp_path / "order.json"
    arguments = ("evaluate", "--data", data, *_of(best_at_bee), "--workers", 0, "-o", out)
    assert main([*map(str, arguments)]) == 0
    printed = capsys.readouterr()
    assert "0 ant, 1 bee, 2 cow" in printed.out
    assert "1 files are left out, whose suffixes are none of images (1 .heif)" in printed.err
    assert json.loads(out.read_text(encoding="utf-8"))["classes"] == dict(ant=0, bee=1, cow=2)
    order.write_text(json.dumps(dict(bee=0, ant=1, cow=2)), encoding="utf-8")
    assert main([*map(str, arguments), "--class-map", str(order)]) == 0
    assert json.loads(out.read_text(encoding="utf-8"))["classes"] == dict(ant=1, bee=0, cow=2)
    assert main([*map(str, arguments), "--class-map", str(tmp_path / "none.txt")]) == 2
    assert "no class map at" in capsys.readouterr().err


def test_evaluate_options(prints, best_at_bee, data, tmp_path):
    out = tmp_path / "result.json"
    arguments = ("evaluate", "--data", data / "val", *_of(best_at_bee), "--workers", 0, "--device", "cpu", "-o", out)
    prints(*arguments, "--img-size", 96, "--amp", "bf16", "--limit", 3)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["img_size"] == [96, 96] and result["amp"] == "bf16"
    assert result["images"] == 3 and result["top1"] == pytest.approx(100 / 3)  # one of each class


def test_evaluate_subset_of_imagenet(prints, data, tmp_path):
    checkpoint, out = tmp_path / "imagenet.pth", tmp_path / "result.json"
    state_dict = timm.create_model("vim_test").state_dict()
    state_dict["head.weight"].zero_()
    state_dict["head.bias"].copy_(torch.arange(1000) == 7)
    torch.save(state_dict, checkpoint)
    synsets = timm.data.ImageNetInfo().label_names()
    for name, index in (("ant", 7), ("bee", 500), ("cow", 999)):
        (data / "val" / name).rename(data / "val" / synsets[index])
    arguments = ("--model", "vim_test", "--checkpoint", checkpoint, "--workers", 0, "-o", out)
    prints("evaluate", "--data", data, *arguments)
    assert json.loads(out.read_text(encoding="utf-8"))["top1"] == pytest.approx(100 / 3)


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluate_unreadable_image(fails, checkpoint, data, workers):
    broken = data / "val" / "bee" / "1.png"
    broken.write_bytes(b"no image")
    message = fails("evaluate", "--data", data, *_of(checkpoint), "--workers", workers)
    assert message == f"{broken} cannot be read: it is of no format that Pillow knows, or damaged"


def test_evaluate_bad_data(fails, checkpoint, data, image, tmp_path):
    def evaluate(folder, *more):
        return fails("evaluate", "--data", folder, *_of(checkpoint), *more)

    assert evaluate(tmp_path / "no") == f"no folder {tmp_path / 'no'}"
    assert "no split 'test'" in evaluate(data, "--split", "test")
    (tmp_path / "empty").mkdir()
    assert "no images" in evaluate(tmp_path / "empty")
    (tmp_path / "empty" / "train").mkdir()
    assert "give --split" in evaluate(tmp_path / "empty")
    assert "folders of 3 classes, the model 1000" in fails("evaluate", "--data", data, "--model", "vim_test")
    image.rename(data / "val" / image.name)
    assert "outside of sub-folders" in evaluate(data)


def test_evaluate_bad_options(fails, checkpoint, data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def evaluate(*options):
        return fails("evaluate", "--data", data, *_of(checkpoint), *options)

    assert "no CUDA device" in evaluate("--device", "cuda")
    assert "invalid choice: 'int8'" in evaluate("--amp", "int8")
    assert "from 0" in evaluate("--workers", -1)
    assert "at least 8 pixels" in evaluate("--img-size", 4)
    assert "no folder" in evaluate("-o", tmp_path / "nowhere" / "result.json")
    staged = ("--model", "vmamba_test", "--num-classes", CLASSES)
    assert "at least 32" in fails("evaluate", "--data", data, *staged, "--img-size", 16)


def test_networks_for_medical_images(prints, fails, image):
    """They are listed and described; pictures are classified by those that can."""
    about = json.loads(prints("info", "umamba_enc_3d", "--json"))
    assert about["input_size"] == [1, 48, 160, 224] and about["features"] == []
    assert json.loads(prints("list", "segmamba*", "--json"))[0]["name"] == "segmamba"
    message = fails("predict", image, "--model", "segmamba_test")
    assert message == "segmamba_test is for medical images: `vision-ssm train` and `test` take a config of it"
    assert json.loads(prints("predict", image, "--model", "medmamba_test", "--json"))
