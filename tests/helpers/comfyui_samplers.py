"""ComfyUI's own samplers on a network that both sides know; run by ComfyUI's Python in its folder.

python comfyui_samplers.py ALPHAS STATES    # torch files: ᾱ [S], least noise first → {name: sample}
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

SHAPE = (3, 4, 4)
SEEDS = (0, 1)
GUIDANCE = 0.6
# Our name of a sampler, theirs, and their options.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("sample_euler", {}),
    "euler_ancestral": ("sample_euler_ancestral", {}),
    "heun": ("sample_heun", {}),
    "dpmpp_2m": ("sample_dpmpp_2m", {}),
    "dpmpp_2m_sde": ("sample_dpmpp_2m_sde", {}),
    "dpmpp_3m_sde": ("sample_dpmpp_3m_sde", {}),
    "sa_solver": (
        "sample_sa_solver",
        {"tau_func": lambda sigma: 0.7, "predictor_order": 2, "corrector_order": 2},
    ),
    "sa_solver_3": (
        "sample_sa_solver",
        {"tau_func": lambda sigma: 1.0, "predictor_order": 3, "corrector_order": 3},
    ),
    "euler cfg_pp": ("sample_euler_cfg_pp", {}),
    "euler_ancestral cfg_pp": ("sample_euler_ancestral_cfg_pp", {}),
}


def branches(x: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Conditional and null x̂_0 of x_t, [B, …] each: any smooth functions."""
    mix = torch.randn(4, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64) / 2
    x = x.double()
    return torch.tanh(x @ mix + alpha), 0.5 * torch.sin(x @ mix.T - alpha)


def starting_noise() -> tuple[Tensor, list[torch.Generator]]:
    """x_T [2, …], and the generators as it leaves them."""
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    return torch.stack([torch.randn(SHAPE, generator=each) for each in generators]), generators


def main(alphas_file: Path, states_file: Path) -> None:
    sys.path.insert(0, "")
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    from comfy.k_diffusion import sampling

    alphas = torch.load(alphas_file).flip(0)  # as they are walked
    sigmas = torch.cat([((1 - alphas) / alphas).sqrt(), torch.zeros(1, dtype=torch.float64)])

    class Model:
        inner_model = SimpleNamespace(
            model_patcher=SimpleNamespace(get_model_object=lambda name: SimpleNamespace()),
            inner_model=SimpleNamespace(model_sampling=SimpleNamespace()),
        )

        def __call__(self, x: Tensor, sigma: Tensor, model_options: Any = None, **_: Any) -> Tensor:
            alpha = 1 / (1 + sigma[0].item() ** 2)
            conditional, null = branches((x * alpha**0.5).float(), alpha)
            denoised = null + GUIDANCE * (conditional - null)
            for function in (model_options or {}).get("sampler_post_cfg_function", []):
                denoised = function({"denoised": denoised, "uncond_denoised": null})
            return denoised

    states = {}
    for name, (function, options) in CASES.items():
        x, generators = starting_noise()

        def noise(*_: Any, generators: list[torch.Generator] = generators) -> Tensor:
            return torch.stack([torch.randn(SHAPE, generator=each) for each in generators]).double()

        noisy = any(part in name for part in ("ancestral", "sde", "sa_solver"))
        given = {"noise_sampler": noise} if noisy else {}
        begin = x.double() / alphas[0].sqrt()
        states[name] = getattr(sampling, function)(
            Model(), begin, sigmas, extra_args={}, disable=True, **given, **options
        )
    torch.save(states, states_file)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
