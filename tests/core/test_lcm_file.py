"""LCM files. A failure means that a file in the wild loses its LoRA or its guidance, or a strange one is taken."""

from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor

from velatura.core.lcm_file import read_lcm

PROJECTION = torch.randn(8, 6)
Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
KOHYA = {
    f"lora_unet_{Q.replace('.', '_')}.lora_down.weight": torch.ones(2, 8),
    f"lora_unet_{Q.replace('.', '_')}.lora_up.weight": torch.ones(8, 2),
    f"lora_unet_{Q.replace('.', '_')}.alpha": torch.tensor(1.0),
}
PEFT = {f"unet.{Q}.lora_A.weight": torch.ones(2, 8), f"unet.{Q}.lora_B.weight": torch.ones(8, 2)}
PROCESSOR = {
    f"{Q.removesuffix('.to_q')}.processor.to_q_lora.down.weight": torch.ones(2, 8),
    f"{Q.removesuffix('.to_q')}.processor.to_q_lora.up.weight": torch.ones(8, 2),
}
ENDINGS = ["time_embedding.cond_proj.weight", "model.diffusion_model.time_embed.cond_proj.weight"]


class Recorded(Mapping[str, Tensor]):
    """A file that is read tensor by tensor."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors, self.read = tensors, list[str]()

    def __getitem__(self, key: str) -> Tensor:
        self.read.append(key)
        return self.tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


@pytest.mark.parametrize("lora", [KOHYA, PEFT, PROCESSOR], ids=["kohya", "peft", "processor"])
@pytest.mark.parametrize("guided", [False, True])
def test_a_lora_with_and_without_guidance(lora: dict[str, Tensor], guided: bool) -> None:
    found = read_lcm({**lora, **({ENDINGS[0]: PROJECTION} if guided else {})})
    assert found.deltas is not None and list(found.deltas.of("unet")) == [Q.replace(".", "_")]
    assert (found.projection is not None) == guided
    assert (found.convention, found.default) == ("omega", None)


@pytest.mark.parametrize("key", ENDINGS)
def test_of_a_checkpoint_only_the_projection_is_read(key: str) -> None:
    file = Recorded({"model.diffusion_model.out.2.weight": torch.zeros(1), key: PROJECTION, "a": torch.zeros(1)})
    found = read_lcm(file)
    assert found.deltas is None and found.projection is PROJECTION
    assert file.read == [key]


def test_the_metadata_says_what_the_network_calls_guidance() -> None:
    file = {ENDINGS[0]: PROJECTION}
    found = read_lcm(file, {"velatura_guidance": "scale", "velatura_guidance_default": "5", "format": "pt"})
    assert (found.convention, found.default) == ("scale", 5.0)
    with pytest.raises(ValueError, match="velatura_guidance: expected omega or scale, got 'w'"):
        read_lcm(file, {"velatura_guidance": "w"})
    with pytest.raises(ValueError, match="velatura_guidance_default: expected a number"):
        read_lcm(file, {"velatura_guidance_default": "high"})


@pytest.mark.parametrize("tensors", [{}, {"model.diffusion_model.out.2.weight": torch.zeros(1)}])
def test_a_file_that_is_neither_says_what_it_lacks(tensors: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"time_embedding\.cond_proj\.weight"):
        read_lcm(tensors)


def test_another_kind_of_adapter_is_named() -> None:
    with pytest.raises(ValueError, match="LoHa"):
        read_lcm({f"lora_unet_{Q}.hada_w1_a": torch.zeros(1)})
