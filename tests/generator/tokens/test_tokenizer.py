import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from generator.tokens.normalizer import ParamNormalizer
from generator.tokens.tokenizer import ChunkTokenizer, NeuronTokenizer, is_generated, make_tokenizer
from zoo.networks.architectures import CNN, MLP, ByteTransformer
from zoo.networks.layout import GroupAxis, LayoutMismatchError, ParamLayout, SymmetryGroup

ARCHITECTURES = {
    "mlp-1": lambda: MLP(8, (6,), 3),
    "mlp-3": lambda: MLP(8, (6, 5, 4), 3),
    "cnn": lambda: CNN(1, (4, 6), 3),
    "transformer": lambda: ByteTransformer(vocabulary=11, context=7, width=8, num_blocks=2, num_heads=2),
}
TOKENIZERS = {
    "neuron": NeuronTokenizer,
    "chunk": lambda layout: ChunkTokenizer(layout, 7),
    "flat": lambda layout: ChunkTokenizer(layout, 0),
}


def test_interchangeable_units_have_no_statistics_of_their_own():
    with pytest.raises(ValueError, match="units of a network are a set"):
        make_tokenizer("neuron", ParamLayout.of(MLP(8, (6,), 3)), statistics_per_number=True)


@pytest.fixture(params=ARCHITECTURES, ids=str)
def layout(request):
    return ParamLayout.of(ARCHITECTURES[request.param]())


def without_copied(layout, values):
    kept = values.clone()
    for slot in layout:
        if not is_generated(slot):
            kept[..., slot.span] = 0
    return kept


def random_networks(layout, *lead):
    values = torch.randn(*lead, layout.num_params)
    for slot in layout:
        if slot.role == "running_var":
            values[..., slot.span] = values[..., slot.span].exp()
        elif not is_generated(slot):
            values[..., slot.span] = 17.0
    return values


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_decode_inverts_encode_exactly(layout, kind, lead):
    tokenizer = TOKENIZERS[kind](layout)
    values = torch.randn(*lead, layout.num_params)
    assert torch.equal(tokenizer.decode(tokenizer.encode(values)), without_copied(layout, values))


@settings(max_examples=25, deadline=None)
@given(
    hidden=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 5)),
    width=st.integers(1, 40),
)
def test_any_mlp_survives_both_tokenizers(hidden, sizes, width):
    layout = ParamLayout.of(MLP(sizes[0], hidden, sizes[1]))
    values = torch.randn(2, layout.num_params)
    for tokenizer in (NeuronTokenizer(layout), ChunkTokenizer(layout, width)):
        assert torch.equal(tokenizer.decode(tokenizer.encode(values)), values)


def test_a_unit_owns_its_weights():
    layout = ParamLayout.of(MLP(8, (6, 5), 3))
    values = torch.randn(layout.num_params)
    named, features = layout.views(values), NeuronTokenizer(layout).encode(values)
    assert torch.equal(features["layers.0.weight"], named["layers.0.weight"])  # (unit, fixed input)
    assert torch.equal(features["layers.1.weight"][..., 0], named["layers.1.weight"])  # (target, source)
    assert torch.equal(features["layers.2.weight"], named["layers.2.weight"].T)  # (unit, fixed output)
    assert features["layers.2.bias"].shape == (1, 3)  # of the one global node


def test_a_head_owns_its_rows_and_columns():
    layout = ParamLayout.of(ByteTransformer(vocabulary=11, context=7, width=8, num_blocks=1, num_heads=2))
    values = torch.randn(layout.num_params)
    named, features = layout.views(values), NeuronTokenizer(layout).encode(values)
    assert torch.equal(features["blocks.0.query.weight"][1], named["blocks.0.query.weight"][4:].flatten())
    assert torch.equal(features["blocks.0.output.weight"][1], named["blocks.0.output.weight"][:, 4:].flatten())


def test_convolution_kernels_are_edges():
    layout = ParamLayout.of(CNN(1, (4, 6), 3))
    values = torch.randn(layout.num_params)
    kernel = layout.views(values)["convs.1.weight"]
    assert torch.equal(NeuronTokenizer(layout).encode(values)["convs.1.weight"], kernel.flatten(2))


def test_blocks_are_shared_between_layers_widths_and_depths():
    def keys(hidden):
        return {block.key for block in NeuronTokenizer(ParamLayout.of(MLP(8, hidden, 3))).blocks}

    assert keys((6, 5)) == keys((7, 3, 9))
    assert keys((6,)) < keys((6, 5))


def test_slots_alike_in_one_group_have_different_keys():
    layout = ParamLayout.of(ByteTransformer(vocabulary=11, context=7, width=8, num_blocks=2, num_heads=2))
    blocks = {block.name: block.key for block in NeuronTokenizer(layout).blocks}
    query, key, value = (blocks[f"blocks.0.{name}.weight"] for name in ("query", "key", "value"))
    assert len({query, key, value}) == 3
    assert blocks["blocks.1.query.weight"] == query


def test_chunks_have_masks_and_positions():
    layout = ParamLayout.of(MLP(8, (6,), 3))  # slots of 48, 6, 18 and 3 numbers
    tokenizer = ChunkTokenizer(layout, 20)
    assert tokenizer.positions.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [2, 0], [3, 0]]
    assert tokenizer.mask.sum(1).tolist() == [20, 20, 8, 6, 18, 3]


def test_layouts_that_neuron_tokens_cannot_hold_are_refused():
    plain = ParamLayout.of(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="chunk"):
        make_tokenizer("neuron", plain)
    group = SymmetryGroup("units", 4, (GroupAxis("weight", 0), GroupAxis("weight", 1)))
    with pytest.raises(ValueError, match="ChunkTokenizer"):
        NeuronTokenizer(ParamLayout.of(nn.Linear(4, 4), groups=(group,)))
    with pytest.raises(LayoutMismatchError):
        NeuronTokenizer(ParamLayout.of(MLP(8, (6,), 3))).encode(torch.zeros(7))


@pytest.mark.parametrize("kind", ["neuron", "chunk"])
def test_normalisation_is_inverted_and_copies_counters(layout, kind):
    networks = random_networks(layout, 50)
    normalizer = ParamNormalizer.fit(kind, [layout], [networks], chunk_width=7)
    scale = normalizer.scale(normalizer.make_tokenizer(layout))
    torch.testing.assert_close(scale.denormalize(scale.normalize(networks)), networks, rtol=1e-4, atol=1e-5)


def test_numbers_that_hardly_differ_are_told_apart_by_statistics_of_their_own(layout):
    networks = random_networks(layout, 1) + 1e-5 * random_networks(layout, 50)
    normalizer = ParamNormalizer.fit("chunk", [layout], [networks], chunk_width=7, statistics_per_number=True)
    scale = normalizer.scale(normalizer.make_tokenizer(layout))
    trained = scale.normalize(networks)[:, : layout.num_trainable]
    torch.testing.assert_close(trained.mean(0), torch.zeros(layout.num_trainable), rtol=0, atol=0.05)
    torch.testing.assert_close(trained.std(0), torch.ones(layout.num_trainable), rtol=0, atol=0.1)
    back = scale.denormalize(scale.normalize(networks))[:, : layout.num_trainable]
    torch.testing.assert_close(back, networks[:, : layout.num_trainable], rtol=1e-6, atol=1e-6)


def test_statistics_are_those_of_exchangeable_features():
    layout = ParamLayout.of(MLP(8, (6,), 3))
    networks = torch.randn(40, layout.num_params) * 3 + 1
    normalizer = ParamNormalizer.fit("neuron", [layout], [networks])
    scale = normalizer.scale(normalizer.make_tokenizer(layout))
    weights = layout.views(networks)["layers.0.weight"]  # (40, 6, 8)
    mean = layout.views(scale.mean)["layers.0.weight"]
    torch.testing.assert_close(mean, weights.mean((0, 1)).expand(6, 8))
    bias = layout.views(scale.std)["layers.0.bias"]
    torch.testing.assert_close(bias, layout.views(networks)["layers.0.bias"].std(correction=0).expand(6) + 1e-4)


def test_generated_running_variances_are_positive():
    layout = ParamLayout.of(CNN(1, (4, 6), 3))
    normalizer = ParamNormalizer.fit("neuron", [layout], [random_networks(layout, 20)])
    scale = normalizer.scale(normalizer.make_tokenizer(layout))
    named = layout.views(scale.denormalize(torch.randn(30, layout.num_params) * 3))
    assert all((named[f"norms.{i}.running_var"] > 0).all() for i in range(2))
    assert (named["norms.0.num_batches_tracked"] == 17).all()


def test_statistics_serve_other_widths_and_depths_but_no_other_inputs(tmp_path):
    layouts = [ParamLayout.of(MLP(8, hidden, 3)) for hidden in ((6,), (5, 4))]
    networks = [torch.randn(20, layout.num_params) for layout in layouts]
    normalizer = ParamNormalizer.fit("neuron", layouts, networks)
    normalizer.save_pretrained(tmp_path)
    loaded = ParamNormalizer.from_pretrained(tmp_path)
    wider = ParamLayout.of(MLP(8, (9, 9, 9), 3))
    ours, theirs = (n.scale(n.make_tokenizer(wider)) for n in (normalizer, loaded))
    assert torch.equal(ours.mean, theirs.mean)
    assert torch.equal(ours.std, theirs.std)
    with pytest.raises(LayoutMismatchError, match="no training network"):
        normalizer.scale(normalizer.make_tokenizer(ParamLayout.of(MLP(9, (6,), 3))))


def test_a_flat_network_is_one_chunk_without_padding():
    layout = ParamLayout.of(MLP(8, (6,), 3))
    tokenizer = ChunkTokenizer(layout, 0)
    values = torch.randn(2, layout.num_params)
    (flat,) = tokenizer.encode(values).values()
    assert torch.equal(flat[:, 0], values)
    assert tokenizer.positions.tolist() == [[0, 0]]
    with pytest.raises(ValueError, match="chunk_width"):
        ChunkTokenizer(layout, -1)
