"""Trainers for nnU-Net, which searches the files of the folder that `nnUNet_extTrainer` names."""

from vision_ssm.nnunet.trainer import TRAINERS

globals().update(TRAINERS)
