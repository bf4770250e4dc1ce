"""The loss of a tuning is the model's own, of fewer logits."""

import pytest
import torch
from torch.testing import assert_close
from tuning_fixtures import picture

from sf_llava import load_llava
from sf_llava.tuning.conversations import Conversation
from sf_llava.tuning.encoding import Encoder
from sf_llava.tuning.loss import IGNORED, answers_alone, loss_of_answers

TURNS = [("What is red ?", "The circle ."), ("What is here ?", "A square .", "And red ?", "The circle ."), ("?", "2")]


@pytest.fixture(scope="module")
def mini():
    model, processor = load_llava("mini")
    rows = [Encoder(processor).encode(Conversation("entry", turns, lambda: picture(0))) for turns in TURNS]
    return model.train(), Encoder(processor), rows


def gradient(model, loss):
    weight = model.model.multi_modal_projector.linear_1.weight
    return torch.autograd.grad(loss, weight)[0]


def test_it_is_the_models_own_with_its_gradient_from_a_part_of_the_logits(mini):
    model, encoder, rows = mini
    whole, batch = encoder.collate(rows), answers_alone(encoder.collate)(rows)
    labels, kept = batch.pop("labels"), batch["logits_to_keep"]
    first = int((labels != IGNORED).any(dim=0).int().argmax())
    assert kept == labels.shape[1] - first + 1 < labels.shape[1] / 2  # the token before predicts the first
    outputs = model(**batch)
    assert outputs.logits.shape[1] == kept
    own = model(**whole).loss
    loss = loss_of_answers(outputs, labels)
    assert_close(loss, own, rtol=1e-6, atol=0)
    assert_close(gradient(model, loss), gradient(model, own), rtol=1e-4, atol=1e-7)


def test_parts_of_a_batch_sum_up_to_its_loss(mini):
    model, encoder, rows = mini

    def ask(some, count=None):
        batch = answers_alone(encoder.collate)(some)
        labels = batch.pop("labels")
        return loss_of_answers(model(**batch), labels, count)

    count = sum(int((row["labels"] != IGNORED).sum()) for row in rows)
    assert_close(ask(rows[:2], count) + ask(rows[2:], torch.tensor(count)), ask(rows), rtol=1e-5, atol=0)


def test_a_batch_in_which_nothing_is_said_asks_for_one_token():
    batch = answers_alone(lambda rows: {"labels": torch.full((2, 7), IGNORED)})([])
    assert batch["logits_to_keep"] == 1
