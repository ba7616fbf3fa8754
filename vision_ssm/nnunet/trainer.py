"""nnU-Net's trainer for the networks of `vision_ssm.medical`, one class for each: nnUNetTrainerUMambaEnc and so on.

They train as `nnUNetTrainer` does, with any plans file.
"""

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from ..medical import DenseNetwork
from .factory import NETWORKS, network_traits
from .plans import architecture

__all__ = ["TRAINERS", "nnUNetTrainerVisionSSM"]


class nnUNetTrainerVisionSSM(nnUNetTrainer):
    """Trains one network, whatever network the plans name; to be subclassed.

    Attributes:
        network_name: in timm, with or without its ending `_2d` or `_3d`.
    """

    network_name: str

    def __init__(
        self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device | str = "cuda"
    ):
        super().__init__(plans, configuration, fold, dataset_json, torch.device(device))
        manager = self.configuration_manager
        manager.configuration["architecture"] = architecture(self.network_name, manager.configuration)
        traits = network_traits(self.network_name, len(manager.patch_size))
        self.enable_deep_supervision = traits.deep_supervision

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> DenseNetwork:
        """The network for a configuration; nnU-Net calls this for prediction, too, without a trainer."""
        found = architecture(cls.network_name, configuration_manager.configuration)
        return get_network_from_plans(
            found["network_class_name"], found["arch_kwargs"], found["_kw_requires_import"],
            num_input_channels, num_output_channels, deep_supervision=enable_deep_supervision,
        )  # fmt: skip


def _trainer(published: str, network: str) -> type[nnUNetTrainerVisionSSM]:
    name = f"nnUNetTrainer{published}"
    members = {"network_name": network, "__module__": __name__, "__doc__": f"Trains {published} (`{network}`)."}
    return type(name, (nnUNetTrainerVisionSSM,), members)


TRAINERS = {f"nnUNetTrainer{published}": _trainer(published, network) for published, network in NETWORKS.items()}
globals().update(TRAINERS)
