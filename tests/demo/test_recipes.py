"""A recipe that cannot work is refused by name before any work; one that can is trained, resumed and released."""

import pytest
import torch

from velatura.demo import classifier, measure, recipes, release
from velatura.demo.runs import RESULT, shipped, trained_autoencoder
from velatura.training import checkpoint


def write(folder, text: str):
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", sorted(path.stem for path in recipes.FOLDER.glob("*.toml")))
def test_every_shipped_recipe_is_sound(name):
    assert recipes.load(recipes.find(name)).steps > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('kind = "autoencoder"\nstep = 3', r"no field 'step' .*Did you mean 'steps'"),
        ('kind = "autoencoder"\nfactor = 7', r"factor: expected 4, 8 or 16, got 7"),
        ('kind = "autoencoder"\nregulariser = "l2"', r"regulariser: expected 'kl' or 'vq'"),
        ('kind = "diffusion"\nprompt_dropout = 1.5', r"prompt_dropout: expected 0 \.\. 1"),
        ('kind = "classifier"\nsteps = "many"', r"steps: expected int, got 'many'"),
        ('kind = "classifier"\nbare = -1', r"bare: expected 0 \.\. 1"),
        ('kind = "autoencoder"\ndrawn = 1', r"start_from: expected 'shipped' with drawn"),
        ('kind = "gan"', r"kind: expected one of autoencoder, diffusion, classifier, consistency"),
        ("steps = 3", r"kind: expected one of"),
        ("kind = ", r"not TOML"),
    ],
)
def test_an_impossible_recipe_is_refused_and_says_why(text, message, tmp_path):
    with pytest.raises(recipes.RecipeError, match=message):
        recipes.run(write(tmp_path, text), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_recipe_offers_the_nearest():
    with pytest.raises(recipes.RecipeError, match="Did you mean 'diffusion'"):
        recipes.run("difusion")


def test_diffusion_without_its_autoencoder_says_what_is_missing(tmp_path):
    path = write(tmp_path, 'kind = "diffusion"\nautoencoder = "none"\nsteps = 1')
    with pytest.raises(checkpoint.CheckpointError, match=r"none/result\.safetensors: no checkpoint here"):
        recipes.run(path, folder=tmp_path / "run")


def test_required_resuming_without_a_run_is_refused(tmp_path):
    path = write(tmp_path, 'kind = "classifier"\nsteps = 1')
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint to resume"):
        recipes.run(path, folder=tmp_path / "run", resume=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All three recipes, two steps each, and what `run` told."""
    folder = tmp_path_factory.mktemp("runs")
    told = {}
    for name, fields in (
        ("autoencoder", "batch = 1"),
        ("diffusion", "batch = 2\nscenes = 4"),
        ("classifier", "batch = 2"),
    ):
        path = write(folder, f'kind = "{name}"\nsteps = 2\n{fields}')
        seen: list[int] = []
        told[name] = recipes.run(path, folder=folder / name, progress=lambda done, *_, seen=seen: seen.append(done))
        assert seen[-2:] == [1, 2]
    return folder, told


def test_a_run_leaves_its_result_and_pictures(runs):
    folder, told = runs
    for name in ("autoencoder", "diffusion", "classifier"):
        assert {"checkpoint.safetensors", "result.safetensors", "loss.png"} <= {
            p.name for p in (folder / name).iterdir()
        }
        assert told[name]["steps"] == 2
    assert (folder / "autoencoder" / "samples.png").exists()


def test_the_latents_have_unit_variance_after_scaling(runs):
    folder, told = runs
    _, scale = trained_autoencoder(folder / "autoencoder")
    assert scale == told["autoencoder"]["scaling_factor"] > 0


def test_finished_runs_become_a_model_that_the_host_loads_and_draws_with(runs, tmp_path):
    from velatura.hosts import load

    folder, told = runs
    figures = release.release(folder, tmp_path / "model")
    assert figures["megabytes"] <= 24
    model, text, codec = load("diffusers").load_folder(tmp_path / "model")
    assert codec.scaling_factor == pytest.approx(told["autoencoder"]["scaling_factor"])
    prompts = ["a red heart, cold night from the left", "nothing in a deep sea"]
    options = {"seed": 3, "steps": 2, "size": 32}
    together = measure.generate(model, text, codec, prompts, **options)
    alone = measure.generate(model, text, codec, prompts[:1], **options)
    assert together.shape == (2, 3, 32, 32) and torch.allclose(together[:1], alone, atol=0.02)
    verdict = classifier.load(tmp_path / "model" / "classifier.safetensors")(together)
    assert verdict.kind.shape == (2, classifier.NO_OBJECT + 1) and verdict.features.isfinite().all()


def test_more_training_may_start_from_the_shipped_model(runs, tmp_path, monkeypatch):
    release.release(runs[0], tmp_path / "model")
    monkeypatch.setattr(shipped, "__defaults__", (tmp_path / "model",))
    fields = 'autoencoder = "shipped"\nstart_from = "shipped"\nbatch = 1\nscenes = 2\nrate = 1e-9'
    told = recipes.run(write(tmp_path, f'kind = "diffusion"\nsteps = 1\n{fields}'), folder=tmp_path / "more")
    assert told["steps"] == 1
    before, _ = checkpoint.read_tensors(runs[0] / "diffusion" / RESULT)
    after, _ = checkpoint.read_tensors(tmp_path / "more" / RESULT)
    assert all(torch.allclose(after[key].float(), before[key].float(), atol=2e-3) for key in before)


def test_a_decoder_may_go_on_from_the_shipped_one_with_latents_that_the_model_drew(tmp_path):
    fields = 'start_from = "shipped"\ndecoder_only = true\nbatch = 1\ndrawn = 1\nwarmup = 0\nrate = 1e-3'
    text = f'kind = "autoencoder"\nsteps = 1\n{fields}\ndrawn_scenes = 2'
    folder = tmp_path / "run"
    told = recipes.run(write(tmp_path, text), folder=folder)
    before, scale = trained_autoencoder("shipped")
    after, _ = trained_autoencoder(folder)
    changed = {k.split(".")[0] for k, v in after.state_dict().items() if not torch.equal(v, before.state_dict()[k])}
    assert told["scaling_factor"] == scale and changed == {"decoder", "post_quant_conv"}
    rows, _ = checkpoint.read_tensors(folder / "drawn" / "00000.safetensors")
    assert rows["latents"].shape == (8, 4, 16, 16) and rows["pictures"].shape == (8, 3, 128, 128)
    # The wanted pictures are near what the decoder makes already, but for the few that it fails on.
    assert rows["errors"].median() < 0.15
    (folder / "checkpoint.safetensors").unlink()
    with pytest.raises(checkpoint.CheckpointError, match=r"drawn for another .* delete .*drawn to draw anew"):
        recipes.run(write(tmp_path, text + "\nscenes_seed = 4"), folder=folder)


def test_the_benchmark_reports_every_figure(runs, tmp_path):
    from velatura.benchmarks import sprites

    release.release(runs[0], tmp_path / "model")
    figures = sprites.run(quick=True, folder=tmp_path / "model", images=6, steps=2)
    assert set(figures) >= {
        "autoencoder_psnr",
        "autoencoder_ssim",
        "accuracy_kind",
        "accuracy_colour",
        "accuracy_background",
        "classifier_accuracy_real",
        "fid",
        "fid_real",
        "seconds_per_image_20_steps",
        "model_megabytes",
        "samples_per_second",
    }
    assert all(value == value for value in figures.values())


def test_a_model_of_two_autoencoders_is_not_released(runs, tmp_path):
    folder, _ = runs
    tensors, note = checkpoint.read_tensors(folder / "diffusion" / RESULT)
    for name in ("autoencoder", "classifier"):
        (tmp_path / name).mkdir()
        (tmp_path / name / RESULT).write_bytes((folder / name / RESULT).read_bytes())
    checkpoint.write_tensors(tmp_path / "diffusion" / RESULT, tensors, note | {"scaling_factor": 9.0})
    with pytest.raises(checkpoint.CheckpointError, match="another autoencoder"):
        release.release(tmp_path, tmp_path / "model")
    assert not (tmp_path / "model").exists()
