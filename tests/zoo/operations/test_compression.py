import statistics

import pytest
import torch
from safetensors.torch import save_file

from zoo.networks.architectures import CNN
from zoo.networks.layout import ParamLayout
from zoo.operations.compression import compress, load_compressed, relative_error, save_compressed


@pytest.fixture
def vector():
    return torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_it_is_the_published_algorithm(vector):
    """Algorithm 1 of arXiv 2311.13171, number by number."""
    values = vector.tolist()
    largest = sorted(range(50), key=lambda p: -abs(values[p]))[:10]
    scale = 2.0 * statistics.pstdev(values)
    expected = [scale * ((values[p] > 0) - (values[p] < 0)) if p in largest else 0.0 for p in range(50)]
    torch.testing.assert_close(
        compress(vector, density=0.2, alpha=2.0).dense(), torch.tensor(expected, dtype=torch.float64)
    )


def test_without_alpha_no_other_magnitude_loses_less(vector):
    best = compress(vector, density=0.2)
    for factor in (0.9, 1.1):
        other = best._replace(magnitude=factor * best.magnitude)
        assert relative_error(vector, best.dense()) < relative_error(vector, other.dense())
    assert best.magnitude.item() == pytest.approx(vector.abs().topk(10).values.mean().item())


def test_what_is_ternary_already_is_kept():
    vector = torch.tensor([0.0, 3.0, -3.0, 0.0])
    assert relative_error(vector, compress(vector, density=0.5).dense()) == 0
    assert relative_error(torch.zeros(3), compress(torch.zeros(3)).dense()) == 0


def test_files_hold_two_bits_a_number_and_come_back(tmp_path):
    layout = ParamLayout.of(CNN(1, (32, 32), 5))
    base, network = (layout.flatten(CNN(1, (32, 32), 5)) for _ in range(2))
    count = layout.num_trainable
    small = compress(network[:count] - base[:count], 0.3)
    save_compressed(tmp_path / "a.safetensors", layout, network, base, small)
    assert (tmp_path / "a.safetensors").stat().st_size < count / 4 + 16_000  # the layout's JSON, and buffers
    back = load_compressed(tmp_path / "a.safetensors", layout, base)
    torch.testing.assert_close(back[:count], base[:count] + small.dense(), rtol=0, atol=1e-7)
    assert torch.equal(back[count:], network[count:])
    with pytest.raises(ValueError, match="compressed against another base"):
        load_compressed(tmp_path / "a.safetensors", layout, network)
    save_file({"w": torch.ones(2)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="no compressed task vector"):
        load_compressed(tmp_path / "b.safetensors", layout, base)
