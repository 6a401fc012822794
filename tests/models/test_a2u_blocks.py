# SPDX-License-Identifier: Apache-2.0
"""A2U Matting's block that downsamples and the two that decode, against the published ones."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

import pyindexnet
from pyindexnet.models.a2u_matting import BasicBlock, decoder_block_keys, reducing_block_keys
from pyindexnet.nn import AffinityUpDown, convert_inplace_abn
from tests.golden import load_case
from tests.nn.golden_module import check, load_published, parameter_gradients
from tests.nn.test_affinity import normalised

GOLDENS = BLOCK, DECODER = "residualblock_bilinear", "bilineardecoder"


def with_plain_norms(module: nn.Module, plain: nn.Module) -> nn.Module:
    """``plain`` with the weights of ``module``: ordinary batch norms, whose weight is not abs(w) + eps."""
    plain.load_state_dict(module.state_dict())
    return plain.to(next(module.parameters()).dtype).eval()


def test_block_that_downsamples() -> None:
    case = load_case("a2u_module", BLOCK)
    keys = reducing_block_keys("m", "p")

    def block() -> BasicBlock:
        return BasicBlock(32, 64, resampling=AffinityUpDown(64, normalize=True, encoder_kernel_size=6))

    def results(dtype: torch.dtype) -> dict[str, Tensor]:
        module = convert_inplace_abn(block(), weight_form="positive")
        load_published(module, keys, case).to(dtype)
        x = case.tensor("input_x").to(dtype).requires_grad_()
        seen: list[Tensor] = []
        module.get_submodule("conv1").register_forward_hook(lambda _, args, out: seen.append(out))
        y, guide = module(x)
        up = normalised(cast(AffinityUpDown, module.resampling), guide[0])[1]
        outputs = {"output": y, "output_idx_de": up, "output_x0": seen[0]}
        cotangents = [case.tensor(f"cotangent_{key}").to(dtype) for key in outputs]
        grads = torch.autograd.grad(list(outputs.values()), [x, *module.parameters()], cotangents)
        with torch.no_grad():
            outputs["output_plainbn"] = with_plain_norms(module, block())(x)[0]
        return outputs | {"grad_x": grads[0]} | parameter_gradients(module, keys, grads[1:])

    check(case, results)


def test_decoder() -> None:
    """The kernels, which are normalised, upsample x; then come the sum with the skip and two blocks."""
    case = load_case("a2u_module", DECODER)

    def blocks() -> nn.Sequential:
        return nn.Sequential(BasicBlock(24, 12), BasicBlock(12, 12))

    def decoded(module: nn.Module, x: Tensor, low: Tensor, kernels: Tensor) -> Tensor:
        y = pyindexnet.carafe(x, kernels, 3) + low
        for block in module.children():
            y, _ = block(y)
        return y

    def results(dtype: torch.dtype) -> dict[str, Tensor]:
        module = blocks()
        keys = decoder_block_keys("m.0", "p.dconv", module[0]) | decoder_block_keys("m.1", "p.dconv1", module[1])
        load_published(convert_inplace_abn(module, weight_form="positive"), keys, case).to(dtype)
        inputs = {key: case.tensor(f"input_{key}").to(dtype).requires_grad_() for key in ("x", "low", "idx_up")}
        y = decoded(module, *inputs.values())
        grads = torch.autograd.grad(y, [*inputs.values(), *module.parameters()], case.tensor("cotangent_output").to(dtype))
        with torch.no_grad():
            plain = decoded(with_plain_norms(module, blocks()), *inputs.values())
        found = {"output": y, "output_plainbn": plain}
        found |= {f"grad_{key}": grad for key, grad in zip(inputs, grads, strict=False)}
        return found | parameter_gradients(module, keys, grads[3:])

    check(case, results)
