import torch

from schnell_mini.appearance_codes import TokenMaps
from schnell_mini.key_value_blocks import ACTIVE, choose_units, plan_units
from schnell_mini.placement import VIEW_SIDES


def random_maps(side: int, codes: int) -> TokenMaps:
    tokens = side * side
    return TokenMaps(
        torch.randn(tokens, 64, codes), torch.randn(tokens, 64), torch.randn(tokens, 4, codes), torch.randn(tokens, 4)
    )


def test_enough_units_write_a_linear_map_exactly() -> None:
    linear, constant = torch.randn(4, 3, 5), torch.randn(4, 3)
    codes, out = torch.randn(5), constant * 0
    for unit in choose_units(linear, constant, side=2, count=4 * 3 + 4):
        reads = 0.0 if unit.reads is None else float(unit.reads @ codes)
        out[unit.position] += unit.adds * (ACTIVE + reads)
    assert torch.allclose(out, linear @ codes + constant, atol=1e-4)


def test_the_strongest_directions_are_kept_first() -> None:
    linear = torch.diag_embed(torch.tensor([[3.0, 1.0], [2.0, 0.5]]))
    units = choose_units(linear, torch.zeros(2, 2), side=1, count=4)
    kept = [(unit.position, float(unit.adds.norm())) for unit in units if unit.reads is not None]
    assert kept == [(0, 3.0), (1, 2.0)]


def test_units_fit_their_blocks_and_reach_every_position() -> None:
    blocks = plan_units({side: random_maps(side, 10) for side in VIEW_SIDES}, blocks=6, hidden=1024)
    assert all(len(units) <= 1024 for units in blocks)
    for units in (blocks[0], [unit for block in blocks[1:] for unit in block]):
        assert {(unit.side, unit.position) for unit in units} == {
            (side, p) for side in VIEW_SIDES for p in range(side * side)
        }
