"""Pytest plugin that runs timm's own, unmodified `tests/test_models.py` on the models of this package.

timm parametrises its tests with `list_models(...)` when the module is imported. Before that, this plugin lets the two
listing functions answer with this package's names only. Of what is then collected it keeps the tests of these models,
and makes sure that none goes missing: each model must meet exactly the tests of `expected`, and none may be skipped
but those in `ALLOWED_SKIPS`.
"""

import fnmatch
from collections import Counter
from collections.abc import Iterable

import pytest
import timm
import torch
from timm.models import get_arch_name, get_arch_pretrained_cfgs

import vision_ssm

# Sequence models: like timm's vision transformers they have token sequences for features, and are tested as such.
SEQUENCE_MODELS = ["vim*", "local_vim*"]

EVERY_MODEL = {
    "test_model_forward",
    "test_model_backward",
    "test_model_forward_torchscript",
    "test_model_forward_intermediates",
    "test_model_forward_intermediates_features",
    "test_prune_intermediate_layers_contract",
    "test_model_forward_fx",
    "test_model_backward_fx",
    "test_model_forward_fx_torchscript",
}
STAGED_ONLY = {"test_model_default_cfgs", "test_model_forward_features"}
SEQUENCE_ONLY = {"test_model_default_cfgs_non_std"}
FOR_EACH_TAG = {"test_model_default_cfgs", "test_model_default_cfgs_non_std"}
NEED_NETWORK = {"test_model_load_pretrained", "test_model_features_pretrained", "test_model_inference"}

# {(test, pattern of model names): why timm may skip it}. timm skips models of a fixed size above a test's limit.
ALLOWED_SKIPS: dict[tuple[str, str], str] = {}

Case = tuple[str, str]  # test function, model name with its tag where the test takes tags


def expected(models: Iterable[str]) -> Counter[Case]:
    """The exact tests that each model must meet."""
    cases: Counter[Case] = Counter()
    for model in models:
        sequence = any(fnmatch.fnmatch(model, pattern) for pattern in SEQUENCE_MODELS)
        for test in EVERY_MODEL | (SEQUENCE_ONLY if sequence else STAGED_ONLY):
            names = list(get_arch_pretrained_cfgs(model)) if test in FOR_EACH_TAG else [model]
            cases.update((test, name) for name in names)
    return cases


def _filters(filters: str | Iterable[str]) -> list[str]:
    """Filters as a list; timm's list of models that are tested as sequence models also gets ours."""
    listed = [filters] if isinstance(filters, str) else list(filters)
    return [f for f in listed if f] + (SEQUENCE_MODELS if "vit_*" in listed else [])


class Suite:
    """One run of the suite on chosen models."""

    def __init__(self, models: list[str]):
        self.models = models
        self.skipped: list[str] = []

    def list_models(self, filter="", module="", pretrained=False, exclude_filters="", **kwargs) -> list[str]:
        """As `timm.list_models`. Modules are ignored: timm passes those whose models have intermediate features."""
        names = timm.models.list_models(
            _filters(filter), pretrained=pretrained, exclude_filters=_filters(exclude_filters), **kwargs
        )
        return [name for name in names if get_arch_name(name) in self.models]

    def list_pretrained(self, filter="", exclude_filters="") -> list[str]:
        """As `timm.list_pretrained`."""
        return self.list_models(filter, pretrained=True, exclude_filters=exclude_filters, include_tags=True)

    def _case(self, item: pytest.Item) -> Case | None:
        """Test and model of an item; None for tests of timm's own models and those that need the network."""
        name = item.callspec.params.get("model_name") if hasattr(item, "callspec") else None
        if not isinstance(name, str) or get_arch_name(name) not in self.models or item.originalname in NEED_NETWORK:
            return None
        return item.originalname, name

    @pytest.hookimpl(tryfirst=True)  # before -k and -m leave out what was asked for
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        cases = {item: self._case(item) for item in items}
        config.hook.pytest_deselected(items=[item for item in items if cases[item] is None])
        items[:] = [item for item in items if cases[item] is not None]
        found, wanted = Counter(cases[item] for item in items), expected(self.models)
        if found != wanted:
            lines = [f"  not collected: {test}[{name}]" for test, name in sorted((wanted - found).elements())]
            lines += [f"  not expected: {test}[{name}]" for test, name in sorted((found - wanted).elements())]
            raise pytest.UsageError("\n".join(["timm's tests are not those that the plugin expects:", *lines]))

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        torch.manual_seed(0)  # timm leaves weights and inputs to chance

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test, _, rest = report.nodeid.rpartition("::")[2].partition("[")
        allowed = any(test == t and fnmatch.fnmatch(rest, f"*{pattern}*") for t, pattern in ALLOWED_SKIPS)
        if report.skipped and not allowed:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
            self.skipped.append(f"{report.nodeid}: {reason}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.skipped and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.skipped:
            terminalreporter.section("skipped, but not in ALLOWED_SKIPS", red=True)
            terminalreporter.write_line("\n".join(self.skipped))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--vision-ssm-models", default="*_test", help="shell pattern of the models to test")


def pytest_configure(config: pytest.Config) -> None:
    pattern = config.getoption("--vision-ssm-models")
    models = vision_ssm.models.model_names(pattern)
    if not models:
        raise pytest.UsageError(f"no model matches {pattern!r}")
    suite = Suite(models)
    patch = pytest.MonkeyPatch()
    patch.setattr(timm, "list_models", suite.list_models)
    patch.setattr(timm, "list_pretrained", suite.list_pretrained)
    patch.delenv("GITHUB_ACTIONS", raising=False)  # there timm leaves out tests, for want of memory
    config.add_cleanup(patch.undo)
    config.pluginmanager.register(suite, "vision_ssm_suite")
    shards = ("base", "forward", "backward", "cfg", "cfg_nonstd", "torchscript", "features", "fxforward", "fxbackward")
    for marker in shards:
        config.addinivalue_line("markers", f"{marker}: shard of timm's tests")
    if not config.pluginmanager.hasplugin("timeout"):
        config.addinivalue_line("markers", "timeout(seconds): limit of a test, kept where pytest-timeout is installed")
