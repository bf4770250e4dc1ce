"""Validation during training: cosine to the teacher on held-out images, zero-shot accuracy where classes are known."""

import io
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sf_llava.data import ImageSource
from sf_llava.data.bootstrap_images import BootstrapImages
from sf_llava.data.transforms import BootstrapTransform, Preprocessing, resize_pixels
from sf_llava.measure.tuned import TunedTeacher
from sf_llava.teachers.base import Teacher
from sf_llava.visualize import focus_sheet, pictures_from_pixels
from sf_llava.zero_shot.task import ZeroShotTask

BATCH_SIZE = 64
NUM_DRAWN = 4


class ValidationImages(Dataset):
    """Evenly spaced images of a source, (S, S, 3) uint8, each with its class (-1 where unknown).

    An unreadable image is replaced by the next readable one, with that one's class.
    """

    def __init__(self, source: ImageSource, preprocessing: Preprocessing, count: int, labels: list[int] | None) -> None:
        count = min(count, len(source))
        self.images = BootstrapImages(source, BootstrapTransform(preprocessing, flip=0.0, scale=None), seed=0)
        self.indices = [i * len(source) // count for i in range(count)]
        self.labels = labels

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        item = self.images[0, self.indices[index]]
        return item["pixels"], -1 if self.labels is None else self.labels[item["index"]]


@dataclass
class Validator:
    """Runs teacher and student over the validation images.

    Attributes:
        accelerator: places batches and gathers results over processes.
        images: what to validate on, at the larger of both input sizes.
        teacher: the teacher.
        student_size: the student's input side in pixels.
        task: the zero-shot classifier, where classes are known; classification teachers bring their own.
        targets: the teacher's embeddings of every batch, from the first validation on.
    """

    accelerator: Accelerator
    images: ValidationImages
    teacher: Teacher
    student_size: int
    task: ZeroShotTask | None
    targets: list[Tensor] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.loader = self.accelerator.prepare(DataLoader(self.images, BATCH_SIZE))

    @torch.no_grad()
    def __call__(self, student: nn.Module) -> dict[str, float]:
        """Return ``val_cosine`` and, where classes are known, ``val_top1`` and ``val_teacher_top1`` (fractions)."""
        student.eval()
        cosines: list[Tensor] = []
        correct: list[Tensor] = []
        teacher_correct: list[Tensor] = []
        for number, (pixels, labels) in enumerate(self.loader):
            pixel_values = self.images.images.normalise(pixels)
            output = student(resize_pixels(pixel_values, self.student_size))
            if number == len(self.targets):
                self.targets.append(self.teacher(resize_pixels(pixel_values, self.teacher.image_size)))
            target = self.targets[number].float()
            cosine = F.cosine_similarity(output.image_embeds.float(), target, dim=-1)
            hits = self._hits(output.image_embeds.float(), labels)
            teacher_hits = self._hits(target, labels)
            for store, values in ((cosines, cosine), (correct, hits), (teacher_correct, teacher_hits)):
                store.append(self.accelerator.gather_for_metrics(values))
        student.train()
        scores = {"val_cosine": torch.cat(cosines).mean().item()}
        if self.task is not None:
            scores["val_top1"] = torch.cat(correct).mean().item()
            scores["val_teacher_top1"] = torch.cat(teacher_correct).mean().item()
        return scores

    @torch.no_grad()
    def draw(self, student: nn.Module) -> bytes | None:
        """Draw where the student looks on the first validation images, as a PNG file; None where it has no RoIs."""
        if isinstance(self.accelerator.unwrap_model(student), TunedTeacher):
            return None
        pixel_values = self.images.images.pixel_values(self.images.indices[:NUM_DRAWN])
        pixel_values = resize_pixels(pixel_values.to(self.accelerator.device), self.student_size)
        student.eval()
        output = student(pixel_values, output_sampling_points=True)
        student.train()
        preprocessing = self.teacher.preprocessing
        pictures = pictures_from_pixels(pixel_values, preprocessing.mean, preprocessing.std)
        buffer = io.BytesIO()
        focus_sheet(pictures, output.rois, output.sampling_points).save(buffer, "PNG")
        return buffer.getvalue()

    def class_logits(self, embeds: Tensor) -> Tensor:
        """Turn (B, E) embeddings into (B, K) logits: by the teacher's classifier, or hundredfold cosines as in CLIP."""
        if self.teacher.num_classes:
            head = self.teacher.head_state_dict()
            return F.linear(embeds, head["classifier.weight"].float(), head["classifier.bias"].float())
        if self.task is None or self.task.classifier is None:
            raise ValueError("class logits need validation images whose classes are known")
        return 100 * F.normalize(embeds, dim=-1) @ self.task.classifier.to(embeds.device).T

    def _hits(self, embeds: Tensor, labels: Tensor) -> Tensor:
        if self.task is None:
            return torch.zeros(len(labels), device=embeds.device)
        return (self.class_logits(embeds).argmax(-1) == labels).float()
