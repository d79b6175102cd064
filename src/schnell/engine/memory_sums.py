"""What a model takes of a device's memory in one form, and of its host's: sums over `NetworkSizes`, part by part.

The constants were computed at FLUX.1's true shapes (docs/decisions/0041-a-memory-plan-before-loading.md).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from schnell.engine.device import Precision
from schnell.engine.joined_modulation import joined_numbers
from schnell.engine.lora_factors import Room
from schnell.engine.network_sizes import Blocks, Linears, NetworkSizes
from schnell.engine.quantized import Kind, stored_bytes
from schnell.engine.slot_routing import MAX_ADAPTERS_PER_ROW
from schnell.spec import MAX_SIDE

#: Where a network's weights lie: on the device; in host memory, each block copied when its turn comes; or in host
#: memory for good, where the CPU multiplies them.
Place = Literal["device", "streamed", "cpu"]

MEGAPIXEL: Final = 1024 * 1024
LARGEST_PIXELS: Final = MAX_SIDE**2
#: Two blocks are on the device at once while blocks are streamed: one multiplies, the next is on its way.
STREAM_PIECES: Final = 2
#: Prompts whose embeddings are kept.
KEPT_PROMPTS: Final = 128
#: LoRAs that are kept in host memory, so that one that comes back is not read from disk again.
ADAPTER_BYTES: Final = 2 << 30

#: Libraries' own memory: cuBLAS's and cuDNN's workspaces and compiled kernels; on a CPU, torch and the server.
LIBRARY_BYTES: Final = 600_000_000
#: A row's activations at their peak, in numbers for every token and channel. Quantizing a layer's input holds it once
#: more, in float32 and in eight bits.
_ROW_NUMBERS: Final = 16
_QUANTIZING_NUMBERS: Final = 8
#: The same for T5, over a batch of four prompts.
_TEXT_NUMBERS: Final = 4 * 24
#: Decoding takes so many 16-bit numbers for each pixel and channel of the decoder's widest level; a tile with its
#: margins has so many pixels.
_DECODING_NUMBERS: Final = 6
_TILE_PIXELS: Final = 576 * 576
#: A 4-bit weight is written out for the product, by way of a byte for each number.
_WRITTEN_BYTES: Final = 5


@dataclass(frozen=True, slots=True)
class Form:
    """In which form a model runs.

    `precision` is that of requests with `go_fast`, `exact` that of those without: None where there is room for one of
    them only. `modulation` and `text` (T5's layers) are None where they stay in the compute dtype. `rows` is how many
    rows of one megapixel may step together, `whole_pixels` the largest picture that is decoded whole, `streamed`
    how many of the transformer's blocks wait in host memory.
    """

    precision: str
    exact: str | None
    modulation: Kind | None
    text: Kind | None
    text_place: Place
    adapter_slots: int
    adapter_rank: int
    rows: int
    whole_pixels: int
    streamed: int = 0

    def precision_for(self, *, go_fast: bool) -> Precision:
        """The precision that a request with this value of `go_fast` runs in."""
        return Precision(self.precision if go_fast or self.exact is None else self.exact)

    def decodes_in_tiles(self, pixels: int) -> bool:
        """Whether a picture of so many drawn pixels is decoded in strips from the start."""
        return pixels > self.whole_pixels

    @property
    def number_bytes(self) -> int:
        """The bytes of a number that is not quantized."""
        return 4 if self.precision == "float32" else 2

    @property
    def has_two_paths(self) -> bool:
        """Whether requests with and without `go_fast` run in different arithmetics."""
        return self.exact is not None and self.exact != self.precision


@dataclass(frozen=True, slots=True)
class Share:
    """What one part takes, in bytes: of the device's memory, and of the host's."""

    name: str
    device: int
    host: int = 0


def block_kind(precision: str) -> Kind | None:
    """How a transformer's attention and feed-forward layers are stored in this precision; None: as they are."""
    kinds: dict[str, Kind] = {"float8": "float8", "int8": "int8", "int4": "int4"}
    return kinds.get(precision)


def streamed_blocks(form: Form, blocks: int) -> tuple[int, ...]:
    """Which of a transformer's blocks wait in host memory: spread evenly, so that copies and products overlap."""
    return tuple(sorted({index * blocks // form.streamed for index in range(form.streamed)})) if form.streamed else ()


def token_bytes(sizes: NetworkSizes, form: Form) -> int:
    """The bytes of activations that a step takes for each token of a row."""
    numbers = _ROW_NUMBERS + (_QUANTIZING_NUMBERS if form.precision in {"float8", "int8"} else 0)
    return numbers * sizes.width * form.number_bytes


def row_tokens(sizes: NetworkSizes, pixels: int) -> int:
    """The tokens of a picture of so many asked pixels, and of its prompt."""
    return -(-pixels // (sizes.draw_scale * sizes.pixels_per_token) ** 2) + sizes.text_tokens


def resident_shares(sizes: NetworkSizes, form: Form, *, is_compiled: bool = True) -> tuple[Share, ...]:
    """What stays for as long as the model is loaded."""
    slots = _slot_bytes(sizes, form)
    prompt = sizes.text_tokens * sizes.t5[0].in_features * form.number_bytes
    size = form.number_bytes
    return (
        *_transformer_shares(sizes, form),
        *_text_shares(sizes, form),
        Share("autoencoder", sizes.vae * size),
        Share(f"LoRA slots, {form.adapter_slots} of rank {form.adapter_rank}", *slots),
        Share("room for LoRAs beside the weights", _room_bytes(sizes, form) if is_compiled else 0),
        Share("LoRAs beside the slots", 0, min(ADAPTER_BYTES, sum(slots))),
        Share("prompts", KEPT_PROMPTS * prompt),
        Share("libraries", LIBRARY_BYTES),
    )


def work_shares(sizes: NetworkSizes, form: Form) -> tuple[Share, ...]:
    """What each stage takes besides; one stage at a time."""
    tokens = max(form.rows * row_tokens(sizes, MEGAPIXEL), row_tokens(sizes, LARGEST_PIXELS))
    # layers that share an input are one product: three of a double block, four of a single one
    largest = max(each.weights for sort in sizes.block_sorts for each in sort.layers) * 2
    written = _WRITTEN_BYTES * largest if form.precision == "int4" else 0
    drawn = LARGEST_PIXELS // sizes.draw_scale**2
    pixels = min(drawn, max(_TILE_PIXELS, form.whole_pixels))
    return (
        _text_work(sizes, form),
        Share(f"a step of {form.rows} MP", tokens * token_bytes(sizes, form) + written),
        Share("decoding", _DECODING_NUMBERS * pixels * sizes.decoder_width * form.number_bytes),
    )


def _text_work(sizes: NetworkSizes, form: Form) -> Share:
    activations = _TEXT_NUMBERS * sizes.text_tokens * sizes.t5[0].in_features * form.number_bytes
    if form.text_place == "cpu":
        return Share("reading prompts", 0, activations)
    block = _stored(sizes.t5, form.text, form.number_bytes)
    return Share("reading prompts", activations + (STREAM_PIECES * block if form.text_place == "streamed" else 0))


def _stored(linears: Sequence[Linears], kind: Kind | None, size: int) -> int:
    return sum(
        each.weights * size if kind is None else each.count * stored_bytes(kind, each.in_features, each.out_features)
        for each in linears
    )


def _block_bytes(sort: Blocks, form: Form) -> int:
    """One block as it is stored: with the layers of both precisions if there are two."""
    size = form.number_bytes
    paths = [form.precision, *([form.exact] if form.exact and form.has_two_paths else [])]
    layers = sum(_stored(sort.layers, block_kind(path), size) for path in paths)
    biases = sum(each.biases for each in (*sort.layers, *sort.modulation))
    return layers + _stored(sort.modulation, form.modulation, size) + size * (biases + sort.norms)


def _transformer_shares(sizes: NetworkSizes, form: Form) -> Iterator[Share]:
    doubles = sizes.double.count
    waiting = streamed_blocks(form, doubles + sizes.single.count)
    each = [_block_bytes(sort, form) for sort in sizes.block_sorts]
    host = sum(each[index >= doubles] for index in waiting)
    whole = sum(sort.count * size for sort, size in zip(sizes.block_sorts, each, strict=True))
    name = f"{form.precision} and {form.exact}" if form.has_two_paths else form.precision
    yield Share(f"transformer's blocks, {name}", whole - host, host)
    if waiting:
        yield Share(f"{len(waiting)} of them on their way from host memory", STREAM_PIECES * max(each))
    yield Share("its embedders and last layer", _plain(sizes.outer) * form.number_bytes)


def _text_shares(sizes: NetworkSizes, form: Form) -> Iterator[Share]:
    size = form.number_bytes
    t5 = sizes.t5_blocks * _stored(sizes.t5, form.text, size) + sizes.t5_other * size
    arithmetic = (form.text or ("float32" if size == 4 else "bfloat16")).removesuffix("_weights")
    if form.text_place == "device":
        yield Share(f"T5, {arithmetic}", t5)
    else:
        # the vocabulary is looked up where it lies
        place = "streamed" if form.text_place == "streamed" else "on the CPU"
        yield Share(f"T5, {arithmetic}, {place}", 0, t5)
    yield Share("CLIP", size * (_plain(sizes.clip) + sizes.clip_other))


def _plain(linears: Sequence[Linears]) -> int:
    return sum(each.weights + each.biases for each in linears)


def _room_bytes(sizes: NetworkSizes, form: Form) -> int:
    """What compiled blocks hold beside weights, so that a LoRA is part of a layer's own product, and of LoRAs."""
    if form.streamed:
        return 0
    rank, size = form.adapter_rank, form.number_bytes
    beside = sum(count * Room.of(into, out, parts, rank).numbers for count, into, out, parts in sizes.token_layers)
    # beside weights in int8 or four bits there is none
    paths = {form.precision, form.exact} - {None, "int8", "int4"}
    room = sum(beside * (1 if block_kind(str(path)) else size) for path in paths)
    numbers = _held_numbers(sizes, form)
    if form.modulation is None:
        modulation = [(sort.count * each.count, each) for sort in sizes.block_sorts for each in sort.modulation]
        numbers += sum(joined_numbers(count, each.in_features, rank) for count, each in modulation)
    return room + size * numbers


def _held_numbers(sizes: NetworkSizes, form: Form) -> int:
    """What compiled blocks hold of a batch's LoRAs, at most: its factors, gathered and scaled (`is_held`)."""
    blocks = [(sort.count, each) for sort in sizes.block_sorts for each in (*sort.layers, *sort.modulation)]
    ranks = MAX_ADAPTERS_PER_ROW * form.adapter_rank
    # gains are in float32, and of so many rows as these are ranks for
    return sum(count * (ranks * each.rank_numbers + 2 * MAX_ADAPTERS_PER_ROW * each.gains) for count, each in blocks)


def _slot_bytes(sizes: NetworkSizes, form: Form) -> tuple[int, int]:
    """The stacks of low-rank factors of all layers, slot 0 (no LoRA) included: on the device, and in host memory."""
    blocks = [(sort.count, each) for sort in sizes.block_sorts for each in (*sort.layers, *sort.modulation)]
    linears = [*(replace(each, count=count * each.count) for count, each in blocks), *sizes.outer, *sizes.clip]
    slots, size = form.adapter_slots + 1, form.number_bytes
    device = slots * size * sum(form.adapter_rank * each.rank_numbers + each.gains for each in linears)
    t5 = slots * size * sizes.t5_blocks * sum(form.adapter_rank * each.rank_numbers + each.gains for each in sizes.t5)
    return (device, t5) if form.text_place == "cpu" else (device + t5, 0)
