"""The modules of version 0.1 under their old names: each import warns and gives the module of today.

They end with version 0.3.
"""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "benchmark.costs": "benchmark.cost_table",
    "benchmark.report": "report",
    "bootstrap.ablations": "experiments.ablations",
    "bootstrap.alignment": "bootstrap.objectives.tokens",
    "bootstrap.llm_alignment": "bootstrap.objectives.llm",
    "bootstrap.losses": "bootstrap.objectives.embedding",
    "bootstrap.swap_table": "experiments.swap_table",
    "checkpoints": "llava",
    "checkpoints.conversations": "llava.conversations",
    "checkpoints.conversion": "weights.conversion",
    "checkpoints.encoder": "model.loading",
    "checkpoints.llava": "llava.loading",
    "checkpoints.llava_tokens": "llava.original_tokens",
    "checkpoints.llava_towers": "llava.original_towers",
    "checkpoints.model_directory": "weights.model_directory",
    "checkpoints.official": "model.official",
    "checkpoints.tensor_files": "weights.tensor_files",
    "checkpoints.weight_files": "weights.weight_files",
    "costs": "model.costs",
    "data.caption_files": "retrieval.caption_files",
    "data.caption_tables": "retrieval.caption_tables",
    "data.captions": "retrieval.captions",
    "data.picture_columns": "scienceqa.picture_columns",
    "data.predictions": "scienceqa.predictions",
    "data.problem_tables": "scienceqa.problem_tables",
    "data.problems": "scienceqa.problems",
    "data.scienceqa": "scienceqa.data",
    "digests": "weights.digests",
    "evaluation": "measure",
    "evaluation.attention": "teachers.attention",
    "evaluation.baselines": "measure.baselines",
    "evaluation.embeddings": "measure.embeddings",
    "evaluation.encoders": "measure.encoders",
    "evaluation.retrieval": "retrieval.run",
    "evaluation.scienceqa": "scienceqa.run",
    "evaluation.scienceqa_report": "scienceqa.report",
    "evaluation.setup": "measure.setup",
    "evaluation.store": "measure.store",
    "evaluation.task": "zero_shot.task",
    "evaluation.zero_shot": "zero_shot.run",
    "metrics": "measure",
    "metrics.retrieval": "retrieval.scoring",
    "metrics.scienceqa": "scienceqa.scoring",
    "metrics.statistics": "measure.intervals",
    "metrics.zero_shot": "zero_shot.scoring",
    "plugin": "llava",
    "plugin.llava_package": "llava.package.install",
    "plugin.llava_tower": "llava.package.tower",
    "plugin.old_transformers": "llava.package.old_transformers",
    "teachers.class_names": "zero_shot.class_names",
}
"""Old names to new ones, within ``sf_llava``; the modules of ``plugin`` went to ``llava`` under their own names."""


class _Alias(Loader):
    """Gives a module of today; its own specification stays."""

    def __init__(self, name: str):
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.name)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec


class _OldNames(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != "sf_llava":
            return None
        head, _, tail = name.partition(".")
        new = MOVED.get(name) or (f"llava.{tail}" if head == "plugin" else None)
        if new is None:
            return None
        message = f"sf_llava.{name} is sf_llava.{new} now; the old name ends with version 0.3"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return ModuleSpec(fullname, _Alias(f"sf_llava.{new}"))


def register() -> None:
    """Let the old names be imported."""
    sys.meta_path.insert(0, _OldNames())
