"""Telling a model of the classes that its data has."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

__all__ = ["ClassesHook"]


@HOOKS.register_module()
class ClassesHook(Hook):
    """Calls `expect_classes` of models that have it with the names of each data set's classes, before the first step.

    The configs name the classes of the data and the outputs of the network apart; the model compares them.
    """

    def before_run(self, runner) -> None:
        """Tell the model."""
        expect = getattr(runner._bare_model(), "expect_classes", None)
        if expect is None:
            return
        for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
            dataset = getattr(getattr(loop, "dataloader", None), "dataset", None)
            if classes := (getattr(dataset, "metainfo", None) or {}).get("classes"):
                expect(tuple(classes))
