"""One encoder with any number of latents that it was trained with."""

import pytest
import torch

from sf_llava.bootstrap.inherit import resize
from sf_llava.configuration import SparseFormerConfig, preset
from sf_llava.model import SparseFormerModel
from sf_llava.model.rois import initial_rois


@pytest.fixture
def encoder() -> SparseFormerModel:
    torch.manual_seed(0)
    made = SparseFormerModel(preset("sf-mini", num_latents=9, num_latents_range=(4, 16))).eval()
    with torch.no_grad():  # heads that are no longer zero, so that RoIs move and mixing depends on the token
        for parameter in made.focusing.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return made


PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("count", [4, 7, 16])
def test_a_call_names_its_number_of_latents(encoder, count):
    found = encoder(PIXELS, output_hidden_states=-2, num_latents=count)
    built = resize(encoder, count, 64).eval()(PIXELS, output_hidden_states=-2)  # an encoder of that many alone
    assert torch.equal(found.hidden_states[-2], built.hidden_states[-2]) and torch.equal(found.rois, built.rois)
    assert found.rois.shape[2] == count and torch.equal(found.rois[0, 0], initial_rois(count))
    assert encoder(PIXELS).rois.shape[2] == 9 and encoder.config.num_latents == 9


@torch.no_grad()
def test_the_number_of_the_configuration_starts_where_it_was_trained(encoder):
    plain, named = encoder(PIXELS), encoder(PIXELS, num_latents=9)
    assert torch.equal(plain.image_embeds, named.image_embeds)
    assert torch.equal(plain.rois[0, 0], encoder.focusing.initial_rois)


@torch.no_grad()
def test_another_number_is_kept_for_good_and_saved(encoder, tmp_path):
    wanted, before = encoder(PIXELS, num_latents=6).image_embeds, encoder(PIXELS).image_embeds
    other = encoder.with_num_latents(6)
    assert torch.equal(other(PIXELS).image_embeds, wanted) and torch.equal(encoder(PIXELS).image_embeds, before)
    differing = [name for name, weight in other.named_parameters() if weight is not encoder.get_parameter(name)]
    assert differing == ["focusing.initial_rois"] and encoder.with_num_latents(9) is encoder
    other.save_pretrained(tmp_path)
    again = SparseFormerModel.from_pretrained(tmp_path)
    assert (again.config.num_latents, again.config.num_latents_range) == (6, [4, 16])
    assert torch.equal(again(PIXELS).image_embeds, wanted)


def test_a_number_that_was_not_trained_is_one_sentence(encoder):
    with pytest.raises(ValueError, match=r"17 latents: this encoder was trained with 4 to 16$"):
        encoder(PIXELS, num_latents=17)
    with pytest.raises(ValueError, match=r"3 latents: this encoder was trained with 4 to 16$"):
        encoder.with_num_latents(3)
    alone = SparseFormerModel(preset("sf-mini"))
    with pytest.raises(
        ValueError, match="8 latents: this encoder was trained with 16 alone; one that was bootstrapped"
    ):
        alone(PIXELS, num_latents=8)
    for wrong in ((4,), (20, 30), (0, 16), (4, 8.5)):
        with pytest.raises(ValueError, match="num_latents_range must be the lowest and highest"):
            SparseFormerConfig(num_latents=16, num_latents_range=wrong)
