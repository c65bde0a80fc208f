"""Parts of pipelines are read from folders."""

import pytest

from generator import ParamNormalizer, RecurrentDiffusionTransformer, WeightReader


@pytest.mark.parametrize("kind", [ParamNormalizer, RecurrentDiffusionTransformer, WeightReader])
def test_a_missing_folder_is_no_model_of_the_hub_with_this_name(kind):
    with pytest.raises(FileNotFoundError, match=rf"no {kind.__name__} in some/model: .*config\.json is missing"):
        kind.from_pretrained("some/model")
