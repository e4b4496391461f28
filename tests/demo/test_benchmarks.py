"""The benchmarks, run very small. A failure means a figure of the results can no longer be measured."""

import math

from velatura.benchmarks import autoencoders, lcm, lcm_ablations

STEPS = {"1", "2", "4", "8"}


def test_the_few_step_table_has_every_figure():
    figures = lcm.run(images=4, rounds=1)
    for name in ("fid_ddim", "fid_dpmpp", "fid_lcm", "accuracy_ddim", "accuracy_dpmpp", "accuracy_lcm"):
        assert set(figures[name]) == STEPS, name
    # One step of DDIM is noise on any model, one of the few-step model is a picture.
    assert figures["accuracy_lcm"]["1"] > figures["accuracy_ddim"]["1"]
    assert figures["accuracy_ddim_50"] > 0.5
    assert figures["scheduler_max_error"] < 1e-5
    assert figures["step_over_unet"] > 0 and figures["step_over_unet_diffusers"] > 0


def test_every_kind_of_autoencoder_is_trained_and_measured():
    figures = autoencoders.run(steps=1, pictures=4)
    for kind in autoencoders.KINDS:
        for factor in autoencoders.FACTORS:
            assert math.isfinite(figures[f"psnr_{kind}_f{factor}"])
            assert 0 < figures[f"ssim_{kind}_f{factor}"] < 1
    assert 1 <= figures["entries_used_vq_f8"] <= 1024


def test_the_ablations_train_and_draw(tmp_path):
    plot = tmp_path / "ablations.png"
    figures = lcm_ablations.run(steps=1, batch=2, images=4, scenes=4, skips=(50,), captions=1, each=2, plot=plot)
    assert all(math.isfinite(figures[f"fid_{solver}_{skip}"]) for solver in lcm_ablations.SOLVERS for skip in (50,))
    assert set(figures["diversity_w"]) == {f"{w:g}" for w in lcm_ablations.GUIDANCES}
    assert plot.stat().st_size > 0
