"""A compiled teacher gives what the teacher gives, without a break in its graph, for every family."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from sf_llava.teachers.compiled import MIN_STEPS, compile_frozen, pays


@pytest.fixture
def pixels(teacher):
    torch._dynamo.reset()
    return torch.randn(2, 3, teacher.image_size, teacher.image_size, generator=torch.Generator().manual_seed(0))


def test_one_graph_and_the_same_embeddings(teacher, pixels):
    counter = CompileCounter()
    compiled = compile_frozen(teacher, torch.zeros_like(pixels), counter)
    with torch.no_grad():
        torch.testing.assert_close(compiled(pixels), teacher(pixels))
    assert counter.frame_count == 1  # compiled once, as one graph, and not again for the second batch


def test_a_teacher_that_cannot_be_compiled_runs_as_it_is(teacher, pixels):
    def broken(graph, inputs):
        raise RuntimeError("no C compiler")

    with pytest.warns(UserWarning, match="no C compiler"):
        assert compile_frozen(teacher, pixels, broken) is teacher


def test_short_runs_float32_and_cpus_stay_uncompiled():
    cuda = torch.device("cuda")
    assert pays(cuda, torch.bfloat16, MIN_STEPS)
    assert not pays(cuda, torch.bfloat16, MIN_STEPS - 1)
    assert not pays(cuda, torch.float32, MIN_STEPS)
    assert not pays(torch.device("cpu"), torch.bfloat16, MIN_STEPS)
