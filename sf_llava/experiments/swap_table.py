"""What a swap costs the mini LLaVA: students bootstrapped and continued under several losses, asked the same questions.

Every student's run and every set of answers has a directory of its own, so a killed series continues.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from sf_llava import files
from sf_llava.bootstrap.align import asks_llm, parse_alignment, reads_llava
from sf_llava.bootstrap.config import BootstrapConfig
from sf_llava.bootstrap.run import bootstrap
from sf_llava.llava.towers import Tower, tower_in_place
from sf_llava.measure.store import digest_weights
from sf_llava.scienceqa import scoring
from sf_llava.scienceqa.data import ScienceQA, open_scienceqa
from sf_llava.scienceqa.run import Answerer, Generation, answer_all

MAX_NEW_TOKENS = 64  # the mini LLaVA's answers have about twenty


@dataclass(frozen=True)
class Student:
    """One student of the table.

    Attributes:
        num_latents: N.
        seed: of its bootstrap.
        align: ``align`` of the bootstrap; ``none`` for the paper's loss alone.
        continued: the same of the ScienceQA continuation; None for none.
    """

    num_latents: int
    seed: int
    align: str = "none"
    continued: str | None = None

    @property
    def key(self) -> str:
        """Name of its run directory."""
        stages = (align.replace("=", "") for align in (self.align, self.continued) if align is not None)
        return f"{self.num_latents}-seed{self.seed}-{'-then-'.join(stages)}"


@dataclass(frozen=True)
class SwapSeries:
    """What all rows of the table have in common.

    Attributes:
        common: numbers that every bootstrap shares (device, dtype, threads).
        pictures: of every bootstrap, in steps of its recipe's batch; None for the recipes' own, which are equally many.
        continued_steps: of the continuation; None for the recipe's, which has more where a LLM is asked.
        output: directory of all runs and answers.
        llava: name of the LLaVA, which alignment with its LLM loads.
        model: the LLaVA, with its own tower; its weights are never changed.
        processor: its processor.
        questions: how many questions of a split are drawn; half of them have an image, and those are asked.
        batch_size: questions generated together.
    """

    common: BootstrapConfig
    pictures: int | None
    continued_steps: int | None
    output: Path
    llava: str
    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    questions: int
    batch_size: int = 64

    def train(self, student: Student) -> Path:
        """Bootstrap a student (and what it continues), or find it done; return its run directory."""
        for stage in self.stages(student):
            bootstrap(stage)
        return Path(stage.run.output)

    def stages(self, student: Student) -> list[BootstrapConfig]:
        """The runs that make a student, in order."""
        first = replace(student, continued=None)
        config = self.common.but(num_latents=student.num_latents, seed=student.seed, resume=True)
        stage = config.but(stage="mini", output=self._run(first), **self._aligned(student.align))
        if self.pictures is not None:
            stage = stage.but(steps=max(1, self.pictures // stage.optimiser.batch_size))
        stages = [stage]
        if student.continued is not None:
            asked = dict(stage="scienceqa", steps=self.continued_steps, **self._aligned(student.continued))
            stages.append(config.but(init_from=self._run(first), output=self._run(student), **asked))
        return stages

    def _aligned(self, align: str) -> dict[str, Any]:
        return {"align": align} | ({"llava": self.llava} if reads_llava(parse_alignment(align)) else {})

    def budget(self, student: Student) -> dict[str, float]:
        """Sum up ``pictures`` (those of questions too), and ``seconds`` of training as measured, over its stages."""
        sums = {"pictures": 0.0, "seconds": 0.0}
        for stage in self.stages(student):
            asked = stage.optimiser.llm_batch_size if asks_llm(stage.objective.align) else 0
            sums["pictures"] += (stage.optimiser.steps or 0) * (stage.optimiser.batch_size + asked)
            sums["seconds"] += self._results(stage)["seconds"]
        return sums

    def _results(self, stage: BootstrapConfig) -> dict[str, Any]:
        return files.read_json_object(Path(stage.run.output) / "results.json")

    def _run(self, student: Student) -> str:
        return str(self.output / "students" / student.key)

    def ask(
        self, student: Student | Tower, split: str = "test", placed: bool = False, control: str | None = None
    ) -> dict[str, Any]:
        """Score a tower on the image questions of a split, or read what an earlier call measured.

        Args:
            student: a student, or a tower without an encoder.
            split: ``validation`` or ``test``.
            placed: with positions and bias.
            control: ``blind``, ``shuffled``, ``grey`` or None.

        Returns:
            What :func:`sf_llava.scienceqa.scoring.score` returns, and the settings.

        Raises:
            ValueError: ``output`` holds answers of other settings or another LLaVA.
        """
        key = student.key if isinstance(student, Student) else student.where
        name = "-".join(filter(None, (key, "placed" if placed else None, control)))
        folder = self.output / f"answers-{split}" / name
        settings = {
            "tower": key,
            "split": split,
            "placed": placed,
            "drawn": self.questions,
            "llava": self._weights,
        }
        if isinstance(student, Student):
            settings["stages"] = [
                f"{stage.optimiser.steps} steps, align {stage.objective.align_text}" for stage in self.stages(student)
            ]
        if (folder / "score.json").exists():
            known = files.read_json_object(folder / "score.json")
            if known.get("settings") != settings:
                raise ValueError(f"{folder} holds answers of other settings: name another `output`, or remove it")
            return known
        data = self._open(split)
        tower = self.train(student) if isinstance(student, Student) else student
        with (
            tower_in_place(self.model, self.processor, tower) as num_patches,
            tqdm(desc=name, total=len(data.problems), unit="question", mininterval=2, leave=False) as bar,
        ):
            generation = Generation(max_new_tokens=MAX_NEW_TOKENS)
            texts = answer_all(
                Answerer(self.model, self.processor, generation, num_patches if placed else None),
                data,
                folder,
                settings,
                control=control,
                batch_size=self.batch_size,
                progress=lambda problem, text: bar.update(),
            )
        result = scoring.score(data.problems, texts) | {"settings": settings}
        files.write_json(folder / "score.json", result)
        return result

    def compare_alignments(self, candidates: Sequence[str], num_latents: int, seed: int) -> list[dict[str, Any]]:
        """Compare candidates for ``align``, of equal pictures, on the validation split; the best one comes first.

        Returns:
            For each ``align``; ``plain`` and ``placed``, its accuracy on image questions as its tokens come and with
            positions and bias (the best one has the highest mean of both); ``zero_shot``, its top-1 accuracy on
            the run's validation images; and what :meth:`budget` says.
        """
        rows: list[dict[str, Any]] = []
        for align in candidates:
            student = Student(num_latents, seed, align)
            plain, placed = (self.ask(student, "validation", placed=placed) for placed in (False, True))
            found = {"plain": plain["image_accuracy"], "placed": placed["image_accuracy"]}
            found["zero_shot"] = self._results(self.stages(student)[0])["val_top1"]
            rows.append({"align": align, **found, **self.budget(student)})
        return sorted(rows, key=lambda row: -(row["plain"] + row["placed"]))

    @cached_property
    def _weights(self) -> str:
        return digest_weights(self.model)  # first asked for while its own tower is in place

    def _open(self, split: str) -> ScienceQA:
        data = open_scienceqa(f"mini:{self.questions}", split)
        return replace(data, problems=[problem for problem in data.problems if problem.has_image])
