"""A plan as nnU-Net writes it, made small."""


def _architecture(dims: int, stages: int) -> dict:
    return dict(
        network_class_name="dynamic_network_architectures.architectures.unet.PlainConvUNet",
        arch_kwargs=dict(
            n_stages=stages,
            features_per_stage=[min(8 * 2**i, 20) for i in range(stages)],
            conv_op=f"torch.nn.modules.conv.Conv{dims}d",
            kernel_sizes=[[3] * dims] * stages,
            strides=[[1] * dims] + [[2] * dims] * (stages - 1),
            n_conv_per_stage=[2] * stages,
            n_conv_per_stage_decoder=[2] * (stages - 1),
            conv_bias=True,
            norm_op=f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
            norm_op_kwargs={"eps": 1e-05, "affine": True},
            dropout_op=None,
            dropout_op_kwargs=None,
            nonlin="torch.nn.LeakyReLU",
            nonlin_kwargs={"inplace": True},
        ),
        _kw_requires_import=["conv_op", "norm_op", "dropout_op", "nonlin"],
    )


def configuration(dims: int, side: int, stages: int = 3) -> dict:
    """One configuration: cubes (squares) of `side`, each stage after the first halving them."""
    return dict(
        data_identifier=f"nnUNetPlans_{dims}d", batch_size=2, patch_size=[side] * dims,
        architecture=_architecture(dims, stages),
    )  # fmt: skip


def flat(dims: int, side: int, stages: int = 3) -> dict:
    """The same as nnU-Net up to 2.2 wrote it."""
    return dict(
        data_identifier=f"nnUNetPlans_{dims}d", batch_size=2, patch_size=[side] * dims, UNet_class_name="PlainConvUNet",
        UNet_base_num_features=8, unet_max_num_features=20, n_conv_per_stage_encoder=[2] * stages,
        n_conv_per_stage_decoder=[2] * (stages - 1), num_pool_per_axis=[stages - 1] * dims,
        pool_op_kernel_sizes=[[1] * dims] + [[2] * dims] * (stages - 1), conv_kernel_sizes=[[3] * dims] * stages,
    )  # fmt: skip


def plans() -> dict:
    """Plans with images, volumes and a cascade."""
    return dict(
        dataset_name="Dataset001_Ball",
        plans_name="nnUNetPlans",
        configurations={
            "2d": configuration(2, 32),
            "3d_lowres": configuration(3, 16) | {"next_stage": "3d_cascade_fullres"},
            "3d_fullres": configuration(3, 24),
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
    )
