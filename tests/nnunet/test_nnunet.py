"""nnU-Net itself plans, preprocesses, trains and predicts with the networks, by both routes, on a small CPU task."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch

import vision_ssm
from vision_ssm.cli import main
from vision_ssm.nnunet import NETWORKS, TRAINERS_FOLDER

pytest.importorskip("nnunetv2")
nibabel = pytest.importorskip("nibabel")

SIDE = 24
DATASET = "Dataset001_Cube"


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Three volumes with a bright cube, planned and preprocessed by nnU-Net."""
    root = tmp_path_factory.mktemp("nnunet")
    raw, preprocessed, results = (root / name for name in ("raw", "preprocessed", "results"))
    images, labels = raw / DATASET / "imagesTr", raw / DATASET / "labelsTr"
    for folder in (images, labels, preprocessed, results):
        folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for case in range(3):
        label = np.zeros((SIDE,) * 3, np.uint8)
        label[6:16, 8:18, 7:17] = 1
        image = random.normal(size=label.shape).astype(np.float32) + 4 * label
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), images / f"c{case}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), labels / f"c{case}.nii.gz")
    description = dict(
        channel_names={"0": "CT"}, labels=dict(background=0, cube=1), numTraining=3, file_ending=".nii.gz",
        overwrite_image_reader_writer="NibabelIO",
    )  # fmt: skip
    (raw / DATASET / "dataset.json").write_text(json.dumps(description))
    threads = torch.get_num_threads()  # nnU-Net's planner sets another number
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_raw", str(raw))
        patch.setenv("nnUNet_preprocessed", str(preprocessed))
        patch.setenv("nnUNet_results", str(results))
        patch.setenv("nnUNet_n_proc_DA", "1")
        from nnunetv2.experiment_planning import plan_and_preprocess_api as api

        api.extract_fingerprint_dataset(1, num_processes=1, show_progress_bar=False)
        api.plan_experiment_dataset(1)
        api.preprocess_dataset(1, configurations=("3d_fullres",), num_processes=(1,), show_progress_bar=False)
        patch.setenv("nnUNet_n_proc_DA", "0")  # the trainer's batches come from this process
        plans = preprocessed / DATASET / "nnUNetPlans.json"
        yield SimpleNamespace(plans=plans, image=images / "c0_0000.nii.gz", labels=labels, root=root)
    torch.set_num_threads(threads)


def _train(trainer: str, plans: str, epochs: int = 1) -> Path:
    """Epochs of two iterations; the folder of the trained network."""
    from nnunetv2.run.run_training import get_trainer_from_args

    made = get_trainer_from_args("1", "3d_fullres", "all", trainer, plans, device=torch.device("cpu"))
    made.num_epochs, made.num_iterations_per_epoch, made.num_val_iterations_per_epoch = epochs, 2, 1
    made.run_training()
    assert all(np.isfinite(made.logger.get_value("train_losses", step=None)))
    return Path(made.output_folder_base)


def _predict(folder: Path, task, name: str) -> np.ndarray:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), ("all",))
    predictor.predict_from_files_sequential([[str(task.image)]], [str(task.root / name)], save_probabilities=False)
    return np.asarray(nibabel.load(task.root / f"{name}.nii.gz").dataobj)


def test_plans_alone(task, monkeypatch):
    """The stock trainer and predictor find the network by the plans; its checkpoint fits the network outside."""
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    assert main(["nnunet-plans", str(task.plans), "--network", "umamba_enc"]) == 0
    folder = _train("nnUNetTrainer", "nnUNetUMambaEncPlans")
    assert folder.name == "nnUNetTrainer__nnUNetUMambaEncPlans__3d_fullres"
    predicted = _predict(folder, task, "plans")
    assert predicted.shape == (SIDE,) * 3

    checkpoint = folder / "fold_all" / "checkpoint_final.pth"
    plans = {"plans": task.plans, "num_classes": 2}
    model = timm.create_model("umamba_enc_3d", deep_supervision=True, **plans)
    vision_ssm.load_checkpoint(model, checkpoint)
    weights = torch.load(checkpoint, weights_only=False)["network_weights"]
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())

    envelope = dict(  # of weights from elsewhere: what nnU-Net's predictor reads, and no more
        network_weights=model.state_dict(), trainer_name="nnUNetTrainer", init_args=dict(configuration="3d_fullres"),
        inference_allowed_mirroring_axes=(0, 1, 2),
    )  # fmt: skip
    torch.save(envelope, checkpoint)
    assert np.array_equal(_predict(folder, task, "envelope"), predicted)


def test_plans_of_a_network_without_deep_supervision(task):
    """nnU-Net's own trainer without deep supervision trains it; the usual one says what to do."""
    command = ["nnunet-plans", str(task.plans), "--network", "lightm_unet_3d_test"]
    assert main(command) == 0
    with pytest.raises(ValueError, match="-tr nnUNetTrainerNoDeepSupervision"):
        _train("nnUNetTrainer", "nnUNetlightm_unet_3d_testPlans")
    folder = _train("nnUNetTrainerNoDeepSupervision", "nnUNetlightm_unet_3d_testPlans")
    assert _predict(folder, task, "single").shape == (SIDE,) * 3


def test_trainer(task, monkeypatch):
    """A trainer of the package with nnU-Net's plans: it learns the cube."""
    monkeypatch.setenv("nnUNet_extTrainer", str(TRAINERS_FOLDER))
    folder = _train("nnUNetTrainerUMambaBot", "nnUNetPlans", epochs=2)
    assert folder.name == "nnUNetTrainerUMambaBot__nnUNetPlans__3d_fullres"
    found = _predict(folder, task, "trainer") == 1
    cube = np.asarray(nibabel.load(task.labels / "c0.nii.gz").dataobj) == 1
    assert 2 * (found & cube).sum() / (found.sum() + cube.sum()) > 0.5


@pytest.mark.parametrize("published", NETWORKS)
def test_nnunet_finds_a_trainer_for_every_network(published, monkeypatch):
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    monkeypatch.setenv("nnUNet_extTrainer", str(TRAINERS_FOLDER))
    trainer = recursive_find_trainer_class_by_name(f"nnUNetTrainer{published}")
    assert trainer.network_name == NETWORKS[published]


def test_trainers_switch_deep_supervision_off_where_there_is_none(task, monkeypatch):
    from nnunetv2.run.run_training import get_trainer_from_args

    monkeypatch.setenv("nnUNet_extTrainer", str(TRAINERS_FOLDER))
    for name, expected in (("LightMUNet", False), ("LMaUNet", True)):
        trainer = f"nnUNetTrainer{name}"
        made = get_trainer_from_args("1", "3d_fullres", "all", trainer, "nnUNetPlans", device=torch.device("cpu"))
        made.initialize()
        assert made.enable_deep_supervision is expected
        made.set_deep_supervision_enabled(made.enable_deep_supervision)  # as nnU-Net does before it trains
        assert made.network.decoder.deep_supervision is expected
