import pytest
import torch
from torch import Tensor, nn

from schnell.engine.offload import StreamedBlocks
from schnell.engine.quantized import quantize_linears

CPU = torch.device("cpu")


class Block(nn.Module):
    """A block with a linear layer, a norm's weight, and a LoRA's factors, which are no part of its state."""

    down: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.randn(width))
        self.register_buffer("down", torch.randn(2, width), persistent=False)
        self.requires_grad_(requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.linear(x) * self.scale + x @ self.down.T @ self.down
        return y


def make_blocks(count: int = 5, width: int = 64) -> list[Block]:
    torch.manual_seed(0)
    return [Block(width) for _ in range(count)]


def _fail(*_: object) -> None:
    raise RuntimeError("a kernel failed")


def run(blocks: list[Block], x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


@pytest.mark.parametrize("count", [1, 2, 5])
def test_streamed_blocks_compute_what_they_compute_in_place(count: int) -> None:
    blocks, x = make_blocks(count), torch.randn(3, 64)
    expected = run(blocks, x)
    StreamedBlocks(blocks, CPU)
    for _ in range(3):
        assert torch.equal(run(blocks, x), expected)


def test_some_blocks_may_stay() -> None:
    blocks, x = make_blocks(), torch.randn(3, 64)
    expected = run(blocks, x)
    StreamedBlocks([blocks[0], blocks[3]], CPU)
    assert torch.equal(run(blocks, x), expected)


def test_quantized_blocks_are_streamed_in_their_stored_form() -> None:
    blocks, x = make_blocks(), torch.randn(3, 64)
    for block in blocks:
        quantize_linears(block, lambda _: "int4")
    expected = run(blocks, x)
    streamed = StreamedBlocks(blocks, CPU)
    assert torch.equal(run(blocks, x), expected)
    assert streamed.nbytes < 5 * 64 * 64 * 4 / 4


def device_bytes(streamed: StreamedBlocks) -> int:
    return sum(piece.nbytes for piece in streamed._pieces)


def test_two_blocks_and_no_more_are_on_the_device() -> None:
    blocks = make_blocks(count=8)
    streamed = StreamedBlocks(blocks, CPU)
    assert device_bytes(streamed) == 0
    run(blocks, torch.randn(3, 64))
    assert device_bytes(streamed) == 2 * streamed.nbytes // 8
    streamed.release()
    assert device_bytes(streamed) == 0
    run(blocks, torch.randn(3, 64))


def test_between_passes_weights_are_read_where_they_wait_and_lora_factors_stay() -> None:
    blocks = make_blocks()
    weight, down = blocks[2].linear.weight.clone(), blocks[2].down
    streamed = StreamedBlocks(blocks, CPU)
    run(blocks, torch.randn(3, 64))
    assert torch.equal(blocks[2].linear.weight, weight)
    streamed.release()
    assert torch.equal(blocks[2].linear.weight, weight)
    assert blocks[2].down is down


def test_a_pass_that_failed_half_way_spoils_no_later_one() -> None:
    blocks, x = make_blocks(), torch.randn(3, 64)
    expected = run(blocks, x)
    StreamedBlocks(blocks, CPU)
    fault = blocks[3].linear.register_forward_pre_hook(_fail)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        run(blocks, x)
    fault.remove()
    assert torch.equal(run(blocks, x), expected)
