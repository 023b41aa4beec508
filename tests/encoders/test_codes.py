"""Pictures as codes: bits by hand, the network around them, weights read strictly."""

import importlib.util

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmdiff.encoders.codes import load_codec
from mmdiff.encoders.codes.lfq import to_codes, to_latents
from mmdiff.encoders.codes.magvit import DECODER, ENCODER, Magvit
from mmdiff.errors import CheckpointError, MissingExtraError, SettingError

TINY = {"ch": 32, "ch_mult": [1, 2, 1], "num_res_blocks": [1, 2, 1], "z_channels": 5}
CONFIG = {"encoder": TINY | {"resolution": 16}, "decoder": TINY}


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return Magvit(TINY, TINY)


def test_a_code_is_its_signs_read_as_a_number():
    z = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    z[0, 2, 0, 0] = 0.0  # not above 0
    codes = to_codes(z)
    for n in range(2):
        for row in range(3):
            for column in range(5):
                bits = "".join("1" if float(z[n, c, row, column]) > 0 else "0" for c in range(4))
                assert int(codes[n, row, column]) == int(bits, 2)


@pytest.mark.parametrize("bits", [1, 4, 13])
def test_codes_come_back(bits):
    codes = torch.randint(0, 2**bits, (2, 3, 4), generator=torch.Generator().manual_seed(bits))
    latents = to_latents(codes, bits)
    assert latents.shape == (2, bits, 3, 4) and set(latents.unique().tolist()) <= {-1.0, 1.0}
    assert torch.equal(to_codes(latents), codes)


def test_shapes(tiny):
    assert (tiny.factor, tiny.size) == (4, 32)
    codes = tiny.encode(torch.randn(2, 3, 16, 24))
    assert codes.shape == (2, 4, 6) and 0 <= int(codes.min()) <= int(codes.max()) < 32
    assert tiny.decode(codes).shape == (2, 3, 16, 24)


def test_pictures_of_a_batch_are_alone(tiny):
    pixels = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    alone = torch.cat([tiny.encode(one[None]) for one in pixels])
    assert torch.equal(tiny.encode(pixels), alone)


def test_the_published_sizes():
    with torch.device("meta"):
        net = Magvit(ENCODER, DECODER)
    assert (net.factor, net.size) == (16, 8192)
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert shapes["encoder.down.3.block.0.nin_shortcut.weight"] == (512, 256, 1, 1)
    assert shapes["decoder.up.4.upsample.conv.weight"] == (512, 512, 3, 3)
    assert "encoder.down.4.downsample.conv.weight" not in shapes


def test_weights_are_read_strictly(tiny, tmp_path):
    path = tmp_path / "model.safetensors"
    state = tiny.state_dict()
    save_file(state | {"quantize.embedding": torch.zeros(2)}, path)
    for place in (path, tmp_path):
        net = load_codec("magvit", place, CONFIG)
        assert all(torch.equal(state[key], tensor) for key, tensor in net.state_dict().items())
    key = "decoder.conv_in.bias"
    for changed, words in (
        ({k: v for k, v in state.items() if k != key}, f"lacks the weight: {key}"),
        (state | {"extra": torch.zeros(1)}, "that the codec has not: extra"),
        (state | {key: torch.zeros(3)}, rf"{key} is \(3,\), not \(32,\)"),
    ):
        save_file(changed, path)
        with pytest.raises(CheckpointError, match=words):
            load_codec("magvit", path, CONFIG)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"attn_resolutions": [8]}, "attention inside"), ({"depth": 3}, "no setting 'depth'")],
)
def test_other_networks_are_refused(change, words, tmp_path):
    with pytest.raises(CheckpointError, match=words):
        load_codec("magvit", tmp_path, CONFIG | {"encoder": CONFIG["encoder"] | change})


def test_unknown_codecs_and_missing_packages(tmp_path):
    with pytest.raises(SettingError, match="unknown image codec 'magvot'"):
        load_codec("magvot", tmp_path)
    if importlib.util.find_spec("diffusers") is None:
        with pytest.raises(MissingExtraError, match=r"pip install 'mmdiff\[codes\]'"):
            load_codec("amused", tmp_path)


@pytest.fixture(scope="module")
def vq_model(tmp_path_factory):
    """A folder as diffusers saves it, and the network in it."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: mmdiff[codes]")
    torch.manual_seed(0)
    net = diffusers.VQModel(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=8,
        vq_embed_dim=6,
        num_vq_embeddings=16,
        lookup_from_codebook=True,
    ).eval()
    with torch.no_grad():
        seen = net.encode(torch.rand(1, 3, 8, 8)).latents  # 16 of them, so that all are used
        net.quantize.embedding.weight.copy_(seen[0].flatten(1).T)
    folder = tmp_path_factory.mktemp("vq") / "vqvae"
    net.save_pretrained(folder)
    return folder, net


@torch.no_grad()
def test_the_vq_model_of_diffusers(vq_model):
    """Codes are the nearest rows of the codebook; there and back is diffusers' own round trip."""
    folder, net = vq_model
    codec = load_codec("amused", folder)
    assert (codec.factor, codec.size) == (2, 16)
    pixels = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1
    codes = codec.encode(pixels)
    latents = net.encode((pixels + 1) / 2).latents.permute(0, 2, 3, 1)
    nearest = torch.cdist(latents.flatten(1, 2), net.quantize.embedding.weight).argmin(2)
    assert torch.equal(codes, nearest.view(2, 4, 6)) and len(codes.unique()) > 2
    expected = net((pixels + 1) / 2).sample * 2 - 1
    torch.testing.assert_close(codec.decode(codes), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(codec.encode(pixels[1:])[0], codes[1])


def test_a_vq_model_is_read_strictly(vq_model, tmp_path):
    folder, _ = vq_model
    name, key = "diffusion_pytorch_model.safetensors", "quantize.embedding.weight"
    state, config = load_file(folder / name), (folder / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    for changed, words in (
        ({k: v for k, v in state.items() if k != key}, f"lacks the weight: {key}"),
        (state | {"extra": torch.zeros(1)}, "holds an unknown weight: extra"),
        (state | {key: torch.zeros(3)}, "holds no VQModel"),
    ):
        save_file(changed, tmp_path / name)
        with pytest.raises(CheckpointError, match=words) as caught:
            load_codec("amused", tmp_path)
        assert "\n" not in str(caught.value)
    save_file(state, tmp_path / name)
    other = config.replace('"lookup_from_codebook": true', '"lookup_from_codebook": false')
    (tmp_path / "config.json").write_text(other)
    with pytest.raises(CheckpointError, match="lookup_from_codebook"):
        load_codec("amused", tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="holds no VQModel"):
        load_codec("amused", tmp_path)
